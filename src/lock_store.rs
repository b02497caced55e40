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

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use postgres::Client;
use redis::{Connection, ErrorKind, FromRedisValue, RedisError, Script, ScriptInvocation};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::Error;
use crate::task::TaskId;

/// How long a connection attempt, or an answer, may take. Both are a matter of
/// microseconds; a server that needs longer is as good as away, and what waits
/// for it should go on without.
const PATIENCE: Duration = Duration::from_secs(2);

static EXCHANGE: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lock_store/exchange.lua")));
static REBUILD: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lock_store/rebuild.lua")));

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

/// The resources of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Needs {
    pub(crate) exclusive: Vec<String>,
    pub(crate) shared: Vec<String>,
}

/// The locks of one task, held by one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lock {
    /// A UUID, drawn at each start of a worker thread.
    pub(crate) owner: String,
    pub(crate) task: TaskId,
    pub(crate) needs: Arc<Needs>,
}

/// The locks of tasks that end in one transaction: they pass on to those that start
/// in it.
#[derive(Default)]
pub(crate) struct PassedOn {
    exclusive: HashMap<String, String>,
    shared: HashMap<String, usize>,
}

impl PassedOn {
    pub(crate) fn add(&mut self, lock: &Lock) {
        for name in &lock.needs.exclusive {
            self.exclusive.insert(name.clone(), lock.task.to_string());
        }
        for name in &lock.needs.shared {
            *self.shared.entry(name.clone()).or_default() += 1;
        }
    }

    /// The value of an x lock under which it does not count; nothing if it counts.
    fn of_exclusive(&self, name: &str) -> &str {
        self.exclusive.get(name).map_or("", String::as_str)
    }

    /// The same of an s lock.
    fn of_shared(&self, name: &str) -> String {
        self.shared.get(name).map_or(String::new(), usize::to_string)
    }
}

impl Needs {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("lists of text are valid JSON")
    }
}

impl Lock {
    /// As it stands in the registry.
    fn entry(&self) -> String {
        format!("{} {} {}", self.owner, self.task, self.needs.to_json())
    }

    fn from_entry(entry: &str) -> Option<Lock> {
        let mut parts = entry.splitn(3, ' ');
        Some(Lock {
            owner: parts.next()?.to_owned(),
            task: parts.next()?.parse().ok()?,
            needs: Arc::new(serde_json::from_str(parts.next()?).ok()?),
        })
    }

    fn add_to(&self, call: &mut ScriptInvocation<'_>) {
        call.arg(self.entry()).arg(self.task.0);
        for (kind, names) in [('x', &self.needs.exclusive), ('s', &self.needs.shared)] {
            call.arg(names.len());
            for name in names {
                call.arg(format!("{kind}{name}"));
            }
        }
    }
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

/// One thread's connection, made when it is needed and again when it was lost.
pub(crate) struct Link {
    store: Arc<LockStore>,
    connection: Option<Connection>,
}

impl Link {
    pub(crate) fn new(store: Arc<LockStore>) -> Link {
        Link { store, connection: None }
    }

    /// Refuses a server that would forget locks by itself.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        let doing = "could not ask";
        let store = self.store.clone();
        let policy = info(self.open()?, "memory", "maxmemory_policy")
            .map_err(|error| store.error(doing, error))?;
        match policy.as_deref() {
            Some("noeviction") => Ok(()),
            None => {
                log::warn!(
                    "Redis at {} does not tell its maxmemory-policy, which must be noeviction",
                    store.place()
                );
                Ok(())
            }
            Some(policy) => Err(Error::Config(format!(
                "Redis at {} has maxmemory-policy {policy}, which evicts keys, and with them \
                 locks; set maxmemory-policy to noeviction, or name another server in redis_url",
                store.place()
            ))),
        }
    }

    /// Lets go of the locks of `released`, and then takes those of the tasks `wanted`,
    /// in order, one task for each owner, and returns those that it got; none if this
    /// is not the epoch that the process knows.
    ///
    /// Wakes whoever tried one of the locks that are let go. In any case wakes all but
    /// the process `told_by`, if that is given.
    pub(crate) fn exchange(
        &mut self,
        released: &[Lock],
        told_by: Option<&str>,
        owners: &[&str],
        wanted: &[(TaskId, Arc<Needs>)],
        passed_on: &PassedOn,
    ) -> Result<Option<Vec<Lock>>, Error> {
        let mut call = EXCHANGE.prepare_invoke();
        self.add_keys(&mut call);
        call.arg(self.store.epoch().unwrap_or_default());
        call.arg(&self.store.wakeup_channel).arg(told_by.unwrap_or_default());
        call.arg(released.len());
        for lock in released {
            lock.add_to(&mut call);
        }
        call.arg(owners.len()).arg(owners);
        for (task, needs) in wanted {
            call.arg(task.0).arg(needs.to_json());
            call.arg(needs.exclusive.len()).arg(needs.shared.len());
            for name in &needs.exclusive {
                call.arg(format!("x{name}")).arg(format!("s{name}"));
                call.arg(passed_on.of_exclusive(name)).arg(passed_on.of_shared(name));
            }
            for name in &needs.shared {
                call.arg(format!("x{name}")).arg(passed_on.of_exclusive(name));
                call.arg(format!("s{name}"));
            }
        }
        let got: Option<Vec<(i64, String)>> = self.call("could not exchange locks in", &call)?;
        let Some(got) = got else { return Ok(None) };
        let lock_of = |(task, owner): (i64, String)| {
            let (task, needs) = wanted.iter().find(|(id, _)| id.0 == task)?;
            Some(Lock { owner, task: *task, needs: needs.clone() })
        };
        Ok(Some(got.into_iter().filter_map(lock_of).collect()))
    }

    /// Lets go of all that this owner holds.
    pub(crate) fn release_all_of(&mut self, owner: &str) -> Result<(), Error> {
        let mut range = redis::cmd("ZRANGE");
        // Between "owner " and "owner!", the next character after the blank.
        range.arg(&self.store.keys[2]).arg(format!("[{owner} ")).arg(format!("({owner}!"));
        range.arg("BYLEX");
        let entries: Vec<String> =
            self.attempt("could not list the locks in", |connection| range.query(connection))?;
        let locks: Vec<Lock> = entries.iter().filter_map(|entry| Lock::from_entry(entry)).collect();
        self.release(&locks, None)
    }

    /// Lets go of these locks.
    pub(crate) fn release(&mut self, locks: &[Lock], told_by: Option<&str>) -> Result<(), Error> {
        if !locks.is_empty() || told_by.is_some() {
            self.exchange(locks, told_by, &[], &[], &PassedOn::default())?;
        }
        Ok(())
    }

    /// The epoch in force, if it is one of this server; else what was found, to be
    /// given to [`Link::rebuild`].
    pub(crate) fn learn(&mut self) -> Result<Result<(), String>, Error> {
        let store = self.store.clone();
        let connection = self.open()?;
        let found = info(connection, "server", "run_id").and_then(|server| {
            let found: Option<String> = redis::cmd("GET").arg(&store.keys[0]).query(connection)?;
            Ok((server.unwrap_or_default(), found))
        });
        match found {
            Ok((server, Some(epoch))) if is_of(&epoch, &server) => {
                store.set_epoch(Some(epoch));
                Ok(Ok(()))
            }
            Ok((_, found)) => Ok(Err(found.unwrap_or_default())),
            Err(error) => Err(self.lose("could not ask", error)),
        }
    }

    /// Begins a new epoch with these locks and no others, unless somebody else was
    /// faster.
    pub(crate) fn rebuild(
        &mut self,
        found: &str,
        token: &str,
        locks: &[Lock],
    ) -> Result<(), Error> {
        let store = self.store.clone();
        let server = match info(self.open()?, "server", "run_id") {
            Ok(server) => server.unwrap_or_default(),
            Err(error) => return Err(self.lose("could not ask", error)),
        };
        let mut call = REBUILD.prepare_invoke();
        self.add_keys(&mut call);
        call.arg(found).arg(format!("{server}:{token}")).arg(&store.wakeup_channel);
        for lock in locks {
            call.arg(&lock.owner);
            lock.add_to(&mut call);
        }
        let epoch: String = self.call("could not rebuild the locks in", &call)?;
        store.set_epoch(Some(epoch));
        Ok(())
    }

    /// Every lock that is held, by whomever.
    pub(crate) fn registry(&mut self) -> Result<Vec<Lock>, Error> {
        let mut range = redis::cmd("ZRANGE");
        range.arg(&self.store.keys[2]).arg(0).arg(-1);
        let entries: Vec<String> =
            self.attempt("could not list the locks in", |connection| range.query(connection))?;
        Ok(entries.iter().filter_map(|entry| Lock::from_entry(entry)).collect())
    }

    /// Tells idle workers that there may be work.
    pub(crate) fn wake(&mut self) -> Result<(), Error> {
        self.publish(|store| &store.wakeup_channel, "")
    }

    /// Tells workers that this task is to end.
    pub(crate) fn cancel(&mut self, id: TaskId) -> Result<(), Error> {
        self.publish(|store| &store.cancel_channel, &id.to_string())
    }

    fn publish(&mut self, channel: fn(&LockStore) -> &str, text: &str) -> Result<(), Error> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel(&self.store)).arg(text);
        self.attempt("could not send a message through", |connection| {
            publish.query::<i64>(connection)
        })?;
        Ok(())
    }

    fn add_keys(&self, call: &mut ScriptInvocation<'_>) {
        for key in &self.store.keys {
            call.key(key);
        }
    }

    fn call<T: FromRedisValue>(
        &mut self,
        doing: &str,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, Error> {
        self.attempt(doing, |connection| call.invoke(connection))
    }

    /// A connection may have been cut while nobody used it, so one more attempt is
    /// made on a new one. Everything that is sent may be sent twice.
    fn attempt<T>(
        &mut self,
        doing: &str,
        mut send: impl FnMut(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, Error> {
        let was_open = self.connection.is_some();
        match send(self.open()?) {
            Err(error) if was_open && error.is_io_error() && !error.is_timeout() => {
                self.connection = None;
                let answer = send(self.open()?);
                answer.map_err(|error| self.lose(doing, error))
            }
            answer => answer.map_err(|error| self.lose(doing, error)),
        }
    }

    fn open(&mut self) -> Result<&mut Connection, Error> {
        if self.connection.as_ref().is_none_or(|connection| !is_open(connection)) {
            self.connection = Some(self.store.connect()?);
        }
        Ok(self.connection.as_mut().expect("it was just made"))
    }

    /// After an error a late answer might be taken for that to the next question.
    fn lose(&mut self, doing: &str, error: RedisError) -> Error {
        self.connection = None;
        self.store.error(doing, error)
    }
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

fn is_open(connection: &Connection) -> bool {
    redis::ConnectionLike::is_open(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_registry_can_be_read_again() {
        let names = |text: &str| text.split(' ').map(str::to_owned).collect();
        let needs =
            Needs { exclusive: vec!["a b".to_owned(), "\"".to_owned()], shared: names("c d") };
        let lock = Lock { owner: "o".to_owned(), task: TaskId(7), needs: Arc::new(needs) };
        assert_eq!(Lock::from_entry(&lock.entry()), Some(lock));
        assert_eq!(Lock::from_entry("o 7"), None);
    }

    #[test]
    fn what_ends_does_not_count_against_what_starts_with_it() {
        let needs = |exclusive: &[&str], shared: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Arc::new(Needs { exclusive: owned(exclusive), shared: owned(shared) })
        };
        let lock = |id, needs| Lock { owner: String::new(), task: TaskId(id), needs };
        let mut passed_on = PassedOn::default();
        passed_on.add(&lock(7, needs(&["a"], &["b"])));
        passed_on.add(&lock(8, needs(&[], &["b"])));
        assert_eq!((passed_on.of_exclusive("a"), passed_on.of_exclusive("b")), ("7", ""));
        assert_eq!(
            (passed_on.of_shared("a"), passed_on.of_shared("b")),
            (String::new(), "2".to_owned())
        );
    }
}
