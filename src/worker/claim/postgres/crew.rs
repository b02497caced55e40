//! Who of a process's workers should look for work now: no polling storm, and
//! no free task beside an idle worker.
//!
//! A turn is one call of `next_task`. A turn that found nothing makes its
//! worker idle; these things end that:
//!
//! - Somebody rang (a dispatch, a cancel, another process, the safety poll):
//!   the *sentinel* is woken, the one idle worker that hung up the bell.
//! - Another worker's turn saw more work than the one task it took.
//! - The sentinel's own turn was inconclusive: it looks again soon.
//!
//! A turn that is under way may have looked before the reason to wake somebody
//! arose. Where nobody could be woken for it, the reason is counted; so are
//! changes that another sees to, such as the end of each task, which turns under
//! way may have seen running still. A turn that found nothing while a count went
//! up is taken again.

use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::worker::claim::rest::{LAST_REST_OF_BELL, QUIET, backed_off};
use crate::worker::inbox::{Event, Mailbox};

/// While turns are under way, one more than this machine has processors, and at most
/// so many, no further worker is woken. More turns only queue for processors, and for
/// one another's rows: with 8 of them on two processors, where 3 are allowed, tasks on
/// few resources go at 0.6 of the speed, and with many resources or none a turn costs
/// a tenth more. (Where the database has a machine of its own it mostly has more
/// processors than this one, not fewer.)
const MOST_TURNS: usize = 8;

/// A turn that has been under way for so long is held up, by a row that somebody keeps
/// locked, and takes no processor from others: it counts no more. A few such turns
/// would otherwise keep all idle workers idle.
const HELD_UP: Duration = Duration::from_millis(200);

/// How long a bell that rings in vain rests first. (With 1 ms, sessions of workers took
/// 1.1 to 1.45 times as much processor time during a burst of 256 tasks most of which had
/// to wait, and the tasks waited as long, to 5 ms of 800.)
const FIRST_REST_OF_BELL: Duration = Duration::from_millis(4);

/// How soon an inconclusive look is repeated: first, and at most. The most is
/// the interval of the safety poll, which would come then anyway.
const FIRST_RETRY: Duration = Duration::from_millis(2);
const LAST_RETRY: Duration = Duration::from_secs(1);

pub(crate) struct Crew {
    mailboxes: Vec<Mailbox>,
    /// So many turns under way are enough.
    most_turns: usize,
    state: Mutex<State>,
}

struct State {
    /// Workers that wait in their inbox, the one to be woken next last.
    idle: Vec<usize>,
    /// Who has hung the bell, or is about to.
    sentinel: Option<usize>,
    /// Since when the bell hangs on the sentinel's connection.
    bell_hung: Option<Instant>,
    /// How often it rang in vain of late.
    vain_rings: u32,
    /// Who takes a turn or was woken for one, and since when.
    turns: Vec<(usize, Instant)>,
    n_turns: u64,
    /// Reasons to look that arose so far and that nobody was woken for.
    reasons: u64,
    /// What else happened so far that a turn under way may have missed: ends of
    /// tasks, and reasons that another worker was woken for.
    changes: u64,
    /// Inconclusive looks of the sentinel in a row.
    retries: u32,
    /// When the sentinel looks again by itself.
    next_look: Option<Instant>,
}

/// What a worker does in its turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// Others here could take more work.
    pub(crate) idle_siblings: bool,
    /// This worker's bell hangs from an earlier turn.
    pub(crate) take_bell_down: bool,
    /// If there is nothing to do, hang the bell.
    pub(crate) hang_bell: bool,
    ends_task: bool,
    reasons: u64,
    changes: u64,
}

/// What a worker does after a turn that found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Take another turn at once.
    Again,
    /// Wait for an event, for so long at most.
    Wait(Option<Duration>),
}

/// What a turn found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Found {
    pub(crate) task: bool,
    pub(crate) more: bool,
    /// A task that looked free was in other hands for the moment, or may have
    /// become free at this moment.
    pub(crate) inconclusive: bool,
    /// The look ended before the queue did.
    pub(crate) unfinished: bool,
    pub(crate) bell_hung: bool,
}

impl Crew {
    pub(crate) fn new(mailboxes: Vec<Mailbox>) -> Crew {
        let n_processors = thread::available_parallelism().map_or(1, NonZero::get);
        Crew::with_most_turns(mailboxes, MOST_TURNS.min(n_processors + 1))
    }

    fn with_most_turns(mailboxes: Vec<Mailbox>, most_turns: usize) -> Crew {
        Crew {
            mailboxes,
            most_turns,
            state: Mutex::new(State {
                idle: Vec::new(),
                sentinel: None,
                bell_hung: None,
                vain_rings: 0,
                turns: Vec::new(),
                n_turns: 0,
                reasons: 0,
                changes: 0,
                retries: 0,
                next_look: None,
            }),
        }
    }

    /// There may be work: wakes one worker, unless turns are under way that
    /// will see to it.
    pub(crate) fn ring(&self) {
        let mut state = self.lock();
        let sentinel = state.sentinel.filter(|sentinel| state.idle.contains(sentinel));
        // Where rings are in vain, the sentinel alone looks; it is never held up.
        let room = self.has_room(&state) && state.vain_rings == 0;
        let any = state.idle.last().copied().filter(|_| room);
        match (sentinel, any) {
            (Some(sentinel), _) => self.wake(&mut state, sentinel),
            (None, Some(worker)) => {
                // If there is a sentinel, it looks just now, perhaps too early,
                // and only its look tells of those whose end is not to be seen yet.
                state.changes += 1;
                self.wake(&mut state, worker);
            }
            (None, None) => state.reasons += 1,
        }
    }

    /// A worker has come. Enough turns may be under way without it; then it
    /// waits to be woken, like any idle one.
    pub(crate) fn join(&self, worker: usize) -> Rest {
        let mut state = self.lock();
        if self.has_room(&state) {
            return Rest::Again;
        }
        state.reasons += 1;
        state.idle.push(worker);
        Rest::Wait(None)
    }

    /// A worker takes a turn.
    ///
    /// One that first `ends_task` hangs no bell, because the end of a task may
    /// be held up by others.
    pub(crate) fn begin_turn(&self, worker: usize, ends_task: bool) -> Plan {
        let mut state = self.lock();
        state.idle.retain(|idle| *idle != worker);
        state.turns.retain(|(other, _)| *other != worker);
        state.turns.push((worker, Instant::now()));
        state.n_turns += 1;
        if !ends_task {
            state.sentinel.get_or_insert(worker);
        }
        let is_sentinel = state.sentinel == Some(worker);
        if is_sentinel {
            state.next_look = None;
        }
        let bell_hung = state.bell_hung.take_if(|_| is_sentinel);
        let take_bell_down = bell_hung.is_some();
        if bell_hung.is_some_and(|since| since.elapsed() > QUIET) {
            state.vain_rings = 0;
        }
        Plan {
            idle_siblings: !state.idle.is_empty(),
            take_bell_down,
            hang_bell: is_sentinel && !(take_bell_down && state.vain_rings > 0),
            ends_task,
            reasons: state.reasons,
            changes: state.changes,
        }
    }

    /// The turn has ended.
    pub(crate) fn end_turn(&self, worker: usize, plan: Plan, found: Found) -> Rest {
        let mut state = self.lock();
        state.turns.retain(|(other, _)| *other != worker);
        let is_sentinel = state.sentinel == Some(worker);
        if is_sentinel {
            state.bell_hung = found.bell_hung.then(Instant::now);
            if found.task {
                state.vain_rings = 0;
            } else if plan.take_bell_down {
                state.vain_rings += 1;
            }
        }
        let missed_reasons = state.reasons != plan.reasons;
        let missed_changes = state.changes != plan.changes;
        if plan.ends_task {
            state.changes += 1;
        }
        if found.task {
            if is_sentinel {
                state.sentinel = None;
                state.retries = 0;
            }
            // More work wants more hands. And the bell must hang again while
            // anyone here is idle; but as long as a turn is under way its end
            // will see to that, and waking somebody for it would soon have
            // woken everybody. (Where all are held up, the safety poll does.)
            // It did not look for more if nobody was idle when it began.
            let more =
                found.more || missed_reasons || !plan.idle_siblings && !state.idle.is_empty();
            let wanted =
                more && self.has_room(&state) || state.sentinel.is_none() && state.n_moving() == 0;
            match state.idle.last().copied() {
                Some(idle) if wanted => self.wake(&mut state, idle),
                _ if more => state.reasons += 1,
                _ => {}
            }
            if found.inconclusive && plan.idle_siblings {
                self.look_soon(&mut state);
            }
            return Rest::Again;
        }
        if is_sentinel && plan.take_bell_down && !plan.hang_bell && !found.unfinished {
            // Whatever it missed, it looks again soon. (It rang once in vain before that
            // without a rest.)
            state.idle.push(worker);
            let n_rests = state.vain_rings.saturating_sub(2);
            let rest = backed_off(FIRST_REST_OF_BELL, LAST_REST_OF_BELL, n_rests);
            return look_again(&mut state, rest);
        }
        let enough = !self.has_room(&state);
        // Without a sentinel, its predecessor found work meanwhile.
        if !enough && (missed_reasons || missed_changes || state.sentinel.is_none()) {
            return Rest::Again;
        }
        if is_sentinel && found.unfinished {
            return Rest::Again;
        }
        state.idle.push(worker);
        if !is_sentinel {
            // The sentinel looks further, and again, for all.
            if found.inconclusive || found.unfinished {
                self.look_soon(&mut state);
            }
            return Rest::Wait(None);
        }
        if !found.inconclusive {
            state.retries = 0;
            return Rest::Wait(None);
        }
        let wait = backed_off(FIRST_RETRY, LAST_RETRY, state.retries);
        state.retries += 1;
        look_again(&mut state, wait)
    }

    /// The sentinel looks again, and until nobody is in the midst of a dispatch
    /// or of an end that it could not see: its look with the bell hung says so.
    fn look_soon(&self, state: &mut State) {
        let soon = Instant::now() + LAST_REST_OF_BELL;
        match state.sentinel {
            Some(_) if state.next_look.is_some_and(|at| at <= soon) => {}
            Some(sentinel) if state.idle.contains(&sentinel) => {
                state.retries = 0;
                self.wake(state, sentinel);
            }
            // It may be looking just now, and too early.
            Some(_) => state.reasons += 1,
            None => match state.idle.last().copied() {
                Some(idle) if self.has_room(state) => self.wake(state, idle),
                _ => state.reasons += 1,
            },
        }
    }

    /// The worker's connection is gone, and its bell with it, or its turn ended without
    /// an answer. Whatever it was woken for is left to another.
    pub(crate) fn drop_out(&self, worker: usize) {
        let mut state = self.lock();
        state.idle.retain(|idle| *idle != worker);
        state.turns.retain(|(other, _)| *other != worker);
        if state.sentinel == Some(worker) {
            state.sentinel = None;
            state.bell_hung = None;
            state.vain_rings = 0;
            state.retries = 0;
            state.next_look = None;
        }
        match state.idle.last().copied() {
            Some(idle) => self.wake(&mut state, idle),
            None => state.reasons += 1,
        }
    }

    /// How many turns were begun so far.
    pub(crate) fn n_turns(&self) -> u64 {
        self.lock().n_turns
    }

    /// Whether every worker is idle, and will be: with `--burst`, the end.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.idle.len() == self.mailboxes.len() && state.next_look.is_none()
    }

    /// Whether one more turn would be of use.
    fn has_room(&self, state: &State) -> bool {
        state.n_moving() < self.most_turns
    }

    /// Its turn is under way from now on: on a busy machine much may ring before it
    /// begins, and each time would wake another one.
    fn wake(&self, state: &mut State, worker: usize) {
        state.idle.retain(|idle| *idle != worker);
        state.turns.push((worker, Instant::now()));
        self.mailboxes[worker].send(Event::Wakeup);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Turns under way that are not held up.
    fn n_moving(&self) -> usize {
        self.turns.iter().filter(|(_, since)| since.elapsed() < HELD_UP).count()
    }
}

/// The sentinel waits, and looks again by itself.
fn look_again(state: &mut State, wait: Duration) -> Rest {
    state.next_look = Some(Instant::now() + wait);
    Rest::Wait(Some(wait))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests;
