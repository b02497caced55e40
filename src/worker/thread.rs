//! One worker: a thread that claims, runs and ends one task after another.

use std::sync::Arc;
use std::time::Instant;

use postgres::error::SqlState;

use super::Shared;
use super::claim::{Begun, Claims, Ended, Outcome, Previous, Turn};
use super::inbox::Inbox;
use super::lease::{Activity, Lease};
use super::patience::{FIRST_PAUSE, LAST_PAUSE, Patience};
use super::run::run_task;
use super::tail::Remains;
use super::tally::End;
use crate::error::{self, Error};
use crate::task::TaskId;

/// How the work under one worker id ended.
enum Exit {
    /// Told to stop, and nothing is left to do.
    Stopped,
    /// The claim is gone.
    Lost,
}

/// Works until told to stop. An error that waiting cannot mend ends it.
pub(crate) fn work(shared: &Arc<Shared>, index: usize, inbox: &Inbox) -> Result<(), Error> {
    let name = shared.worker_name(index);
    let mut previous: Option<Previous> = None;
    let mut patience = Patience::new();
    let began = Instant::now();
    loop {
        let mut claims = match shared.back_end.open(shared, index, &name, previous.as_ref()) {
            Ok(claims) => claims,
            Err(error) if error.is_unavailable() => {
                // Who runs what there is, and no more, need not wait until workers of
                // another type have gone; but those that are dead go after a ttl.
                if shared.burst
                    && error.sqlstate() == Some(&SqlState::OBJECT_IN_USE)
                    && began.elapsed() > shared.identity.ttl.mul_f64(1.5)
                {
                    return Err(error);
                }
                let pause = patience.after(&shared.news, &error);
                if inbox.is_draining() {
                    return match previous {
                        // What it owned is swept by others.
                        Some(_) => Err(error),
                        None => Ok(()),
                    };
                }
                inbox.wait_until(Instant::now() + pause);
                continue;
            }
            Err(error) => return Err(error),
        };
        if patience.was_needed() {
            shared.news.is_over();
        }
        patience = Patience::new();
        let lease = shared.joined(index, claims.worker());
        inbox.begin_session(lease.clone());
        let mut begun = Begun::default();
        let mut ended = None;
        let session = Session { index, name: &name, inbox, lease: &lease };
        let exit = work_session(shared, &session, &mut *claims, &mut begun, &mut ended);
        shared.left(claims.worker());
        match exit? {
            Exit::Stopped => return claims.leave(),
            Exit::Lost => {
                if let (Some(Ended { id, outcome }), Some(fence)) = (ended, begun.fence) {
                    leave_log(shared, id, fence, outcome);
                }
                if inbox.is_aborting() {
                    log::info!("worker {name}: settling its claim before it leaves");
                } else {
                    log::warn!("worker {name}: lost its connection or its lease; starting anew");
                }
                previous = Some(Previous { worker: claims.worker(), begun });
            }
        }
    }
}

/// A worker under one id.
struct Session<'a> {
    index: usize,
    name: &'a str,
    inbox: &'a Inbox,
    lease: &'a Lease,
}

/// Works under one worker id until told to stop or until the claim is lost; notes what it
/// has begun.
fn work_session(
    shared: &Shared,
    session: &Session<'_>,
    claims: &mut dyn Claims,
    begun: &mut Begun,
    ended: &mut Option<Ended>,
) -> Result<Exit, Error> {
    let Session { index, name, inbox, lease } = *session;
    loop {
        // First of all: what is noted here was said before the lease is looked
        // at, and what is said later ends the wait.
        let draining = inbox.is_draining();
        if draining {
            return Ok(Exit::Stopped);
        } else if lease.is_over() {
            return Ok(Exit::Lost);
        } else if !lease.is_held() {
            inbox.wait();
        } else if !shared.warden.is_ready() {
            shared.warden.wait_until_ready(FIRST_PAUSE);
        } else {
            break;
        }
    }
    let (mut n_failures, mut n_refused) = (0, 0);
    let mut last_failure = String::new();
    loop {
        let wanted = !inbox.is_draining() && n_refused == 0;
        if !wanted && ended.is_none() {
            return Ok(Exit::Stopped);
        }
        let turn = match claims.next_task(inbox, ended.as_ref(), wanted) {
            Ok(turn) => turn,
            Err(error) => {
                n_failures += 1;
                let text = error::chain(&error);
                if text != last_failure {
                    log::error!("worker {name}: {text}");
                    last_failure = text;
                }
                if inbox.is_lost() || !claims.recover() {
                    return Ok(Exit::Lost);
                }
                if !error.is_unavailable() {
                    // At first it may have been what was to be started, or else it is
                    // what the handler returned. If not even a reason can be stored,
                    // waiting will not help.
                    let Some(ended) = ended.as_mut() else { return Err(error) };
                    match n_refused {
                        0 => {}
                        1 => ended.outcome.make_result_text(),
                        2 => ended.outcome.leave_out_result(&last_failure),
                        3 => ended.outcome.leave_out_log(),
                        _ => return Err(error),
                    }
                    n_refused += 1;
                    continue;
                }
                // It may pass: the server's disk is full, or its memory.
                inbox.wait_until(Instant::now() + (FIRST_PAUSE * n_failures).min(LAST_PAUSE));
                continue;
            }
        };
        let task = match turn {
            Turn::Task(task) => task,
            Turn::Nothing => {
                (*ended, n_failures, n_refused, begun.task) = (None, 0, 0, None);
                last_failure.clear();
                inbox.verify(claims);
                if inbox.is_lost() {
                    return Ok(Exit::Lost);
                }
                continue;
            }
            Turn::Lost => return Ok(Exit::Lost),
            Turn::NotOwned => {
                log::warn!("worker {name}: its task had been taken away; nothing was written");
                return Ok(Exit::Lost);
            }
        };
        (*ended, n_failures, n_refused, begun.task) = (None, 0, 0, None);
        last_failure.clear();
        // A command without a warden could outlive its worker. It goes to
        // others, like every task while there is none: nobody knows for how
        // long, and this process has yet to learn why.
        if inbox.is_aborting() || inbox.is_lost() || !shared.warden.is_ready() {
            // Not begun: it goes back to its place when the claim is settled.
            return Ok(Exit::Lost);
        }
        let (id, fence, attempt) = (task.id, task.fence, task.attempt);
        let handler = task.name.clone();
        lease.set_activity(Activity::Runs(id));
        let outcome = match run_task(shared, name, task, inbox, claims, index) {
            Ok(outcome) => outcome,
            // It goes back to its place, and this process does not ask for its like again
            // before that is worth a try.
            Err(reason) => {
                shared.offer.withdraw(&handler, reason);
                return Ok(Exit::Lost);
            }
        };
        lease.set_activity(Activity::Ends);
        shared.offer.has_begun(&handler);
        *begun = Begun { fence: Some(fence), task: Some((id, handler, attempt)) };
        if inbox.is_lost() {
            log::warn!("worker {name}: stopped task {id}, its claim is gone");
            leave_log(shared, id, fence, outcome);
            return Ok(Exit::Lost);
        }
        shared.count.add(match outcome.completed {
            true => End::Completed,
            false if inbox.is_canceled(id) => End::Canceled,
            false => End::Failed,
        });
        *ended = Some(Ended { id, outcome });
    }
}

/// Others end this task, or have; its log can be stored all the same.
fn leave_log(shared: &Shared, id: TaskId, fence: i64, outcome: Outcome) {
    if let (Some(text), Some(size)) = (outcome.log, outcome.log_size) {
        shared.reports.leave(Remains { id, fence, text, size: size.unsigned_abs() });
    }
}
