//! One worker: a thread that claims, runs and ends one task after another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::claim::{Begun, Claims, Ended, Outcome, Previous, Turn};
use super::inbox::Inbox;
use super::lease::{Activity, Lease};
use super::run::run_task;
use crate::error::{self, Error};

/// Pauses between attempts to reach Postgres: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

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
    let mut pause = FIRST_PAUSE;
    loop {
        let mut claims = match shared.back_end.open(shared, index, &name, previous.as_ref()) {
            Ok(claims) => claims,
            Err(error) if error.is_unavailable() => {
                if pause == FIRST_PAUSE {
                    log::warn!("worker {name}: {}; trying again", error::chain(&error));
                }
                if inbox.is_draining() {
                    return match previous {
                        // What it owned is swept by others.
                        Some(_) => Err(error),
                        None => Ok(()),
                    };
                }
                inbox.wait_until(Instant::now() + pause);
                pause = (pause * 2).min(LAST_PAUSE);
                continue;
            }
            Err(error) => return Err(error),
        };
        if pause != FIRST_PAUSE || previous.is_some() {
            log::info!("worker {name}: connected again");
        }
        pause = FIRST_PAUSE;
        let lease = shared.joined(index, claims.worker());
        inbox.begin_session(lease.clone());
        let mut begun = Begun::default();
        let exit = work_session(shared, index, &name, inbox, &lease, &mut *claims, &mut begun);
        shared.left(claims.worker());
        match exit? {
            Exit::Stopped => return claims.leave(),
            Exit::Lost => {
                if inbox.is_aborting() {
                    log::info!("worker {name}: settling its claim before it leaves");
                } else {
                    log::warn!("worker {name}: gave up its claim; starting anew");
                }
                previous = Some(Previous { worker: claims.worker(), begun });
            }
        }
    }
}

/// Works under one worker id until told to stop or until the claim is lost; notes what it
/// has begun.
fn work_session(
    shared: &Shared,
    index: usize,
    name: &str,
    inbox: &Inbox,
    lease: &Lease,
    claims: &mut dyn Claims,
    begun: &mut Begun,
) -> Result<Exit, Error> {
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
    let mut ended: Option<Ended> = None;
    let mut n_failures = 0;
    let mut last_failure = String::new();
    loop {
        let wanted = !inbox.is_draining();
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
                    // Perhaps the server will never take what the handler
                    // returned. If that was not it, waiting will not help.
                    match ended.as_mut() {
                        Some(ended) if n_failures == 1 => {
                            ended.outcome = Outcome::failed(format!(
                                "the outcome could not be stored: {last_failure}"
                            ));
                        }
                        _ => return Err(error),
                    }
                }
                // Else it may pass: the server's disk is full, or its memory.
                inbox.wait_until(Instant::now() + (FIRST_PAUSE * n_failures).min(LAST_PAUSE));
                continue;
            }
        };
        let task = match turn {
            Turn::Task(task) => task,
            Turn::Nothing => {
                (ended, n_failures, begun.task) = (None, 0, None);
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
        (n_failures, begun.task) = (0, None);
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
            return Ok(Exit::Lost);
        }
        ended = Some(Ended { id, outcome });
    }
}
