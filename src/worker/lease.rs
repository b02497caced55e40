//! How long a worker may act under its id.
//!
//! Who has watched a worker's row for its whole ttl without a heartbeat takes the worker
//! for dead, so it must have stopped by then. A heartbeat that renews the row therefore
//! gives its worker a lease that ends a little earlier, and without a lease a
//! worker takes nothing.
//!
//! A fresh row gives none, though its ttl has only begun: the warden counts
//! from the heartbeats, so a row that none of them has reached is not yet one
//! that the warden kills for in time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::clock::Moment;
use super::inbox::{Event, Mailbox};
use crate::task::TaskId;

/// The part of the ttl after which a lease that was not renewed has ended; the
/// rest is for killing, before others may sweep.
pub(crate) const LEASE_SHARE: f64 = 0.9;

pub(crate) struct Lease {
    worker: i64,
    mailbox: Mailbox,
    state: Mutex<State>,
    activity: Mutex<Activity>,
}

/// What the worker does with tasks, to be compared with what the table says that it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It runs nothing, though it may just be given something.
    Idle,
    Runs(TaskId),
    /// What it ran has ended, and that may not be stored yet.
    Ends,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No heartbeat has renewed the row yet.
    Fresh,
    Until(Moment),
    /// For good: the thread may have acted on it, so that no heartbeat, however
    /// late, revives it.
    Over,
    /// And the thread was woken for it.
    OverAndTold,
}

impl Lease {
    pub(crate) fn new(worker: i64, mailbox: Mailbox) -> Lease {
        let (state, activity) = (Mutex::new(State::Fresh), Mutex::new(Activity::Idle));
        Lease { worker, mailbox, state, activity }
    }

    pub(crate) fn worker(&self) -> i64 {
        self.worker
    }

    /// Whether the worker waits for its first heartbeat.
    pub(crate) fn is_fresh(&self) -> bool {
        self.now() == State::Fresh
    }

    /// Whether the worker may take tasks.
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.now(), State::Until(_))
    }

    /// Whether the worker must end what it runs, and start anew.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.now(), State::Over | State::OverAndTold)
    }

    /// A heartbeat has renewed the row.
    pub(crate) fn renew(&self, end: Moment) {
        let mut state = self.lock();
        match *state {
            State::Over | State::OverAndTold => return,
            State::Fresh => self.mailbox.send(Event::Wakeup),
            State::Until(_) => {}
        }
        *state = State::Until(end);
    }

    /// Ends the lease: the claim is gone. Any thread may say so, again and again;
    /// the worker's own is woken once.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        if *state != State::OverAndTold {
            *state = State::OverAndTold;
            self.mailbox.send(Event::Lost);
        }
    }

    pub(crate) fn activity(&self) -> Activity {
        *self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_activity(&self, activity: Activity) {
        *self.activity.lock().unwrap_or_else(PoisonError::into_inner) = activity;
    }

    fn now(&self) -> State {
        *self.lock()
    }

    /// Time alone ends a lease, whether or not anybody is there to say so.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Until(end) if end.has_passed()) {
            *state = State::Over;
        }
        state
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::worker::inbox::Inbox;

    #[test]
    fn a_lease_begins_with_a_heartbeat_and_ends_for_good() {
        let (mailbox, _inbox) = Inbox::new().unwrap();
        let lease = Lease::new(1, mailbox);
        let states = |lease: &Lease| (lease.is_fresh(), lease.is_held(), lease.is_over());
        assert_eq!(states(&lease), (true, false, false));
        lease.renew(Moment::now().after(Duration::from_secs(3600)));
        assert_eq!(states(&lease), (false, true, false));
        // The answer to a heartbeat that came when its lease had passed.
        lease.renew(Moment::now());
        assert_eq!(states(&lease), (false, false, true));
        lease.renew(Moment::now().after(Duration::from_secs(3600)));
        assert_eq!(states(&lease), (false, false, true));
    }

    #[test]
    fn the_end_is_told_once_and_to_its_worker_alone() {
        let (mailbox, inbox) = Inbox::new().unwrap();
        let lease = Arc::new(Lease::new(1, mailbox));
        inbox.begin_session(lease.clone());
        assert!(!inbox.is_lost());
        lease.end();
        lease.end();
        assert_eq!(inbox.wait(), Event::Lost);
        assert!(inbox.is_lost());
        assert!(!inbox.wait_until(Instant::now()), "told twice");
        // What was said of an older id is no matter of the next one.
        let (mailbox, _other) = Inbox::new().unwrap();
        inbox.begin_session(Arc::new(Lease::new(2, mailbox)));
        lease.end();
        assert!(!inbox.is_lost());
    }
}
