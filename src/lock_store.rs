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
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::Client;
use redis::{Connection, ErrorKind, RedisError};

use crate::config::Config;
use crate::error::{Error, passing};
pub(crate) use link::Link;
pub(crate) use lock::{Lock, Needs, PassedOn};

/// How long a connection attempt, or an answer, may take. Both are a matter of
/// microseconds; a server that needs longer is as good as away, and what waits
/// for it should go on without.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How soon a server that failed is asked again; at most sixteen times as late.
const FIRST_RETRY: Duration = Duration::from_millis(250);

/// Where the locks are: a Redis server, and the names of the keys there.
pub(crate) struct LockStore {
    client: redis::Client,
    /// The epoch, the locks, the registry, the vain tries.
    keys: [String; 4],
    wakeup_channel: String,
    cancel_channel: String,
    health: Mutex<Health>,
    /// Whether this process listens to the channels.
    hears: AtomicBool,
    epoch: Mutex<Option<String>>,
}

/// What is known of the server.
#[derive(Debug, Clone, Copy)]
struct Health {
    /// Whether it is worth asking.
    is_up: bool,
    /// Since it was last seen to work.
    n_failures: u32,
    /// Whether it answered and yet refused something, as when its memory is full: then
    /// only a lock that was taken shows that it works.
    is_refusing: bool,
    /// Whether it was said that nothing is started.
    is_told: bool,
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
            health: Mutex::new(Health {
                is_up: true,
                n_failures: 0,
                is_refusing: false,
                is_told: false,
            }),
            hears: AtomicBool::new(false),
            epoch: Mutex::new(None),
        })
    }

    /// Host, port and database, without user and password.
    pub(crate) fn place(&self) -> String {
        let info = self.client.get_connection_info();
        format!("{}/{}", info.addr(), info.redis_settings().db())
    }

    /// Whether the server is worth asking for locks.
    pub(crate) fn is_up(&self) -> bool {
        self.health().is_up
    }

    /// It did not do what it was asked for.
    fn failed(&self, error: &RedisError) {
        let mut health = self.health();
        health.is_up = false;
        health.n_failures += 1;
        health.is_refusing |= !error.is_io_error();
    }

    /// It answers again, whether or not it will do what it is asked for.
    pub(crate) fn answers(&self) {
        self.health().is_up = true;
    }

    /// It has exchanged locks, and given some, or there was none to be given.
    fn works(&self, has_given: bool) {
        let mut health = self.health();
        if health.is_refusing && !has_given {
            return;
        }
        health.is_refusing = false;
        if std::mem::take(&mut health.is_told) {
            log::info!("Redis at {} is back", self.place());
        }
        health.n_failures = 0;
    }

    /// How long after a failure it is asked again: longer if it answers and yet fails,
    /// as when its memory is full.
    pub(crate) fn retry_pause(&self) -> Duration {
        FIRST_RETRY * (1 << self.health().n_failures.saturating_sub(1).min(4))
    }

    /// Whether it has to be said that nothing is started until it is back: once.
    pub(crate) fn tell(&self) -> bool {
        let mut health = self.health();
        !health.is_up && !std::mem::replace(&mut health.is_told, true)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hears(&self) -> bool {
        self.hears.load(Ordering::Acquire)
    }

    pub(crate) fn set_hears(&self, hears: bool) {
        self.hears.store(hears, Ordering::Release);
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
        open().map_err(|error| {
            self.failed(&error);
            self.error("could not connect to", error)
        })
    }

    fn error(&self, doing: &str, error: RedisError) -> Error {
        let doing = format!("{doing} Redis at {}", self.place());
        if is_login(&error) {
            let what = "it refuses the login; check the user and the password in redis_url";
            return Error::Unavailable { doing, source: what.into() };
        }
        if !passing::of_redis(error.code()) {
            return Error::Config(format!("{doing}: {}; grant it to this user", said(&error)));
        }
        Error::Unavailable { doing, source: said(&error).into() }
    }
}

/// Whether the server wants another user or password.
fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
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
        Err(error) if error.is_io_error() || is_login(&error) => return Err(error),
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
