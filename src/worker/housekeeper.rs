//! The thread that keeps a process's rows fresh, finds what was missed, and
//! sweeps what others left. It has a connection of its own: nothing it does
//! ever waits behind a task.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::{Client, Statement};

use super::inbox::Event;
use super::lease::LEASE_SHARE;
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
}

/// A connection with its statements prepared.
struct Session {
    client: Client,
    poll: Statement,
    beat: Statement,
    sweep: Statement,
}

/// Keeps house until the workers have left.
pub(crate) fn keep_house(shared: &Arc<Shared>) {
    let lease = shared.identity.ttl.mul_f64(LEASE_SHARE);
    let mut housekeeper = Housekeeper {
        shared,
        sight: Sight::default(),
        mark: None,
        mark_xid: None,
        next_beat: Instant::now(),
        next_poll: Instant::now(),
        n_turns: 0,
    };
    let mut session: Option<Session> = None;
    let mut warned = false;
    while !shared.has_ended() {
        let done = match &mut session {
            Some(session) => housekeeper.turn(session, lease),
            None => Session::open(shared).and_then(|opened| {
                housekeeper.begin_session();
                if std::mem::take(&mut warned) {
                    log::info!("housekeeper: connected again");
                }
                housekeeper.turn(session.insert(opened), lease)
            }),
        };
        let failed = done.is_err();
        if let Err(error) = done {
            if !warned {
                log::warn!("housekeeper: {}; trying again", error::chain(&error));
                warned = true;
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
        let mut client = db::connect(&shared.url, "millhand housekeeper")?;
        let fail = |error| Error::postgres("could not set up housekeeping", error);
        client.batch_execute(include_str!("../../sql/queries/worker_session.sql")).map_err(fail)?;
        // A row that somebody keeps locked must not hold up the heartbeat: what
        // takes longer is given up and tried again.
        let patience = (shared.identity.ttl / 6).as_millis();
        client
            .batch_execute(&format!(
                "SET lock_timeout = {patience}; SET statement_timeout = {patience}"
            ))
            .map_err(fail)?;
        Ok(Session {
            poll: client.prepare(include_str!("../../sql/queries/poll.sql")).map_err(fail)?,
            beat: client.prepare(include_str!("../../sql/queries/beat.sql")).map_err(fail)?,
            sweep: client.prepare(include_str!("../../sql/queries/sweep.sql")).map_err(fail)?,
            client,
        })
    }
}

impl Housekeeper<'_> {
    fn turn(&mut self, session: &mut Session, lease: Duration) -> Result<(), Error> {
        // The lease counts from before the statement: others count from when
        // the database ran it, which is later.
        let now = Instant::now();
        let beats = now >= self.next_beat || self.shared.has_fresh_leases();
        if beats {
            self.beat(session, now + lease)?;
            self.next_beat = now + self.shared.identity.ttl / 3;
        }
        if now >= self.next_poll {
            self.poll(session)?;
            let n_turns = self.shared.back_end.n_turns();
            let is_busy = n_turns - std::mem::replace(&mut self.n_turns, n_turns) > BUSY_TURNS;
            let interval = self.shared.poll_interval;
            let interval = if is_busy { interval.min(BUSY_POLL_INTERVAL) } else { interval };
            self.next_poll = Instant::now() + interval;
        }
        // Last of all: if it fails, what comes before it goes on.
        if beats && !self.shared.auxiliary {
            session
                .client
                .execute(&session.sweep, &[])
                .map_err(|error| Error::postgres("could not sweep missing workers", error))?;
        }
        if beats {
            self.shared.back_end.tidy_up();
        }
        Ok(())
    }

    /// It may be another server, restored or elder: nothing that was learned of
    /// positions holds. And a heartbeat comes before the first poll, to end the
    /// leases of workers whose rows are not there: what is learned here of
    /// positions is not for them.
    fn begin_session(&mut self) {
        (self.sight, self.mark, self.mark_xid) = (Sight::default(), None, None);
        self.shared.set_sight(Sight::default());
        (self.next_beat, self.next_poll) = (Instant::now(), Instant::now());
    }

    fn beat(&mut self, session: &mut Session, lease_end: Instant) -> Result<(), Error> {
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
        let leases = self.shared.leases();
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
        for lease in leases.iter().filter(|lease| lost.contains(&lease.worker())) {
            lease.end();
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
}
