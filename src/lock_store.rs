//! The lock store of worker type `redis`: scripts that take and let go of locks,
//! and messages that wake workers.
//!
//! What is in it is speed and liveness, never truth: all of it may be lost at any
//! moment, and is then built anew from the table. So it is never asked whether a
//! task may start, only whether somebody else is at it.
//!
//! | key, under the prefix | holds |
//! |---|---|
//! | `epoch` | this incarnation of the store; the only key that stays at rest |
//! | `locks` | who has which task and which resource |
//! | `registry` | the same by owner, so that what a dead one left is found at once |
//! | `tried` | the locks that somebody tried in vain, who is woken when they are let go |
//! | `wakeup`, `cancel` | channels, not keys |
//!
//! The prefix is a hash tag, so that all keys of a cluster are in one place.

mod link;
mod lock;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postgres::Client;
use redis::{Connection, ErrorKind, RedisError};

use crate::config::Config;
use crate::error::Error;
pub(crate) use link::Link;
pub(crate) use lock::{Lock, Needs, PassedOn};

/// How long a connection attempt, or an answer, may take. Both are a matter of
/// microseconds; a server that needs longer is as good as away, and what waits
/// for it should go on without.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Where the locks are: a Redis server, and the names of the keys there.
pub(crate) struct LockStore {
    client: redis::Client,
    /// The epoch, the locks, the registry, the vain tries.
    keys: [String; 4],
    wakeup_channel: String,
    cancel_channel: String,
    /// Whether the last that was heard of the server was an answer.
    is_up: AtomicBool,
    epoch: Mutex<Option<String>>,
}

impl LockStore {
    /// The one that the settings name. Connects to nothing.
    pub(crate) fn new(config: &Config) -> Result<LockStore, Error> {
        let url = config.redis_url()?;
        // A second call finds one installed: that will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // The parser's message may quote the URL: say what is wrong, not what it is.
        let client = redis::Client::open(url).map_err(|_| {
            Error::Config(
                "the Redis URL cannot be read; expected redis://USER:PASSWORD@HOST:PORT/DATABASE, \
                 or rediss:// for TLS"
                    .to_owned(),
            )
        })?;
        let name = |key: &str| format!("{{{}}}:{key}", config.redis_prefix);
        Ok(LockStore {
            client,
            keys: ["epoch", "locks", "registry", "tried"].map(name),
            wakeup_channel: name("wakeup"),
            cancel_channel: name("cancel"),
            is_up: AtomicBool::new(true),
            epoch: Mutex::new(None),
        })
    }

    /// Host, port and database, without user and password.
    pub(crate) fn place(&self) -> String {
        let info = self.client.get_connection_info();
        format!("{}/{}", info.addr(), info.redis_settings().db())
    }

    /// Whether the server answered when it was asked last.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Acquire)
    }

    pub(crate) fn set_up(&self, is_up: bool) {
        self.is_up.store(is_up, Ordering::Release);
    }

    pub(crate) fn is_cancel_channel(&self, channel: &str) -> bool {
        channel == self.cancel_channel
    }

    pub(crate) fn channels(&self) -> [&str; 2] {
        [&self.wakeup_channel, &self.cancel_channel]
    }

    /// The epoch that this process knows.
    fn epoch(&self) -> Option<String> {
        self.epoch.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_epoch(&self, epoch: Option<String>) {
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = epoch;
    }

    /// A connection that fails what takes too long.
    pub(crate) fn connect(&self) -> Result<Connection, Error> {
        let open = || {
            let mut connection = self.client.get_connection_with_timeout(PATIENCE)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            connection.set_write_timeout(Some(PATIENCE))?;
            // Locks that a server has read from its disk, or copied from another
            // one, are those of some earlier moment.
            let server = info(&mut connection, "server", "run_id")?.unwrap_or_default();
            if self.epoch().is_some_and(|epoch| !is_of(&epoch, &server)) {
                self.set_epoch(None);
            }
            Ok(connection)
        };
        open().map_err(|error| self.error("could not connect to", error))
    }

    fn error(&self, doing: &str, error: RedisError) -> Error {
        let doing = format!("{doing} Redis at {}", self.place());
        let is_login = error.kind() == ErrorKind::AuthenticationFailed;
        if is_login || matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) {
            return Error::Config(format!(
                "{doing}: it refuses the login; check the user and the password in redis_url"
            ));
        }
        if error.code() == Some("NOPERM") {
            return Error::Config(format!("{doing}: {}; grant it to this user", said(&error)));
        }
        Error::Unavailable { doing, source: said(&error).into() }
    }
}

/// What the server or the system said, without the client's own words.
fn said(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

/// A field of the server's information; none if it does not tell, as managed
/// servers and restricted users do not.
fn info(
    connection: &mut Connection,
    section: &str,
    field: &str,
) -> Result<Option<String>, RedisError> {
    let answer: Result<String, RedisError> = redis::cmd("INFO").arg(section).query(connection);
    let text = match answer {
        Ok(text) => text,
        Err(error) if error.is_io_error() => return Err(error),
        Err(_) => return Ok(None),
    };
    let value = |line: &str| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned());
    Ok(text.lines().find_map(value))
}

/// An epoch begins with the server's own mark, which is another one after each
/// start and on each replica.
fn is_of(epoch: &str, server: &str) -> bool {
    epoch.split(':').next() == Some(server)
}

/// Those of these locks whose owners are no workers of this database: nobody else
/// will let go of them. They must have been listed before: an owner is a worker
/// before it has any lock.
pub(crate) fn abandoned(client: &mut Client, locks: Vec<Lock>) -> Result<Vec<Lock>, Error> {
    if locks.is_empty() {
        return Ok(locks);
    }
    let owners: Vec<&str> = locks.iter().map(|lock| lock.owner.as_str()).collect();
    let rows = client
        .query(include_str!("../sql/queries/lock_owners.sql"), &[&owners])
        .map_err(|error| Error::postgres("could not look for owners of locks", error))?;
    let known: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(locks.into_iter().filter(|lock| !known.contains(&lock.owner)).collect())
}
