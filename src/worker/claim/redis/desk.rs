//! Where the workers of a process meet: one of them takes a turn for all.
//!
//! A worker that has ended a task puts that on the desk, and one that is idle has a
//! standing wish there. While a turn is under way, the next one gathers. Whoever
//! *leads* a turn takes all that is there, stores what has ended and starts tasks for
//! as many workers as it can; each of them is told by its mailbox. Then somebody
//! who still waits leads the next turn, if there is a reason for one:
//!
//! - tasks have ended meanwhile;
//! - somebody rang, or more could start than there were workers;
//! - the last turn ended tasks, and workers are idle. Its look came before its own
//!   commit, so of two processes that end tasks at once neither may have seen the
//!   other's end. A look after the commit is at least for the later of the two one
//!   that sees both; should the other one still have locks then, it wakes who tried
//!   them when it lets go.
//!
//! So no task waits for a busy worker while another one is idle, and nobody polls.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::worker::claim::{Ended, Turn};
use crate::worker::inbox::{Event, Inbox, Mailbox};

/// Who a thread is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hand {
    pub(super) index: usize,
    pub(super) worker: i64,
    /// The owner of its locks.
    pub(super) owner: String,
}

/// A task that has ended, and who ran it.
pub(super) struct End {
    pub(super) hand: Hand,
    pub(super) ended: Ended,
    /// Whether the worker goes on.
    pub(super) wanted: bool,
}

/// What a turn is about.
#[derive(Default)]
pub(super) struct Joint {
    pub(super) ends: Vec<End>,
    /// The one to be given a task first, first.
    pub(super) idle: Vec<Hand>,
    /// Whether somebody rang, or the look of the turn before did not see all.
    pub(super) unseen: bool,
    /// Whether it is what a turn that ended tasks left to do.
    pub(super) follows_up: bool,
}

impl Joint {
    /// Whom to give tasks to: first those who are awake.
    pub(super) fn hands(&self) -> impl Iterator<Item = &Hand> {
        self.ends.iter().filter(|end| end.wanted).map(|end| &end.hand).chain(&self.idle)
    }

    /// Whether there may be something that no earlier look has seen.
    pub(super) fn must_look(&self) -> bool {
        self.unseen || self.ends.is_empty()
    }
}

/// What became of an end.
#[derive(Debug)]
pub(super) enum Fate {
    Stored,
    /// Somebody keeps the task's row locked: try again.
    HeldUp,
    NotOwned,
    Failed(Failure),
}

/// Why a turn could not store an end.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// Whether it may have been stored nevertheless.
    pub(super) in_doubt: bool,
}

/// What came of a turn.
#[derive(Default)]
pub(super) struct Done {
    /// In the order of [`Joint::ends`].
    pub(super) fates: Vec<Fate>,
    /// Who has a task now, or, after a failure, perhaps has one.
    pub(super) started: Vec<(usize, Answer)>,
    /// Whether it saw all that there was to see.
    pub(super) conclusive: bool,
    /// Whether another look would show more.
    pub(super) unfinished: bool,
    /// Whether more could start than there were workers.
    pub(super) more: bool,
    /// Whether it could not look at all.
    pub(super) failed: bool,
}

/// Does what a turn is about.
pub(super) trait Lead {
    /// Stores and starts. When this returns, all is committed.
    fn take_turn(&mut self, joint: &Joint) -> Done;

    /// Lets go of the locks of what has ended. The workers have been told, and no
    /// other turn follows at once, which would do that by the way.
    fn tidy_up(&mut self);
}

/// What a worker gets.
#[derive(Debug)]
pub(super) enum Answer {
    Turn(Turn),
    HeldUp,
    Failed(Failure),
}

enum Seat {
    /// Not at the desk.
    Away,
    /// Has put down an end, which is or will be in a turn.
    Waiting,
    /// Has a standing wish.
    Idle,
    /// Its wish is in the turn under way.
    InTurn,
    Answered(Answer),
}

struct State {
    seats: Vec<Seat>,
    /// Told to lead.
    called: Vec<bool>,
    /// Has been told something that it can act on only when it is idle.
    restless: Vec<bool>,
    ends: Vec<End>,
    /// The last to have come last: it is the most likely to be awake.
    idle: Vec<Hand>,
    /// Whether somebody leads, or was called to.
    under_way: bool,
    /// Whether there may be something that no look has seen: somebody rang.
    unseen: bool,
    /// The same, because a turn failed: for whoever comes next, and not at once.
    unseen_yet: bool,
    /// Whether tasks have ended since the last look, or more could start than there
    /// were workers.
    more: bool,
    conclusive: bool,
    n_turns: u64,
    n_started: u64,
}

pub(super) struct Desk {
    mailboxes: Vec<Mailbox>,
    state: Mutex<State>,
}

impl Desk {
    pub(super) fn new(mailboxes: Vec<Mailbox>) -> Desk {
        let n = mailboxes.len();
        Desk {
            mailboxes,
            state: Mutex::new(State {
                seats: (0..n).map(|_| Seat::Away).collect(),
                called: vec![false; n],
                restless: vec![false; n],
                ends: Vec::new(),
                idle: Vec::new(),
                under_way: false,
                unseen: true,
                unseen_yet: false,
                more: false,
                conclusive: false,
                n_turns: 0,
                n_started: 0,
            }),
        }
    }

    /// There may be work.
    pub(super) fn ring(&self) {
        let mut state = self.lock();
        state.unseen = true;
        if !state.under_way
            && let Some(index) = state.idle.last().map(|hand| hand.index)
        {
            state.under_way = true;
            self.call(&mut state, index);
        }
    }

    pub(super) fn n_turns(&self) -> u64 {
        self.lock().n_turns
    }

    /// How many tasks were started so far.
    pub(super) fn n_started(&self) -> u64 {
        self.lock().n_started
    }

    /// Whether every worker is idle, and will be: with `--burst`, the end.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.idle.len() == state.seats.len()
            && state.conclusive
            && !state.under_way
            && !state.unseen
            && !state.more
    }

    /// Puts an end on the desk, or a wish, and waits for what comes of it; leads
    /// turns when it is this worker's turn to. With news in the inbox a wish is taken
    /// back. `resting` is called before each wait.
    pub(super) fn attend(
        &self,
        hand: &Hand,
        inbox: &Inbox,
        ended: Option<(&Ended, bool)>,
        lead: &mut dyn Lead,
        resting: &mut dyn FnMut(),
    ) -> Answer {
        let index = hand.index;
        let mut leads = {
            let mut state = self.lock();
            state.unseen |= std::mem::take(&mut state.unseen_yet);
            match ended {
                Some((ended, wanted)) => {
                    state.seats[index] = Seat::Waiting;
                    state.ends.push(End { hand: hand.clone(), ended: ended.clone(), wanted });
                }
                None => state.sit_down(hand.clone()),
            }
            !state.under_way && state.begin()
        };
        loop {
            if leads {
                self.lead(index, inbox, lead);
            }
            let has_news = inbox.is_draining() || inbox.is_lost();
            {
                let mut state = self.lock();
                leads = std::mem::take(&mut state.called[index]);
                state.restless[index] = has_news;
                match std::mem::replace(&mut state.seats[index], Seat::Away) {
                    Seat::Answered(answer) => return answer,
                    Seat::Idle if has_news && !leads => {
                        state.idle.retain(|idle| idle.index != index);
                        return Answer::Turn(Turn::Nothing);
                    }
                    seat => state.seats[index] = seat,
                }
            }
            if !leads {
                resting();
                inbox.wait();
            }
        }
    }

    /// Leads turns until there is no reason for another one, or somebody else does.
    fn lead(&self, index: usize, inbox: &Inbox, lead: &mut dyn Lead) {
        loop {
            let joint = self.lock().gather(index);
            let abandoned = Abandoned { desk: self, joint: &joint };
            let Done { fates, mut started, conclusive, unfinished, more, failed } =
                lead.take_turn(&joint);
            std::mem::forget(abandoned);
            // Until it has been seen to: others may have to be told of what is found then.
            let leaves_rest = joint.follows_up && unfinished;
            let mut told = Vec::new();
            {
                let mut state = self.lock();
                state.n_started += started.len() as u64;
                let mut take = |index: usize| {
                    let place = started.iter().position(|(of, _)| *of == index)?;
                    Some(started.swap_remove(place).1)
                };
                let has_ended = fates.iter().any(|fate| matches!(fate, Fate::Stored));
                for (end, fate) in joint.ends.into_iter().zip(fates) {
                    let answer = match fate {
                        Fate::Stored => match take(end.hand.index) {
                            None if end.wanted => {
                                told.extend(state.rest(end.hand));
                                continue;
                            }
                            None => Answer::Turn(Turn::Nothing),
                            Some(task) => task,
                        },
                        Fate::HeldUp => Answer::HeldUp,
                        Fate::NotOwned => Answer::Turn(Turn::NotOwned),
                        Fate::Failed(failure) => Answer::Failed(failure),
                    };
                    state.seats[end.hand.index] = Seat::Answered(answer);
                    told.push(end.hand.index);
                }
                // The first to be called next time last.
                for hand in joint.idle.into_iter().rev() {
                    match take(hand.index) {
                        Some(answer) => {
                            told.push(hand.index);
                            state.seats[hand.index] = Seat::Answered(answer);
                        }
                        None => told.extend(state.rest(hand)),
                    }
                }
                state.conclusive = conclusive;
                state.unseen |= unfinished;
                state.unseen_yet |= failed;
                state.more |= more || has_ended || leaves_rest;
            }
            for told in told.into_iter().filter(|told| *told != index) {
                self.mailboxes[told].send(Event::Wakeup);
            }
            let mut state = self.lock();
            if !state.begin() {
                state.under_way = true;
                drop(state);
                let nobody = Joint::default();
                let abandoned = Abandoned { desk: self, joint: &nobody };
                lead.tidy_up();
                std::mem::forget(abandoned);
                state = self.lock();
                if !state.begin() {
                    return;
                }
            }
            let waits = !matches!(state.seats[index], Seat::Answered(_));
            let has_news = inbox.is_draining() || inbox.is_lost();
            if waits && !has_news {
                continue;
            }
            let others = state.idle.iter().rev().map(|hand| hand.index);
            let others = state.ends.iter().map(|end| end.hand.index).chain(others);
            match { others }.find(|other| *other != index) {
                Some(other) => return self.call(&mut state, other),
                None if waits => {}
                None => {
                    state.under_way = false;
                    return;
                }
            }
        }
    }

    fn call(&self, state: &mut State, index: usize) {
        state.called[index] = true;
        self.mailboxes[index].send(Event::Wakeup);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn whose leader panics: those in it would wait for ever.
struct Abandoned<'a> {
    desk: &'a Desk,
    joint: &'a Joint,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        let ending = self.joint.ends.iter().map(|end| &end.hand);
        for hand in ending.chain(&self.joint.idle) {
            let error = Error::Bug {
                doing: "could not end tasks and start others".to_owned(),
                source: "the worker that did it for all panicked".into(),
            };
            let failure = Failure { error, in_doubt: true };
            state.seats[hand.index] = Seat::Answered(Answer::Failed(failure));
            self.desk.mailboxes[hand.index].send(Event::Wakeup);
        }
        if state.begin() {
            let next = state.ends.first().map(|end| end.hand.index);
            if let Some(next) = next.or(state.idle.last().map(|hand| hand.index)) {
                self.desk.call(&mut state, next);
            }
        }
    }
}

impl State {
    fn sit_down(&mut self, hand: Hand) {
        self.seats[hand.index] = Seat::Idle;
        self.idle.push(hand);
    }

    /// The same; to be told if it waits for that.
    fn rest(&mut self, hand: Hand) -> Option<usize> {
        let index = hand.index;
        self.sit_down(hand);
        self.restless[index].then_some(index)
    }

    /// Whether there is a reason for a turn, which is under way then.
    fn begin(&mut self) -> bool {
        let may_start = (self.unseen || self.more) && !self.idle.is_empty();
        self.under_way = !self.ends.is_empty() || may_start;
        self.under_way
    }

    /// All that is on the desk, the leader's own first: nobody has to be woken for it.
    fn gather(&mut self, leader: usize) -> Joint {
        self.n_turns += 1;
        let unseen = std::mem::take(&mut self.unseen);
        let follows_up = std::mem::take(&mut self.more);
        let mut ends = std::mem::take(&mut self.ends);
        let mut idle = std::mem::take(&mut self.idle);
        idle.reverse();
        ends.sort_by_key(|end| end.hand.index != leader);
        idle.sort_by_key(|hand| hand.index != leader);
        for hand in &idle {
            self.seats[hand.index] = Seat::InTurn;
        }
        Joint { ends, idle, unseen, follows_up }
    }
}

impl Failure {
    /// The same for another worker.
    pub(super) fn copy(&self) -> Failure {
        Failure { error: self.error.copy(), in_doubt: self.in_doubt }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]
mod tests;
