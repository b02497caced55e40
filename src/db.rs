//! Connections to Postgres: how they are made and what a session is set to.

use std::time::Duration;

use postgres::{Client, NoTls};

use crate::error::Error;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
    parameters.connect(NoTls).map_err(|error| {
        Error::postgres(&format!("could not connect to Postgres at {}", place(url)), error)
    })
}

/// The URL's host, port and database, without user and password.
#[must_use]
pub fn place(url: &str) -> String {
    let Ok(parameters) = parameters(url, "") else { return "an unreadable URL".to_owned() };
    let host = match parameters.get_hosts().first() {
        Some(postgres::config::Host::Tcp(name)) => name.clone(),
        Some(postgres::config::Host::Unix(path)) => path.display().to_string(),
        None => "localhost".to_owned(),
    };
    let port = parameters.get_ports().first().copied().unwrap_or(5432);
    let database = parameters.get_dbname().or(parameters.get_user()).unwrap_or("postgres");
    format!("{host}:{port}/{database}")
}
