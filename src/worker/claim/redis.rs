//! Worker type `redis`: locks in a lock store, truth in Postgres, where nothing but
//! rows is read and written.
//!
//! | | |
//! |---|---|
//! | `bell.rs` | when workers look because somebody says that there may be work |
//! | `desk.rs` | one worker takes a turn for all that are idle or have ended a task |
//! | `turn.rs` | the turn: find tasks, take their locks, end and start in one transaction |
//! | `find.rs` | finds what may start: looks, parks what is in the way |
//! | `look.rs` | which tasks of a look may start |
//! | `locks.rs` | takes locks, lets go of them, and mends what is wrong with them |
//! | `sessions.rs` | the pool of Postgres sessions |
//!
//! A session may end at any moment without a claim being lost: the worker is who its
//! row says it is for as long as its lease holds.

mod bell;
mod desk;
mod find;
mod locks;
mod look;
mod sessions;
mod turn;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender};

use super::{BackEnd, Claims, Ended, Previous, Turn};
use crate::client;
use crate::config::{Config, WorkerType};
use crate::error::Error;
use crate::lock_store::{Link, Lock, LockStore, PATIENCE};
use crate::task::{NewTask, TaskId};
use crate::worker::inbox::{Event, Inbox, Mailbox};
use crate::worker::{LOOK, Shared, Shutdown, random_token};
use bell::Bell;
use desk::{Answer, Desk, Hand, Joint};
use find::Window;
use look::Seen;
use sessions::Sessions;
use turn::Leader;

/// How often a silent connection is asked whether it is still there: messages are
/// lost for no longer than that. They would be found by the safety poll.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Pauses before an end that is held up is tried again: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct RedisBackEnd {
    store: Arc<LockStore>,
    sessions: Sessions,
    desk: Desk,
    ledger: Mutex<Ledger>,
}

/// What this process holds in the lock store, and the plans of its turns.
#[derive(Default)]
struct Ledger {
    owners: HashSet<String>,
    /// By the task that runs here, or is about to.
    held: HashMap<TaskId, Lock>,
    /// Not needed any more, and not let go yet.
    released: Vec<Lock>,
    wake_others: bool,
    /// Whether the store is to be compared with this.
    audit: bool,
    /// Taken by whoever leads a turn.
    window: Option<Window>,
    /// Free tasks that could not be started: somebody keeps their rows locked, or
    /// starts them just now. Left out until somebody rings.
    in_vain: HashSet<TaskId>,
    /// When to look deep again, if somebody has rung since and if nobody has.
    next_deep_look: Option<(Instant, Instant)>,
    /// A task far behind, and how many deep looks have found it there.
    passed_over: Option<(TaskId, usize)>,
}

impl RedisBackEnd {
    /// Connects once, to refuse a server that will not do.
    pub(crate) fn new(
        config: &Config,
        process: &str,
        mailboxes: Vec<Mailbox>,
    ) -> Result<RedisBackEnd, Error> {
        let store = Arc::new(LockStore::new(config)?);
        Link::new(store.clone()).check()?;
        Ok(RedisBackEnd {
            store,
            sessions: Sessions::new(config.database_url()?, config.pool_size, process)?,
            desk: Desk::new(mailboxes),
            ledger: Mutex::new(Ledger { audit: true, ..Ledger::default() }),
        })
    }

    fn is_own(&self, owner: &str) -> bool {
        self.ledger().owners.contains(owner)
    }

    fn hold(&self, lock: Lock) {
        self.ledger().held.insert(lock.task, lock);
    }

    fn held(&self, id: TaskId) -> Option<Lock> {
        self.ledger().held.get(&id).cloned()
    }

    /// The locks of this task are to be let go, after the commit that ended it.
    fn let_go(&self, id: TaskId) {
        let mut ledger = self.ledger();
        let lock = ledger.held.remove(&id);
        ledger.released.extend(lock);
    }

    /// This owner is no more.
    fn forget(&self, owner: &str) {
        let mut ledger = self.ledger();
        let Ledger { owners, held, released, .. } = &mut *ledger;
        owners.remove(owner);
        let gone = held.extract_if(|_, lock| lock.owner == owner);
        released.extend(gone.map(|(_, lock)| lock));
    }

    /// Other processes should look: nobody here is left to.
    fn wake_others(&self) {
        self.ledger().wake_others = true;
    }

    /// What is to be let go, and whether others are to be woken.
    fn take_released(&self) -> (Vec<Lock>, bool) {
        let mut ledger = self.ledger();
        (std::mem::take(&mut ledger.released), std::mem::take(&mut ledger.wake_others))
    }

    fn take_window(&self) -> Option<Window> {
        self.ledger().window.take()
    }

    fn keep_window(&self, window: Window) {
        self.ledger().window = Some(window);
    }

    fn begin_audit(&self) -> bool {
        std::mem::take(&mut self.ledger().audit)
    }

    fn wants_audit(&self) -> bool {
        self.ledger().audit
    }

    fn want_audit(&self) {
        self.ledger().audit = true;
    }

    fn start_was_in_vain(&self, id: TaskId) {
        self.ledger().in_vain.insert(id);
    }

    /// Takes from these places in a list those that were tried in vain; whether there
    /// were any.
    fn leave_out_vain(&self, seen: &[Seen], places: &mut Vec<usize>) -> bool {
        let ledger = self.ledger();
        let n = places.len();
        if !ledger.in_vain.is_empty() {
            places.retain(|place| !ledger.in_vain.contains(&seen[*place].id));
        }
        places.len() < n
    }

    fn may_look_deep(&self, joint: &Joint) -> bool {
        let next = self.ledger().next_deep_look;
        next.is_none_or(|(rung, not_rung)| {
            Instant::now() >= if joint.unseen { rung } else { not_rung }
        })
    }

    /// A deep look, which began then, has just ended.
    fn looked_deep(&self, began: Instant, in_vain: bool) {
        let (cost, now) = (began.elapsed(), Instant::now());
        let share = if in_vain { find::DEEP_SHARE_IN_VAIN } else { find::DEEP_SHARE };
        let after = |share| now + (cost * share).min(find::LAST_DEEP_PAUSE);
        self.ledger().next_deep_look = Some((after(find::DEEP_SHARE), after(share)));
    }

    /// Whether deep looks have passed over the same tasks again and again.
    fn is_passed_over_again(&self, seen: &[Seen]) -> bool {
        let mut ledger = self.ledger();
        let far = &seen[seen.len().min(find::KEPT_IN_SIGHT)..];
        match &mut ledger.passed_over {
            Some((id, n)) if far.iter().any(|task| task.id == *id) => *n += 1,
            other => *other = far.get(far.len() / 2).map(|task| (task.id, 1)),
        }
        let is_again = matches!(ledger.passed_over, Some((_, n)) if n >= find::TOO_OFTEN);
        ledger.passed_over.take_if(|_| is_again);
        is_again
    }

    /// Hears messages until the workers have left.
    fn hear(
        &self,
        shared: &Arc<Shared>,
        connected: &mut dyn FnMut(),
        bell: &Mutex<Bell>,
        rests: Sender<()>,
    ) -> Result<(), Error> {
        let mut connection = self.store.connect()?;
        let fail = |error: redis::RedisError| Error::Unavailable {
            doing: format!("could not listen to Redis at {}", self.store.place()),
            source: error.into(),
        };
        let mut messages = connection.as_pubsub();
        messages.subscribe(&self.store.channels()[..]).map_err(fail)?;
        self.store.set_hears(true);
        let _deaf_at_last = DeafAtLast(&self.store);
        connected();
        self.is_back();
        let (mut last_heard, mut last_asked) = (Instant::now(), Instant::now());
        let process = shared.identity.process.as_bytes();
        while !shared.has_ended() {
            messages.set_read_timeout(Some(LOOK)).map_err(fail)?;
            match messages.get_message() {
                Ok(message) => {
                    last_heard = Instant::now();
                    if self.store.is_cancel_channel(message.get_channel_name()) {
                        let text: String = message.get_payload().map_err(fail)?;
                        if let Ok(id) = text.parse::<TaskId>() {
                            shared.tell_all(Event::Cancel(id));
                        }
                    } else if message.get_payload_bytes() != process {
                        // What this process says to others is no news to it.
                        lock(bell).hear(last_heard, self.desk.n_started());
                        self.ring_if_due(bell);
                        if lock(bell).rest(last_heard).is_some() {
                            // Where there is no room, it has yet to look at an earlier one.
                            let _ = rests.try_send(());
                        }
                    }
                }
                Err(error) if error.is_timeout() => {}
                Err(error) => return Err(fail(error)),
            }
            let is_down = !self.store.is_up();
            // Not only in silence: others may have much to say all the time.
            let is_due = is_down && last_asked.elapsed() >= self.store.retry_pause();
            if !is_due && last_heard.elapsed() < PING_INTERVAL {
                continue;
            }
            messages.set_read_timeout(Some(PATIENCE)).map_err(fail)?;
            messages.ping::<redis::Value>().map_err(fail)?;
            (last_heard, last_asked) = (Instant::now(), Instant::now());
            if is_down {
                self.is_back();
            }
        }
        Ok(())
    }

    /// Rings when a rest of the bell is over. (A read of messages ends too late for that:
    /// the kernel counts its time limit in ticks, and 1 ms has taken 8.)
    fn ring_after_rests(&self, bell: &Mutex<Bell>, resting: Receiver<()>) {
        loop {
            let rest = lock(bell).rest(Instant::now());
            let told = match rest {
                Some(rest) => resting.recv_timeout(rest),
                None => resting.recv().map_err(|RecvError| RecvTimeoutError::Disconnected),
            };
            if told == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            self.ring_if_due(bell);
        }
    }

    fn ring_if_due(&self, bell: &Mutex<Bell>) {
        let is_due = lock(bell).rings(Instant::now(), self.desk.n_started());
        if is_due {
            self.ring();
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// The server answers: whatever was missed can be made good.
    fn is_back(&self) {
        self.store.answers();
        self.want_audit();
        self.ring();
    }
}

impl BackEnd for RedisBackEnd {
    fn open<'a>(
        &'a self,
        shared: &'a Shared,
        index: usize,
        name: &str,
        previous: Option<&Previous>,
    ) -> Result<Box<dyn Claims + 'a>, Error> {
        let owner = random_token()?;
        let mut session = self.sessions.get_checked()?;
        let worker = shared.register(
            &mut session.client,
            name,
            WorkerType::Redis,
            Some(&owner),
            previous,
        )?;
        drop(session);
        self.ledger().owners.insert(owner.clone());
        let hand = Hand { index, worker, owner };
        let leader = Leader::new(shared, self);
        Ok(Box::new(RedisClaims { hand, name: name.to_owned(), leader, in_doubt: false }))
    }

    fn ring(&self) {
        self.ledger().in_vain.clear();
        self.desk.ring();
    }

    fn listen(&self, shared: &Arc<Shared>, connected: &mut dyn FnMut()) -> Result<(), Error> {
        let bell = Mutex::new(Bell::default());
        let (rests, resting) = crossbeam_channel::bounded(1);
        thread::scope(|scope| {
            // It ends when `rests` is gone.
            thread::Builder::new()
                .name("bell".to_owned())
                .stack_size(1 << 20)
                .spawn_scoped(scope, || self.ring_after_rests(&bell, resting))
                .map_err(|error| Error::Unavailable {
                    doing: "could not start a thread".to_owned(),
                    source: error.into(),
                })?;
            self.hear(shared, connected, &bell, rests)
        })
    }

    fn n_turns(&self) -> u64 {
        self.desk.n_turns()
    }

    fn tidy_up(&self) {
        self.want_audit();
        self.ring();
    }
}

/// The connection that listens has ended.
struct DeafAtLast<'a>(&'a LockStore);

impl Drop for DeafAtLast<'_> {
    fn drop(&mut self) {
        self.0.set_hears(false);
    }
}

struct RedisClaims<'a> {
    hand: Hand,
    name: String,
    leader: Leader<'a>,
    /// Whether a turn failed that may have started a task for this worker.
    in_doubt: bool,
}

impl Claims for RedisClaims<'_> {
    fn worker(&self) -> i64 {
        self.hand.worker
    }

    fn next_task(
        &mut self,
        inbox: &Inbox,
        ended: Option<&Ended>,
        wanted: bool,
    ) -> Result<Turn, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            if inbox.is_lost() {
                return Ok(Turn::Lost);
            }
            let (shared, back_end) = (self.leader.shared, self.leader.back_end);
            let mut resting = || {
                if shared.burst && back_end.desk.is_idle() {
                    shared.control.stop(Shutdown::Drain);
                }
            };
            // It may have been told to take nothing new while an end was held up.
            let ended = ended.map(|ended| (ended, wanted && !inbox.is_draining()));
            let leader = &mut self.leader;
            match back_end.desk.attend(&self.hand, inbox, ended, leader, &mut resting) {
                Answer::Turn(turn) => return Ok(turn),
                Answer::Failed(failure) => {
                    self.in_doubt = failure.in_doubt;
                    return Err(failure.error);
                }
                Answer::HeldUp => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
    }

    fn recover(&mut self) -> bool {
        !self.in_doubt
    }

    fn verify(&mut self) -> bool {
        // The claim is in no session.
        true
    }

    fn dispatch(&mut self, task: &NewTask) -> Result<TaskId, Error> {
        let mut session = self.leader.back_end.sessions.get_checked()?;
        let id = client::dispatch(&mut session.client, task)?;
        drop(session);
        self.leader.tell_of_work();
        Ok(id)
    }

    fn leave(&mut self) -> Result<(), Error> {
        let mut session = self.leader.back_end.sessions.get_checked()?;
        self.leader.shared.sign_off(&mut session.client, &self.name, self.hand.worker)
    }
}

impl Drop for RedisClaims<'_> {
    fn drop(&mut self) {
        self.leader.forget(&self.hand.owner);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
