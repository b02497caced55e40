//! A turn of several workers: it finds what may start, takes the locks of that, and
//! then one transaction ends and starts tasks.

use postgres::Client;
use postgres::error::DbError;
use r2d2::PooledConnection;

use super::RedisBackEnd;
use super::desk::{Answer, Done, End, Failure, Fate, Hand, Joint, Lead};
use super::find::Found;
use super::sessions::{Manager, Session};
use crate::error::Error;
use crate::lock_store::{Link, Lock};
use crate::row::Names;
use crate::task::TaskId;
use crate::worker::Shared;
use crate::worker::args::Args;
use crate::worker::claim::{Claimed, Turn};

/// One thread's means to take turns.
pub(super) struct Leader<'a> {
    pub(super) shared: &'a Shared,
    pub(super) back_end: &'a RedisBackEnd,
    pub(super) link: Link,
}

impl<'a> Leader<'a> {
    pub(super) fn new(shared: &'a Shared, back_end: &'a RedisBackEnd) -> Leader<'a> {
        let link = Link::new(back_end.store.clone());
        Leader { shared, back_end, link }
    }

    /// Takes the turn; an error means that nothing was sent that changes anything.
    fn try_turn(&mut self, joint: &Joint) -> Result<Done, Error> {
        let hands: Vec<&Hand> = joint.hands().collect();
        let is_up = self.back_end.store.is_up();
        let n = if is_up { hands.len() } else { 0 };
        let (mut session, found) = match self.look(joint, n) {
            // What has ended need not wait for that. Whoever is idle tells of it.
            Err(error) if !joint.ends.is_empty() && !error.is_unavailable() => {
                self.look(joint, 0)?
            }
            found => found?,
        };
        let given = match is_up {
            true => self.take_locks(&mut session, joint, &hands, &found),
            false => Vec::new(),
        };
        let n_possible = found.free.len().min(hands.len());
        let conclusive = found.conclusive && is_up && given.len() == n_possible;
        if joint.ends.is_empty() && given.is_empty() {
            let unfinished = found.unfinished;
            if found.is_for_others && joint.follows_up {
                self.back_end.wake_others();
            }
            self.back_end.keep_window(found.window);
            return Ok(Done { conclusive, unfinished, ..Done::default() });
        }
        let committed = match Self::commit(&mut session, &joint.ends, &given) {
            Ok(committed) => committed,
            Err(error) => return Ok(self.undo(session, joint, &given, error)),
        };
        drop(session);
        let done = self.conclude(joint, found, &given, committed);
        Ok(Done { conclusive: conclusive && done.conclusive, ..done })
    }

    /// The one transaction of a turn.
    fn commit(
        session: &mut Session,
        ends: &[End],
        given: &[(Lock, &Hand)],
    ) -> Result<Committed, postgres::Error> {
        let outcomes = || ends.iter().map(|end| &end.ended.outcome);
        let rows = session.client.query(
            &session.joint_turn,
            &[
                &ends.iter().map(|end| end.ended.id.0).collect::<Vec<_>>(),
                &ends.iter().map(|end| end.hand.worker).collect::<Vec<_>>(),
                &outcomes().map(|outcome| outcome.state()).collect::<Vec<_>>(),
                &outcomes().map(|outcome| outcome.result.as_ref()).collect::<Vec<_>>(),
                &outcomes().map(|outcome| outcome.error.as_ref()).collect::<Vec<_>>(),
                &outcomes().map(|outcome| outcome.log.as_ref()).collect::<Vec<_>>(),
                &outcomes().map(|outcome| outcome.log_size).collect::<Vec<_>>(),
                &outcomes().map(|outcome| outcome.progress.as_ref()).collect::<Vec<_>>(),
                &given.iter().map(|(lock, _)| lock.task.0).collect::<Vec<_>>(),
                &given.iter().map(|(_, hand)| hand.worker).collect::<Vec<_>>(),
            ],
        )?;
        let mut committed = Committed::default();
        for row in rows {
            let id = TaskId(row.get("task_id"));
            match row.get("what") {
                "ended" => committed.ended.push(id),
                "held up" => committed.held_up.push(id),
                _ => committed.started.push(Claimed {
                    id,
                    name: row.get("task_name"),
                    args: Args::new(row.get("task_args")),
                    fence: row.get("task_fence"),
                    attempt: row.get("task_attempt"),
                    exclusive: row.get::<_, Names>("task_exclusive").0,
                    shared: row.get::<_, Names>("task_shared").0,
                }),
            }
        }
        Ok(committed)
    }

    /// What came of the turn, after its transaction.
    fn conclude(
        &self,
        joint: &Joint,
        mut found: Found,
        given: &[(Lock, &Hand)],
        mut committed: Committed,
    ) -> Done {
        let mut done = Done::default();
        for end in &joint.ends {
            done.fates.push(self.settle(end, &committed));
        }
        // Otherwise nothing was tried to be started.
        let all_ended = committed.ended.len() == joint.ends.len();
        for (lock, hand) in given {
            match committed.started.iter().position(|task| task.id == lock.task) {
                Some(place) => {
                    let task = Turn::Task(committed.started.swap_remove(place));
                    done.started.push((hand.index, Answer::Turn(task)));
                }
                None => {
                    self.back_end.let_go(lock.task);
                    if all_ended {
                        self.back_end.start_was_in_vain(lock.task);
                    }
                }
            }
        }
        let all_started = done.started.len() == given.len();
        if all_started && all_ended {
            let started = given.iter().map(|(lock, _)| lock.task).collect();
            found.window.update(&committed.ended, &started);
            self.back_end.keep_window(found.window);
        }
        done.conclusive = all_started;
        // Something else may start in the place of what was canceled just now, or is kept
        // locked by somebody.
        done.unfinished = found.unfinished || !all_started;
        let n_hands = joint.hands().count();
        let all_have_one = done.started.len() == n_hands;
        done.more = all_have_one && found.free.len() > n_hands;
        // Nobody here is left to look for what has become free, or can run it. (Telling
        // has a cause of its own, a start or an end, in this turn or the one before:
        // idle processes would wake each other for ever.)
        if found.is_for_others || all_have_one && (done.more || !joint.ends.is_empty()) {
            self.back_end.wake_others();
        }
        done
    }

    /// What a transaction says of an end. Its locks go, unless it goes on.
    fn settle(&self, end: &End, committed: &Committed) -> Fate {
        if committed.held_up.contains(&end.ended.id) {
            return Fate::HeldUp;
        }
        self.back_end.let_go(end.ended.id);
        self.shared.end_is_stored(end.hand.worker);
        let stored = committed.ended.contains(&end.ended.id);
        if stored { Fate::Stored } else { Fate::NotOwned }
    }

    /// After a transaction that failed.
    fn undo(
        &mut self,
        mut session: PooledConnection<Manager>,
        joint: &Joint,
        given: &[(Lock, &Hand)],
        error: postgres::Error,
    ) -> Done {
        for (lock, _) in given {
            self.back_end.let_go(lock.task);
        }
        session.note(&error);
        let mut failure = Failure::of(&session.client, error);
        let mut done = Done { failed: true, ..Done::default() };
        if failure.in_doubt {
            // Those who had nothing to end may have a task now.
            for (_, hand) in given {
                done.started.push((hand.index, Answer::Failed(failure.copy())));
            }
        } else {
            done.started = told_to_one(joint, failure.copy());
        }
        for end in &joint.ends {
            // What the database does not take from one is no matter of the others, nor is
            // what it does not start.
            let alone = joint.ends.len() + given.len() > 1 && !failure.error.is_unavailable();
            let fate = if alone {
                match Self::commit(&mut session, std::slice::from_ref(end), &[]) {
                    Ok(committed) => self.settle(end, &committed),
                    Err(error) => {
                        let of_this = Failure::of(&session.client, error);
                        if of_this.error.is_unavailable() {
                            failure = of_this.copy();
                        }
                        Fate::Failed(of_this)
                    }
                }
            } else {
                Fate::Failed(failure.copy())
            };
            done.fates.push(fate);
        }
        done
    }
}

impl Failure {
    fn of(client: &Client, error: postgres::Error) -> Failure {
        // Without an answer, or with one that ended the session, it may be committed.
        let is_end = |error: &DbError| error.code().code().starts_with("57P");
        let in_doubt = client.is_closed() || error.as_db_error().is_none_or(is_end);
        Failure { error: Error::postgres("could not end tasks and start others", error), in_doubt }
    }
}

/// Why nothing could be started, if nobody else hears of it: waiting may not mend that.
fn told_to_one(joint: &Joint, failure: Failure) -> Vec<(usize, Answer)> {
    match (&joint.ends[..], joint.idle.first()) {
        ([], Some(hand)) => vec![(hand.index, Answer::Failed(failure))],
        _ => Vec::new(),
    }
}

impl Lead for Leader<'_> {
    fn take_turn(&mut self, joint: &Joint) -> Done {
        match self.try_turn(joint) {
            Ok(done) => done,
            Err(error) => {
                let failure = Failure { error, in_doubt: false };
                let fates = joint.ends.iter().map(|_| Fate::Failed(failure.copy())).collect();
                let started = told_to_one(joint, failure);
                Done { fates, started, failed: true, ..Done::default() }
            }
        }
    }

    fn tidy_up(&mut self) {
        self.release();
    }
}

#[derive(Default)]
struct Committed {
    ended: Vec<TaskId>,
    held_up: Vec<TaskId>,
    started: Vec<Claimed>,
}
