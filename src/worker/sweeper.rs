//! Settles dead workers, as a part of housekeeping.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::time::Duration;

use postgres::Client;

use super::clock::Moment;
use super::reports::store_remains;
use super::watch::{NO_WORKER, Watch};
use super::{Shared, mark, tail, warden};
use crate::error::{self, Error};

pub(super) struct Sweeper<'a> {
    shared: &'a Shared,
    watch: Watch,
    /// Owners of tasks that the last look found to be no workers.
    unknown_owners: Vec<i64>,
}

impl<'a> Sweeper<'a> {
    pub(super) fn new(shared: &'a Shared) -> Sweeper<'a> {
        Sweeper { shared, watch: Watch::default(), unknown_owners: Vec::new() }
    }

    /// A look that began and ended then showed these workers, their heartbeats and ttls.
    pub(super) fn look(
        &mut self,
        span: (Moment, Moment),
        workers: impl Iterator<Item = (i64, i64, Duration)>,
    ) {
        let ttl = self.shared.identity.ttl;
        let unknown = self.unknown_owners.iter().map(|owner| (*owner, NO_WORKER, ttl));
        self.watch.look(span, workers.chain(unknown));
    }

    /// Whether this worker was watched to be dead.
    pub(super) fn is_missing(&self, worker: i64) -> bool {
        self.watch.is_missing(worker)
    }

    /// Looks for owners of tasks that are no workers, and lets go of notes that are of no
    /// more use.
    pub(super) fn look_for_unknown_owners(&mut self, client: &mut Client) -> Result<(), Error> {
        let fail = |error| Error::postgres("could not look for what is left over", error);
        let rows = client
            .query(include_str!("../../sql/queries/unknown_owners.sql"), &[])
            .map_err(fail)?;
        self.unknown_owners = rows.iter().map(|row| row.get(0)).collect();
        Ok(())
    }

    /// What was seen was on another server, which may have known of more heartbeats.
    pub(super) fn forget(&mut self) {
        (self.watch, self.unknown_owners) = (Watch::default(), Vec::new());
    }

    /// Settles who was watched to be dead, each in a transaction of its own: one that
    /// cannot be settled holds up no other.
    pub(super) fn sweep(&mut self, client: &mut Client) -> Result<(), Error> {
        let deadline = Moment::now().after(self.shared.identity.ttl / 6);
        let mut remains = HashMap::new();
        let mut has_settled = false;
        for (worker, heartbeat) in self.watch.missing() {
            // Heartbeats come first; what is left is for the next look.
            if deadline.has_passed() {
                break;
            }
            match self.settle(client, (worker, heartbeat), &mut remains, deadline)? {
                Fate::Settled => {
                    self.watch.forget(worker);
                    has_settled = true;
                }
                Fate::LeftToOthers => {}
                Fate::HeldUp(reason) => {
                    if self.watch.could_not_settle(worker) {
                        log::warn!(
                            "worker {worker} is missing and cannot be settled: {reason}; \
                             its tasks keep their resources meanwhile"
                        );
                    }
                }
            }
        }
        if has_settled {
            self.shared.back_end.tidy_up();
        }
        for (process, remains) in remains {
            self.clear_away(client, &process, remains)?;
        }
        Ok(())
    }

    /// Settles a missing worker, after what its process has left on this host.
    fn settle(
        &self,
        client: &mut Client,
        (worker, heartbeat): (i64, i64),
        remains: &mut HashMap<String, Remains>,
        deadline: Moment,
    ) -> Result<Fate, Error> {
        let fail = |error| Error::postgres("could not look for a missing process", error);
        let query = include_str!("../../sql/queries/worker_process.sql");
        if let Some(row) = client.query_opt(query, &[&worker]).map_err(fail)? {
            let (process, host): (String, String) = (row.get(0), row.get(1));
            let (its, neighbours): (Vec<i64>, Vec<i64>) = (row.get(2), row.get(3));
            let identity = &self.shared.identity;
            // Who is on its host can end what it left, should its warden be dead, too.
            if host != identity.hostname
                && neighbours.iter().any(|id| !self.watch.is_missing(*id))
                && !self.watch.is_long_missing(worker)
            {
                return Ok(Fate::LeftToOthers);
            }
            // One row may be left over while its process lives and works under others.
            let is_dead = its.iter().all(|id| self.watch.is_missing(*id));
            if is_dead && process != identity.process {
                let seen = self.watch.last_seen(worker);
                let folder = self.shared.directories.folder();
                let remains = match remains.entry(process) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let unread = tail::unread(mark::groups(new.key()));
                        let is_dead = warden::end_remains(new.key(), seen, deadline);
                        if is_dead {
                            for log in tail::logs_of(new.key(), folder, unread) {
                                match store_remains(client, &log) {
                                    Ok(true) => {}
                                    Ok(false) => log::warn!(
                                        "the log of task {} could not be stored: its row is locked",
                                        log.id
                                    ),
                                    Err(error) => log::warn!("{}", error::chain(&error)),
                                }
                            }
                        }
                        let directories = warden::remains_of(new.key(), folder);
                        new.insert(Remains { is_dead, directories })
                    }
                };
                if !remains.is_dead {
                    let reason = "what it left on this host cannot be killed";
                    return Ok(Fate::HeldUp(reason.to_owned()));
                }
            }
        }
        let settle = include_str!("../../sql/queries/settle_missing.sql");
        match client.query_one(settle, &[&worker, &heartbeat]).map(|row| row.get(0)) {
            Ok(Some::<i32>(_)) => Ok(Fate::Settled),
            Ok(None) => Ok(Fate::HeldUp(
                "its session cannot be ended, because its server process stands still or is \
                 another role's (grant pg_signal_backend), or somebody keeps a row locked"
                    .to_owned(),
            )),
            Err(error) => {
                let error = Error::postgres("could not settle it", error);
                if client.is_closed() {
                    return Err(error);
                }
                Ok(Fate::HeldUp(error::chain(&error)))
            }
        }
    }

    /// Has the working directories of a dead process removed that were there before it was
    /// seen to have no workers: what it makes later, should it come back, is not among them.
    fn clear_away(
        &self,
        client: &mut Client,
        process: &str,
        remains: Remains,
    ) -> Result<(), Error> {
        let row = client
            .query_one(include_str!("../../sql/queries/has_workers.sql"), &[&process])
            .map_err(|error| Error::postgres("could not look for a missing process", error))?;
        if !row.get::<_, bool>(0) {
            self.shared.caretaker.remove(remains.directories);
        }
        Ok(())
    }
}

/// What came of an attempt to settle a missing worker.
enum Fate {
    /// It is, or it was alive after all.
    Settled,
    /// Those on its host come first.
    LeftToOthers,
    HeldUp(String),
}

/// What a dead process has left on this host.
struct Remains {
    is_dead: bool,
    directories: Vec<PathBuf>,
}
