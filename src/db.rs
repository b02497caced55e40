//! Connections to Postgres: how they are made and what a session is set to.
//!
//! What a connection is told comes from its string (`text`), a service (`service`), the
//! environment (`parameters`) and the password file (`password`), as in psql; where to is in
//! `hosts`, how it is encrypted in `tls` and `verifier`. [`Connector`] makes every
//! connection, and `refusal` says why it could not.

mod connector;
mod hosts;
mod parameters;
mod password;
pub(crate) mod pooler;
mod refusal;
mod service;
mod text;
mod tls;
mod verifier;

use postgres::Client;

pub use connector::Connector;

use crate::error::Error;
use hosts::{Host, hosts_of};
use parameters::Parameters;

/// Opens a connection of its own: see [`Connector::new`].
pub fn connect(url: &str, purpose: &str) -> Result<Client, Error> {
    Connector::new(url, purpose)?.connect()
}

/// The same, for a session that is to live for long, whatever the settings of role,
/// database and server would do to it.
pub(crate) fn connect_for_long(url: &str, purpose: &str) -> Result<Client, Error> {
    let mut client = connect(url, purpose)?;
    client
        .batch_execute(include_str!("../sql/queries/worker_session.sql"))
        .and_then(|()| client.batch_execute(include_str!("../sql/queries/begin_session.sql")))
        .map_err(|error| Error::postgres("could not set up a session", error))?;
    Ok(client)
}

fn could_not_connect(url: &str) -> String {
    format!("could not connect to Postgres at {}", place(url))
}

/// The hosts, ports and database that a connection string leads to, without user and
/// password.
#[must_use]
pub fn place(url: &str) -> String {
    let hosts_and_database = || {
        let parameters = Parameters::read(url)?;
        let hosts: Vec<String> = hosts_of(&parameters)?.iter().map(Host::place).collect();
        let database = match parameters.get("dbname") {
            Some(database) => database.to_owned(),
            None => parameters.user()?,
        };
        Ok::<_, Error>(format!("{}/{database}", hosts.join(",")))
    };
    hosts_and_database().unwrap_or_else(|_| "an unreadable URL".to_owned())
}

/// The same string for a process in another folder: files are named in full.
pub(crate) fn from_anywhere(url: &str) -> Result<String, Error> {
    let mut url = url.to_owned();
    for (key, file) in Parameters::read(&url)?.files_elsewhere() {
        text::append(&mut url, key, &file);
    }
    Ok(url)
}

/// Where the session's server is, if the URL names several: its address, or the folder of
/// its socket.
pub(crate) fn server_in_use(client: &mut Client, url: &str) -> Option<String> {
    if hosts_of(&Parameters::read(url).ok()?).ok()?.len() < 2 {
        return None;
    }
    let query = include_str!("../sql/queries/server_in_use.sql");
    client.query_one(query, &[]).ok()?.try_get(0).ok()?
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_place_names_all_hosts_and_no_secret() {
        for (url, expected) in [
            ("postgresql://u:secret@h:5432/d", "h:5432/d"),
            ("postgresql://u:secret@a,b:7/d?target_session_attrs=read-write", "a:5432,b:7/d"),
            ("host=a,b port=6 dbname=d user=u password=secret", "a:6,b:6/d"),
            ("host=a port=6 user=u password=secret", "a:6/u"),
            ("postgresql://u:5/secret@h/d", "an unreadable URL"),
        ] {
            assert_eq!(place(url), expected);
        }
    }
}
