//! Connections to Postgres: how they are made and what a session is set to.

use std::fs::File;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::error::{self, Error};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection needs: a socket, and three for the runtime of the client.
const N_DESCRIPTORS: usize = 4;

/// A connection's parameters, from a URL as psql takes it.
pub fn parameters(url: &str, purpose: &str) -> Result<postgres::Config, Error> {
    // The parser's message may quote the URL: say what is wrong, not what it is.
    let mut parameters: postgres::Config = url.parse().map_err(|_| {
        Error::Config(
            "the database URL cannot be read; expected postgresql://USER@HOST:PORT/DATABASE"
                .to_owned(),
        )
    })?;
    if parameters.get_hosts().is_empty() {
        parameters.host_path("/var/run/postgresql");
    }
    if parameters.get_user().is_none()
        && let Ok(user) = std::env::var("USER")
    {
        parameters.user(&user);
    }
    parameters.application_name(purpose);
    parameters.connect_timeout(CONNECT_TIMEOUT);
    // A host that vanished without a word: noticed by both kernels before the
    // ttl of a worker ends.
    parameters.keepalives_idle(Duration::from_secs(5));
    parameters.tcp_user_timeout(Duration::from_secs(10));
    Ok(parameters)
}

/// Opens a connection of its own.
pub fn connect(url: &str, purpose: &str) -> Result<Client, Error> {
    let parameters = parameters(url, purpose)?;
    open(&could_not_connect(url), || parameters.connect(NoTls))
}

/// The same, for a session that is to live for long, whatever the settings of role,
/// database and server would do to it.
pub(crate) fn connect_for_long(url: &str, purpose: &str) -> Result<Client, Error> {
    let mut client = connect(url, purpose)?;
    set_up(&mut client)?;
    Ok(client)
}

/// Makes a session one that is to live for long.
pub(crate) fn set_up(client: &mut Client) -> Result<(), Error> {
    client
        .batch_execute(include_str!("../sql/queries/worker_session.sql"))
        .and_then(|()| client.batch_execute(include_str!("../sql/queries/begin_session.sql")))
        .map_err(|error| Error::postgres("could not set up a session", error))
}

/// Connects in this way. The client takes it for granted that there is room for its
/// runtime, and panics where there is none.
pub(crate) fn open(
    doing: &str,
    connect: impl FnOnce() -> Result<Client, postgres::Error>,
) -> Result<Client, Error> {
    let room = (0..N_DESCRIPTORS).map(|_| File::open("/dev/null")).collect::<Result<Vec<_>, _>>();
    drop(room.map_err(|error| Error::system(doing, error))?);
    error::guard(doing, || connect().map_err(|error| Error::postgres(doing, error)))
}

pub(crate) fn could_not_connect(url: &str) -> String {
    format!("could not connect to Postgres at {}", place(url))
}

/// The URL's hosts, ports and database, without user and password.
#[must_use]
pub fn place(url: &str) -> String {
    let Ok(parameters) = parameters(url, "") else { return "an unreadable URL".to_owned() };
    let ports = parameters.get_ports();
    let hosts = parameters.get_hosts().iter().enumerate().map(|(index, host)| {
        let host = match host {
            postgres::config::Host::Tcp(name) => name.clone(),
            postgres::config::Host::Unix(path) => path.display().to_string(),
        };
        // One port for all hosts, or one for each.
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
        format!("{host}:{port}")
    });
    let hosts: Vec<String> = hosts.collect();
    let database = parameters.get_dbname().or(parameters.get_user()).unwrap_or("postgres");
    format!("{}/{database}", hosts.join(","))
}

/// Where the session's server is, if the URL names several: its address, or the folder of
/// its socket.
pub(crate) fn server_in_use(client: &mut Client, url: &str) -> Option<String> {
    if parameters(url, "").ok()?.get_hosts().len() < 2 {
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
            ("postgresql://u:secret@h/d", "h:5432/d"),
            ("postgresql://u:secret@a,b:7/d?target_session_attrs=read-write", "a:5432,b:7/d"),
            ("host=a,b port=6 dbname=d user=u password=secret", "a:6,b:6/d"),
        ] {
            assert_eq!(place(url), expected);
        }
    }
}
