//! Settles dead workers, as a part of housekeeping.

use std::collections::HashMap;
use std::time::Duration;

use postgres::Client;

use super::clock::Moment;
use super::watch::{NO_WORKER, Watch};
use super::{Shared, warden};
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

    /// Looks for owners of tasks that are no workers, and lets go of notes that are of no
    /// more use.
    pub(super) fn look_for_unknown_owners(&mut self, client: &mut Client) -> Result<(), Error> {
        let fail = |error| Error::postgres("could not look for what is left over", error);
        client.execute(include_str!("../../sql/queries/forget_freed.sql"), &[]).map_err(fail)?;
        let rows = client
            .query(include_str!("../../sql/queries/unknown_owners.sql"), &[])
            .map_err(fail)?;
        self.unknown_owners = rows.iter().map(|row| row.get(0)).collect();
        Ok(())
    }

    /// Settles who was watched to be dead, each in a transaction of its own: one that
    /// cannot be settled holds up no other.
    pub(super) fn sweep(&mut self, client: &mut Client) -> Result<(), Error> {
        let deadline = Moment::now().after(self.shared.identity.ttl / 6);
        // By process: whether all that it left on this host is dead.
        let mut remains: HashMap<String, bool> = HashMap::new();
        for (worker, heartbeat) in self.watch.missing() {
            // Heartbeats come first; what is left is for the next look.
            if deadline.has_passed() {
                break;
            }
            let reason = match self.settle(client, worker, heartbeat, &mut remains, deadline)? {
                None => {
                    self.watch.forget(worker);
                    self.shared.back_end.tidy_up();
                    continue;
                }
                Some(reason) => reason,
            };
            if self.watch.could_not_settle(worker) {
                log::warn!(
                    "worker {worker} is missing and cannot be settled: {reason}; \
                     its tasks keep their resources meanwhile"
                );
            }
        }
        Ok(())
    }

    /// Settles a missing worker, or says why it cannot be settled.
    fn settle(
        &self,
        client: &mut Client,
        worker: i64,
        heartbeat: i64,
        remains: &mut HashMap<String, bool>,
        deadline: Moment,
    ) -> Result<Option<String>, Error> {
        if let Some(process) = self.dead_process(client, worker)? {
            let is_clean = *remains.entry(process).or_insert_with_key(|process| {
                let is_clean = warden::end_remains(process, deadline);
                warden::remove_directories(&self.shared.working_directory, process);
                is_clean
            });
            if !is_clean {
                return Ok(Some("what it left on this host cannot be killed".to_owned()));
            }
        }
        let settled = client.query_one(
            include_str!("../../sql/queries/settle_missing.sql"),
            &[&worker, &heartbeat],
        );
        match settled.map(|row| row.get::<_, Option<i32>>(0)) {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some(
                "its session cannot be ended, because its server process stands still or is \
                 another role's (grant pg_signal_backend), or somebody keeps a row locked"
                    .to_owned(),
            )),
            Err(error) => {
                let error = Error::postgres("could not settle it", error);
                if client.is_closed() {
                    return Err(error);
                }
                Ok(Some(error::chain(&error)))
            }
        }
    }

    /// The process of a missing worker, if that is another one and all its workers are
    /// missing: its warden may be dead, too. (One row may be left over while its process
    /// lives and works under others.)
    fn dead_process(&self, client: &mut Client, worker: i64) -> Result<Option<String>, Error> {
        let query = include_str!("../../sql/queries/worker_process.sql");
        let row = client
            .query_opt(query, &[&worker])
            .map_err(|error| Error::postgres("could not look for a missing process", error))?;
        let Some(row) = row else { return Ok(None) };
        let (process, workers): (String, Vec<i64>) = (row.get(0), row.get(1));
        let is_dead = workers.iter().all(|worker| self.watch.is_missing(*worker));
        Ok(Some(process).filter(|process| is_dead && *process != self.shared.identity.process))
    }
}
