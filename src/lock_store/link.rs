//! A thread's connection to the lock store, and what it can ask.

use std::sync::{Arc, LazyLock};

use redis::{Connection, ConnectionLike, FromRedisValue, RedisError, Script, ScriptInvocation};

use super::{Lock, LockStore, Needs, PassedOn, info, is_of};
use crate::error::Error;
use crate::task::TaskId;

static EXCHANGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("exchange.lua")));
static REBUILD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("rebuild.lua")));

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
        call.arg(usize::from(self.store.hears()));
        let of_released = released.iter().map(|lock| lock.needs.names(lock.task));
        let of_wanted = wanted.iter().map(|(task, needs)| needs.names(*task));
        let names: Vec<String> = of_released.chain(of_wanted).flatten().collect();
        call.arg(names.len()).arg(names);
        call.arg(released.len());
        for lock in released {
            lock.add_to(&mut call);
        }
        call.arg(owners.len()).arg(owners);
        for (task, needs) in wanted {
            needs.add_wish(*task, passed_on, &mut call);
        }
        let got: Option<Vec<(i64, String)>> = self.call("could not exchange locks in", &call)?;
        let Some(got) = got else { return Ok(None) };
        self.store.works(!got.is_empty());
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

    /// Learns the epoch in force. If that is not one of this server, it is stale: it is
    /// returned, to be given to [`Link::rebuild`].
    pub(crate) fn learn_epoch(&mut self) -> Result<Option<String>, Error> {
        let store = self.store.clone();
        let connection = self.open()?;
        let found = info(connection, "server", "run_id").and_then(|server| {
            let found: Option<String> = redis::cmd("GET").arg(&store.keys[0]).query(connection)?;
            Ok((server.unwrap_or_default(), found))
        });
        match found {
            Ok((server, Some(epoch))) if is_of(&epoch, &server) => {
                store.set_epoch(Some(epoch));
                Ok(None)
            }
            Ok((_, stale)) => Ok(Some(stale.unwrap_or_default())),
            Err(error) => Err(self.lose("could not ask", error)),
        }
    }

    /// Begins a new epoch with these locks and no others, unless somebody else was
    /// faster.
    pub(crate) fn rebuild(
        &mut self,
        stale: &str,
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
        call.arg(stale).arg(format!("{server}:{token}")).arg(&store.wakeup_channel);
        for lock in locks {
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
        if self.connection.as_ref().is_none_or(|connection| !connection.is_open()) {
            self.connection = Some(self.store.connect()?);
        }
        Ok(self.connection.as_mut().expect("it was just made"))
    }

    /// After an error a late answer might be taken for that to the next question.
    fn lose(&mut self, doing: &str, error: RedisError) -> Error {
        self.connection = None;
        self.store.failed(&error);
        self.store.error(doing, error)
    }
}
