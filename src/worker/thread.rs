//! One worker: a thread that claims, runs and ends one task after another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::claim::postgres::{PostgresClaims, Previous};
use super::claim::{Claims, Ended, Outcome};
use super::crew::{Found, Rest};
use super::inbox::{Event, Inbox};
use super::lease::Lease;
use super::run::run_task;
use crate::error::{self, Error};
use crate::task::TaskId;

/// Pauses between attempts to reach Postgres: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// How the work on one connection ended.
enum Exit {
    /// Told to stop, and nothing is left to do.
    Stopped,
    /// The claim is gone; `begun` is the task whose handler had begun.
    Lost { begun: Option<TaskId> },
}

/// Works until told to stop. An error that waiting cannot mend ends it.
pub(crate) fn work(shared: &Arc<Shared>, index: usize, inbox: &Inbox) -> Result<(), Error> {
    let name = shared.worker_name(index);
    let mut previous = None;
    let mut pause = FIRST_PAUSE;
    loop {
        let opened =
            PostgresClaims::open(&shared.url, &shared.identity, &name, &shared.handlers, previous);
        let mut claims = match opened {
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
        let exit = work_session(shared, index, &name, inbox, &lease, &mut claims);
        shared.left(claims.worker());
        match exit? {
            Exit::Stopped => return claims.leave(),
            Exit::Lost { begun } => {
                shared.crew.drop_out(index);
                log::warn!("worker {name}: gave up its claim; starting anew");
                previous = Some(Previous { worker: claims.worker(), begun });
            }
        }
    }
}

/// Works on one connection until told to stop or until it is lost.
fn work_session(
    shared: &Shared,
    index: usize,
    name: &str,
    inbox: &Inbox,
    lease: &Lease,
    claims: &mut impl Claims,
) -> Result<Exit, Error> {
    loop {
        // First of all: what is noted here was said before the lease is looked
        // at, and what is said later ends the wait.
        let draining = inbox.is_draining();
        if draining {
            return Ok(Exit::Stopped);
        } else if lease.is_over() {
            return Ok(Exit::Lost { begun: None });
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
    shared.rest(inbox, shared.crew.join(index));
    loop {
        let wanted = !inbox.is_draining();
        if !wanted && ended.is_none() {
            return Ok(Exit::Stopped);
        }
        // Before the look at the lease: under a lease that still holds then, the
        // housekeeper had learned it from the server that this session is on.
        let sight = shared.sight();
        // The housekeeper says so, too, but it may be held up itself.
        if inbox.is_lost() {
            return Ok(Exit::Lost { begun: ended.map(|ended| ended.id) });
        }
        let plan = shared.crew.begin_turn(index, ended.is_some());
        let turn = match claims.next_task(ended.as_ref(), wanted, &sight, plan) {
            Ok(turn) => turn,
            Err(error) => {
                shared.crew.abandon_turn(index);
                n_failures += 1;
                let text = error::chain(&error);
                if text != last_failure {
                    log::error!("worker {name}: {text}");
                    last_failure = text;
                }
                let begun = ended.as_ref().map(|ended| ended.id);
                if claims.is_lost() || inbox.is_lost() || claims.recover().is_err() {
                    return Ok(Exit::Lost { begun });
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
        n_failures = 0;
        last_failure.clear();
        if !turn.owned {
            shared.crew.abandon_turn(index);
            log::warn!("worker {name}: its task had been taken away; nothing was written");
            return Ok(Exit::Lost { begun: ended.map(|ended| ended.id) });
        }
        ended = None;
        let found = Found {
            task: turn.task.is_some(),
            more: turn.more,
            inconclusive: turn.inconclusive,
            unfinished: turn.unfinished,
            bell_hung: turn.bell_hung,
        };
        let rest = shared.crew.end_turn(index, plan, found);
        let Some(task) = turn.task else {
            if wanted {
                shared.rest(inbox, rest);
            }
            inbox.verify(claims.client());
            if inbox.is_lost() {
                return Ok(Exit::Lost { begun: None });
            }
            continue;
        };
        // A command without a warden could outlive its worker. It goes to
        // others, like every task while there is none: nobody knows for how
        // long, and this process has yet to learn why.
        if inbox.is_aborting() || inbox.is_lost() || !shared.warden.is_ready() {
            // Not begun: it goes back to its place when the claim is settled.
            return Ok(Exit::Lost { begun: None });
        }
        let id = task.id;
        let outcome = run_task(shared, name, task, inbox, claims);
        if inbox.is_lost() {
            log::warn!("worker {name}: stopped task {id}, its claim is gone");
            return Ok(Exit::Lost { begun: Some(id) });
        }
        ended = Some(Ended { id, outcome });
    }
}

impl Shared {
    /// Waits after a turn that found nothing.
    fn rest(&self, inbox: &Inbox, rest: Rest) {
        match rest {
            Rest::Again => {}
            Rest::Wait(Some(duration)) => {
                inbox.wait_until(Instant::now() + duration);
            }
            Rest::Wait(None) => {
                if self.burst && self.crew.is_idle() {
                    self.control.stop(super::Shutdown::Drain);
                }
                // A cancel is for whoever runs that task.
                while matches!(inbox.wait(), Event::Cancel(_)) {}
            }
        }
    }
}
