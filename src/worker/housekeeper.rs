//! The thread that keeps a process's rows fresh, finds what was missed, and
//! sweeps what others left. It has a connection of its own: nothing it does
//! ever waits behind a task.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::{Client, Statement};

use super::clock::Moment;
use super::inbox::Event;
use super::lease::{Activity, LEASE_SHARE, Lease};
use super::sweeper::Sweeper;
use super::{Shared, Sight};
use crate::db;
use crate::error::{self, Error};
use crate::task::TaskId;

/// How often a process looks for what it may have missed while tasks end by the
/// hundred: looks walk over the remains of all that has ended since the last poll but
/// one, if they cannot be cleaned away.
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(100);
const BUSY_TURNS: u64 = 100;
/// How soon a lost connection is tried again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(200);

struct Housekeeper<'a> {
    shared: &'a Shared,
    sight: Sight,
    mark: Option<i64>,
    mark_xid: Option<i64>,
    next_beat: Instant,
    next_poll: Instant,
    n_turns: u64,
    sweeper: Sweeper<'a>,
    /// Of the server, where it tells.
    timeline: Option<i64>,
    /// What workers of this process own and do not run, and since when that is seen.
    not_run: HashMap<(i64, i64), Instant>,
}

/// A connection with its statements prepared.
struct Session {
    client: Client,
    timeline: Option<i64>,
    poll: Statement,
    beat: Statement,
}

/// Keeps house until the workers have left. What waiting cannot mend is reported; the rows
/// are renewed as far as that goes, for what still runs.
pub(crate) fn keep_house(shared: &Arc<Shared>, report: &dyn Fn(Error)) {
    let lease = shared.identity.ttl.mul_f64(LEASE_SHARE);
    let mut housekeeper = Housekeeper {
        shared,
        sight: Sight::default(),
        mark: None,
        mark_xid: None,
        next_beat: Instant::now(),
        next_poll: Instant::now(),
        n_turns: 0,
        sweeper: Sweeper::new(shared),
        timeline: None,
        not_run: HashMap::new(),
    };
    let mut session: Option<Session> = None;
    // Of the failures since the last turn that was whole.
    let mut said = String::new();
    while !shared.has_ended() {
        let done = match &mut session {
            Some(session) => housekeeper.turn(session, lease),
            None => Session::open(shared).and_then(|opened| {
                housekeeper.begin_session(opened.timeline);
                housekeeper.turn(session.insert(opened), lease)
            }),
        };
        let failed = done.is_err();
        if !failed && !std::mem::take(&mut said).is_empty() {
            log::info!("housekeeper: connected again");
        }
        if let Err(error) = done {
            let reason = error::chain(&error);
            if error.is_unavailable() {
                if said.is_empty() {
                    log::warn!("housekeeper: {reason}; trying again");
                }
                said = reason;
            } else if reason != said {
                said = reason;
                report(error);
            }
            if session.take().is_some() {
                // If this connection is gone, the workers' may be, too.
                shared.tell_all(Event::Verify);
            }
        }
        // Their threads see it themselves when they look; the warden acts at
        // the same time, should nobody here be able to.
        for lease in shared.leases().iter().filter(|lease| lease.is_over()) {
            lease.end();
        }
        if failed {
            shared.pause(RECONNECT_INTERVAL);
        } else {
            let next = housekeeper.next_beat.min(housekeeper.next_poll);
            let pause = next.saturating_duration_since(Instant::now());
            // Who has just come need not wait for long.
            shared.pause_unless(pause, || shared.has_fresh_leases());
        }
    }
}

impl Session {
    fn open(shared: &Shared) -> Result<Session, Error> {
        let mut client = db::connect_for_long(&shared.url, "millhand housekeeper")?;
        let fail = |error| Error::postgres("could not set up housekeeping", error);
        if let Some(server) = db::server_in_use(&mut client, &shared.url) {
            log::info!("the server in use is {server}");
        }
        // A row that somebody keeps locked must not hold up the heartbeat: what
        // takes longer is given up and tried again.
        let patience = (shared.identity.ttl / 6).as_millis();
        client
            .batch_execute(&format!(
                "SET lock_timeout = {patience}; SET statement_timeout = {patience}"
            ))
            .map_err(fail)?;
        let timeline = include_str!("../../sql/queries/timeline.sql");
        Ok(Session {
            timeline: client.query_one(timeline, &[]).map_err(fail)?.get(0),
            poll: client.prepare(include_str!("../../sql/queries/poll.sql")).map_err(fail)?,
            beat: client.prepare(include_str!("../../sql/queries/beat.sql")).map_err(fail)?,
            client,
        })
    }
}

impl Housekeeper<'_> {
    fn turn(&mut self, session: &mut Session, lease: Duration) -> Result<(), Error> {
        let now = Instant::now();
        let beats = now >= self.next_beat || self.shared.has_fresh_leases();
        if beats {
            // The lease counts from before the statement: others see what it does later.
            self.beat(session, Moment::now().after(lease))?;
            self.next_beat = now + self.shared.identity.ttl / 3;
        }
        if beats && !self.shared.auxiliary {
            self.sweeper.look_for_unknown_owners(&mut session.client)?;
        }
        if beats || now >= self.next_poll {
            self.poll(session)?;
            let n_turns = self.shared.back_end.n_turns();
            let is_busy = n_turns - std::mem::replace(&mut self.n_turns, n_turns) > BUSY_TURNS;
            let interval = self.shared.poll_interval;
            let interval = if is_busy { interval.min(BUSY_POLL_INTERVAL) } else { interval };
            self.next_poll = Instant::now() + interval;
            if !self.shared.auxiliary {
                self.sweeper.sweep(&mut session.client)?;
            }
        }
        if beats {
            self.shared.back_end.tidy_up();
        }
        Ok(())
    }

    /// It may be another server, restored or older: nothing that was learned of
    /// positions holds. And a heartbeat comes before the first poll, to end the
    /// leases of workers whose rows are not there: what is learned here of
    /// positions is not for them.
    fn begin_session(&mut self, timeline: Option<i64>) {
        if timeline.is_none() || timeline != self.timeline {
            self.sweeper.forget();
        }
        self.timeline = timeline;
        (self.sight, self.mark, self.mark_xid) = (Sight::default(), None, None);
        self.shared.set_sight(Sight::default());
        (self.next_beat, self.next_poll) = (Instant::now(), Instant::now());
    }

    fn beat(&mut self, session: &mut Session, lease_end: Moment) -> Result<(), Error> {
        // Read before the statement: a worker that joins meanwhile is no loss.
        let leases = self.shared.leases();
        let workers: Vec<i64> = leases.iter().map(|lease| lease.worker()).collect();
        let rows = session
            .client
            .query(&session.beat, &[&workers])
            .map_err(|error| Error::postgres("could not renew the workers' rows", error))?;
        let renewed: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
        // The warden first: it must know of a lease before anybody acts on it.
        self.shared.warden.renew(lease_end);
        for lease in leases {
            if renewed.contains(&lease.worker()) {
                lease.renew(lease_end);
            } else {
                log::warn!("a worker of this process was taken for missing; it starts anew");
                lease.end();
            }
        }
        Ok(())
    }

    fn poll(&mut self, session: &mut Session) -> Result<(), Error> {
        // Read before the statement, as in `beat`.
        let leases: Vec<(Arc<Lease>, Activity)> = self
            .shared
            .leases()
            .into_iter()
            .map(|lease| (lease.clone(), lease.activity()))
            .collect();
        let began = Moment::now();
        let row = session
            .client
            .query_one(
                &session.poll,
                &[
                    &self.shared.identity.process,
                    &self.sight.low,
                    &self.sight.stragglers,
                    &self.mark,
                    &self.mark_xid,
                ],
            )
            .map_err(|error| Error::postgres("could not look for what was missed", error))?;
        for id in row.get::<_, Vec<i64>>("canceling") {
            self.shared.tell_all(Event::Cancel(TaskId(id)));
        }
        let lost: Vec<i64> = row.get("lost");
        let workers: Vec<i64> = row.get("workers");
        for (lease, _) in &leases {
            if lost.contains(&lease.worker()) {
                lease.end();
            } else if !workers.contains(&lease.worker()) && !lease.is_over() {
                log::warn!("a worker of this process was taken for missing; it starts anew");
                lease.end();
            }
        }
        let owned: Vec<i64> = row.get("owned");
        let owned_by: Vec<i64> = row.get("owned_by");
        self.compare(&leases, owned_by.into_iter().zip(owned).collect());
        if !self.shared.auxiliary {
            let heartbeats: Vec<i64> = row.get("heartbeats");
            let ttls: Vec<f64> = row.get("ttls");
            let ttls = ttls
                .into_iter()
                .map(|ttl| Duration::try_from_secs_f64(ttl).unwrap_or(Duration::MAX));
            let known = workers.into_iter().zip(heartbeats).zip(ttls);
            let known = known.map(|((worker, heartbeat), ttl)| (worker, heartbeat, ttl));
            self.sweeper.look((began, Moment::now()), known);
        }
        self.sight = Sight { low: row.get("low"), stragglers: row.get("stragglers") };
        self.mark = row.get("mark");
        self.mark_xid = row.get("mark_xid");
        self.shared.set_sight(self.sight.clone());
        if row.get("waiting") {
            self.shared.back_end.ring();
        }
        Ok(())
    }

    /// Compares what the table says that the workers of this process own with what they
    /// run. A server that has lost commits, in a failover to a standby that was behind,
    /// may not know of a start or an end. Whose worker runs what it does not own, or owns
    /// what it does not run, gives up its claim: it stops the one, and the other is ended
    /// as failed (settle_worker), or goes back to its place if it never began.
    fn compare(&mut self, leases: &[(Arc<Lease>, Activity)], owned: HashSet<(i64, i64)>) {
        let mut not_run = HashMap::new();
        let patience = self.shared.identity.ttl / 6;
        for (lease, before) in leases {
            let worker = lease.worker();
            // What began or ended meanwhile may be seen either way.
            if lease.is_over() || lease.activity() != *before {
                continue;
            }
            match before {
                Activity::Runs(task) if !owned.contains(&(worker, task.0)) => {
                    log::warn!(
                        "task {task} runs here and is not this worker's any more; ending it"
                    );
                    lease.end();
                }
                // It may have been given a task just now, and begins that in a moment; if
                // that takes longer, the task goes back to its place.
                Activity::Idle => {
                    let its = owned.iter().filter(|(owner, _)| *owner == worker);
                    for pair in its.copied() {
                        let since = self.not_run.get(&pair).copied().unwrap_or_else(Instant::now);
                        if since.elapsed() >= patience {
                            log::warn!(
                                "task {} is this worker's and does not run; giving it up",
                                pair.1
                            );
                            lease.end();
                        }
                        not_run.insert(pair, since);
                    }
                }
                Activity::Runs(_) | Activity::Ends => {}
            }
        }
        self.not_run = not_run;
    }
}
