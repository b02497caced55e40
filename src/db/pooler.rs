//! Whether sessions are ours, or a pooler between us and Postgres changes them.

use postgres::Client;

use super::{connect, place};
use crate::error::Error;

/// Fails if statements of one connection come to several sessions, or those of two
/// connections to one: then nothing that a session holds, such as a lock, can be relied on.
///
/// A pooler hands the session that it used last, or that it has not used for longest, to
/// whoever asks next. So two connections that ask in turn, and one that asks twice, meet.
pub(crate) fn check_sessions(client: &mut Client, url: &str) -> Result<(), Error> {
    let mut other = connect(url, "millhand")?;
    let first = session_of(client)?;
    let others = session_of(&mut other)?;
    let again = [session_of(client)?, session_of(client)?];
    if first != others && again.iter().all(|session| *session == first) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "{} is behind a pooler that gives a session to one transaction only, such as PgBouncer in \
         transaction mode, and a worker needs sessions of its own: give it the URL of the server \
         itself, or of a pool with pool_mode = session",
        place(url)
    )))
}

/// What no other session has, on whatever server.
fn session_of(client: &mut Client) -> Result<String, Error> {
    client
        .query_typed_one(include_str!("../../sql/queries/session.sql"), &[])
        .map(|row| row.get(0))
        .map_err(|error| Error::postgres("could not look at the session", error))
}
