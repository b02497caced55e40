//! A turn of several workers: look, locks, one transaction, and then the locks of
//! what has ended.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::error::DbError;
use postgres::{Client, Row};
use r2d2::PooledConnection;

use super::desk::{Answer, Done, End, Failure, Fate, Hand, Joint, Lead};
use super::look::{Seen, choose};
use super::sessions::{Manager, Session};
use super::{RedisBackEnd, Window};
use crate::error::{self, Error};
use crate::lock_store::{Link, Lock, Needs, PassedOn, abandoned};
use crate::task::TaskId;
use crate::worker::claim::{Claimed, Turn};
use crate::worker::{Shared, Sight};

/// How many tasks a look shows: at first, as many as are likely to be enough, and
/// then all up to a number beyond which those that are blocked are parked.
const PAGE: usize = 20;
const PAGE_FOR_EACH: usize = 3;
const DEEP_PAGE: usize = 1000;
/// What deep looks pass over again and again beyond this place is parked.
pub(super) const KEPT_IN_SIGHT: usize = 100;
/// How often. To park a task and to bring it back costs the database as much as
/// passing over it some fifty times; and in a queue that moves on most tasks are soon
/// at the front.
pub(super) const TOO_OFTEN: usize = 8;
/// Deep looks beside tasks that end may take this part of the time.
const DEEP_SHARE: u32 = 10;
/// How many more tasks are tried than there are workers, in case that others have
/// some of them, before all the rest is.
const SPARE: usize = 4;
/// For how long turns go on from what one look has shown, if they end tasks and
/// nobody rang. What they do themselves they know, and what others do meanwhile only
/// makes tasks look blocked, or waiting, that are not any more; each start makes sure
/// of that. So this is how much later a task may start for which the last thing in
/// its way ended in another process.
const MAX_AGE: Duration = Duration::from_millis(10);
/// How often a turn asks for locks while it finds another epoch each time.
const MAX_EPOCHS: usize = 3;

/// One thread's means to take turns.
pub(super) struct Leader<'a> {
    pub(super) shared: &'a Shared,
    pub(super) back_end: &'a RedisBackEnd,
    link: Link,
}

/// What a look showed and what may start of it.
struct Found {
    window: Window,
    /// Places in the window.
    free: Vec<usize>,
    /// Whether the look went as far as it had to.
    conclusive: bool,
    /// Whether another look would show more.
    unfinished: bool,
    /// Whether there is something to start for those who have a handler for it.
    is_for_others: bool,
}

impl Found {
    fn nothing() -> Found {
        Found {
            window: Window::empty(),
            free: Vec::new(),
            conclusive: false,
            unfinished: false,
            is_for_others: false,
        }
    }
}

impl<'a> Leader<'a> {
    pub(super) fn new(shared: &'a Shared, back_end: &'a RedisBackEnd) -> Leader<'a> {
        let link = Link::new(back_end.store.clone());
        Leader { shared, back_end, link }
    }

    /// Gives up what this owner still holds.
    pub(super) fn forget(&mut self, owner: &str) {
        self.back_end.forget(owner);
        let given_up = if self.back_end.store.is_up() && !self.back_end.wants_audit() {
            self.release();
            // And what it was given in answers that got lost.
            self.link.release_all_of(owner)
        } else {
            // Others may have left before it and relied on an audit, and perhaps no turn
            // is taken here any more that would make one.
            self.release_abandoned(owner)
        };
        if let Err(error) = given_up {
            self.is_down(&error);
        }
    }

    fn release_abandoned(&mut self, owner: &str) -> Result<(), Error> {
        let (mut gone, others): (Vec<Lock>, Vec<Lock>) =
            self.link.registry()?.into_iter().partition(|lock| lock.owner == owner);
        let mut session = self.back_end.sessions.get_checked()?;
        gone.extend(abandoned(&mut session.client, others)?);
        self.link.release(&gone, None)
    }

    /// There is a task that was not there before.
    pub(super) fn tell_of_work(&mut self) {
        self.back_end.desk.ring();
        self.back_end.wake_others();
        self.release();
    }

    /// Lets go of the locks of what has ended, if no turn has done so.
    fn release(&mut self) {
        if !self.back_end.store.is_up() {
            // The audit finds them when it is back.
            return;
        }
        let (locks, wake) = self.back_end.take_released();
        let told_by = wake.then_some(self.shared.identity.process.as_str());
        if let Err(error) = self.link.release(&locks, told_by) {
            self.is_down(&error);
        }
    }

    /// Nothing can be started now; the listener finds out when it is back.
    fn is_down(&self, error: &Error) {
        self.back_end.want_audit();
        if self.back_end.store.is_up() {
            log::warn!("{}; nothing new is started until it is back", error::chain(error));
        }
        self.back_end.store.set_up(false);
    }

    /// A session, and what a look on it shows; one that was cut meanwhile is
    /// replaced.
    fn look(
        &mut self,
        joint: &Joint,
        n: usize,
    ) -> Result<(PooledConnection<Manager>, Found), Error> {
        loop {
            let mut session = self.back_end.sessions.get()?;
            let found = if n == 0 {
                session.client.simple_query("").map(|_| Found::nothing())
            } else if let Some(found) = self.remember(joint, n) {
                Ok(found)
            } else {
                self.find(&mut session, joint, n)
            };
            match found {
                Ok(found) => return Ok((session, found)),
                Err(_) if session.client.is_closed() => {
                    // Perhaps it is another server that answers next.
                    self.shared.set_sight(Sight::default());
                }
                Err(error) => return Err(Error::postgres("could not look for a task", error)),
            }
        }
    }

    /// What the last look showed, as far as it is still good.
    fn remember(&self, joint: &Joint, n: usize) -> Option<Found> {
        let window = self.back_end.take_window()?;
        let (is_young, n_left) = (window.at.elapsed() < MAX_AGE, window.seen.len());
        if joint.must_look || !is_young || !window.is_all && n_left < window.n_seen / 2 {
            return None;
        }
        let choice = choose(&window.seen, &ending(joint), &self.shared.handlers);
        // More may be free than it shows.
        if !window.is_all && choice.free.len() < n && n_left < n {
            return None;
        }
        let is_for_others = !choice.foreign.is_empty();
        let free = choice.free;
        Some(Found { window, free, conclusive: false, unfinished: false, is_for_others })
    }

    /// Looks until it has found `n` tasks that may start, or all that there are.
    fn find(
        &mut self,
        session: &mut Session,
        joint: &Joint,
        n: usize,
    ) -> Result<Found, postgres::Error> {
        let sight = self.shared.sight();
        let ending = ending(joint);
        let handlers = &self.shared.handlers;
        let mut page = PAGE + PAGE_FOR_EACH * n;
        let mut brought_back = false;
        let began = Instant::now();
        loop {
            let limit = (page + ending.len()) as i64;
            let rows = session
                .client
                .query(&session.look, &[&sight.low, &sight.stragglers, &limit, handlers])?;
            let may_come_back = rows.first().is_some_and(|row| row.get("may_come_back"));
            if may_come_back && !std::mem::replace(&mut brought_back, true) {
                let bring_back = include_str!("../../../../sql/queries/bring_back.sql");
                session.client.execute(bring_back, &[handlers])?;
                continue;
            }
            let mut seen: Vec<Seen> = rows.iter().filter_map(read_seen).collect();
            seen.sort_by_key(|task| task.position);
            let choice = choose(&seen, &ending, handlers);
            let is_all = rows.len() < limit as usize;
            let at = Instant::now();
            let n_near =
                choice.free.last().map_or(0, |last| last + 1).max(PAGE + PAGE_FOR_EACH * n);
            let window = |mut seen: Vec<Seen>| {
                // Turns go through all of it: what a deep look saw far behind is left out.
                let is_all = is_all && seen.len() <= n_near;
                seen.truncate(n_near);
                Window { n_seen: seen.len(), seen, at, is_all }
            };
            let is_for_others = !choice.foreign.is_empty();
            let is_enough = choice.free.len() >= n;
            let may_look_deep = joint.ends.is_empty() || self.back_end.may_look_deep();
            if is_enough || is_all && seen.len() <= KEPT_IN_SIGHT || !may_look_deep {
                // The first turn that ends nothing looks deep.
                let conclusive = is_enough || is_all;
                let (window, free) = (window(seen), choice.free);
                let unfinished = false;
                return Ok(Found { window, free, conclusive, unfinished, is_for_others });
            }
            if page < DEEP_PAGE && !is_all {
                page = DEEP_PAGE;
                continue;
            }
            self.back_end.looked_deep(began.elapsed() * DEEP_SHARE);
            let must_go_further = !is_all && joint.ends.is_empty() && choice.free.is_empty();
            if !self.back_end.is_passed_over_again(&seen) && !must_go_further {
                let (window, free) = (window(seen), choice.free);
                let unfinished = !is_all && joint.ends.is_empty();
                return Ok(Found { window, free, conclusive: is_all, unfinished, is_for_others });
            }
            // What is found again and again makes way for what is behind it.
            let beyond = |places: Vec<usize>| -> Vec<i64> {
                let far = places.into_iter().filter(|place| *place >= KEPT_IN_SIGHT);
                far.map(|place| seen[place].id.0).collect()
            };
            let (blocked, foreign) = (beyond(choice.blocked), beyond(choice.foreign));
            let park = include_str!("../../../../sql/queries/park.sql");
            let row = session
                .client
                .query_one(park, &[&blocked, &foreign, &sight.low, &sight.stragglers])?;
            let (parked, told): (bool, bool) = (row.get(0), row.get(1));
            if told {
                // They may have a handler, and have looked too early to see it there.
                self.back_end.wake_others();
            }
            let unfinished = !is_all && (parked || told);
            let (window, free) = (window(seen), choice.free);
            return Ok(Found { window, free, conclusive: is_all, unfinished, is_for_others });
        }
    }

    /// Takes the locks of what may start, for as many workers as there are.
    fn acquire(
        &mut self,
        session: &mut Session,
        joint: &Joint,
        hands: &[&Hand],
        found: &Found,
    ) -> Result<Vec<Lock>, Error> {
        let mut passed_on = PassedOn::default();
        for end in &joint.ends {
            if let Some(held) = self.back_end.held(end.ended.id) {
                passed_on.add(&held);
            }
        }
        let wanted = |place: &usize| {
            let task = &found.window.seen[*place];
            (task.id, task.needs.clone())
        };
        let owners: Vec<&str> = hands.iter().map(|hand| hand.owner.as_str()).collect();
        let mut got = Vec::new();
        let (first, rest) = found.free.split_at(found.free.len().min(owners.len() + SPARE));
        for places in [first, rest] {
            if places.is_empty() || got.len() == owners.len() {
                break;
            }
            let wanted: Vec<(TaskId, Arc<Needs>)> = places.iter().map(wanted).collect();
            let has_none = |owner: &&&str| !got.iter().any(|lock: &Lock| lock.owner == **owner);
            let owners: Vec<&str> = owners.iter().filter(has_none).copied().collect();
            let n_owners = owners.len().min(wanted.len());
            got.extend(self.acquire_in_epoch(session, &owners[..n_owners], &wanted, &passed_on)?);
        }
        Ok(got)
    }

    fn acquire_in_epoch(
        &mut self,
        session: &mut Session,
        owners: &[&str],
        wanted: &[(TaskId, Arc<Needs>)],
        passed_on: &PassedOn,
    ) -> Result<Vec<Lock>, Error> {
        let (mut released, wake) = self.back_end.take_released();
        let mut told_by = wake.then_some(self.shared.identity.process.as_str());
        for _ in 0..MAX_EPOCHS {
            if let Some(got) = self.link.exchange(&released, told_by, owners, wanted, passed_on)? {
                return Ok(got);
            }
            released.clear();
            told_by = None;
            self.adopt_epoch(session)?;
        }
        Ok(Vec::new())
    }

    /// The lock store is another one than this process knew, or has forgotten all:
    /// somebody takes the locks of all that runs anew before anything else starts.
    fn adopt_epoch(&mut self, session: &mut Session) -> Result<(), Error> {
        let Err(found) = self.link.learn()? else { return Ok(()) };
        log::info!("taking the locks of running tasks anew in {}", self.back_end.store.place());
        let token = crate::worker::random_token()?;
        let before = owned(session)?;
        self.link.rebuild(&found, &token, &before)?;
        // What ended in the meantime let go of its locks before they were taken.
        let after = owned(session)?;
        let gone: Vec<Lock> = before.into_iter().filter(|lock| !after.contains(lock)).collect();
        self.link.release(&gone, None)
    }

    /// Lets go of what nobody holds any more: locks whose owner is gone from the
    /// table, and what this process took, or let go, while answers were lost.
    fn audit(&mut self, session: &mut Session) -> Result<(), Error> {
        let registry = self.link.registry()?;
        let (own, others): (Vec<Lock>, Vec<Lock>) =
            registry.into_iter().partition(|lock| self.back_end.is_own(&lock.owner));
        let mut gone: Vec<Lock> = own
            .into_iter()
            .filter(|lock| self.back_end.held(lock.task).is_none_or(|held| held != *lock))
            .collect();
        gone.extend(abandoned(&mut session.client, others)?);
        self.link.release(&gone, None)
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
                    args: row.get("task_args"),
                    fence: row.get("task_fence"),
                    attempt: row.get("task_attempt"),
                }),
            }
        }
        Ok(committed)
    }

    /// Takes the turn; an error means that nothing was sent that changes anything.
    fn try_turn(&mut self, joint: &Joint) -> Result<Done, Error> {
        let hands: Vec<&Hand> = joint.hands().collect();
        let is_up = self.back_end.store.is_up();
        let n = if is_up { hands.len() } else { 0 };
        let (mut session, mut found) = self.look(joint, n)?;
        let mut conclusive = found.conclusive && is_up;
        let mut given: Vec<(Lock, &Hand)> = Vec::new();
        if is_up {
            let audited = match self.back_end.begin_audit() {
                true => self.audit(&mut session),
                false => Ok(()),
            };
            let locked = audited.and_then(|()| match found.free.is_empty() {
                true => Ok(Vec::new()),
                false => self.acquire(&mut session, joint, &hands, &found),
            });
            match locked {
                Ok(locked) => {
                    let by_owner: HashMap<&str, &Hand> =
                        hands.iter().map(|hand| (hand.owner.as_str(), *hand)).collect();
                    let hand_of = |lock: Lock| {
                        let hand = *by_owner.get(lock.owner.as_str())?;
                        Some((lock, hand))
                    };
                    given = locked.into_iter().filter_map(hand_of).collect();
                }
                Err(error) => self.is_down(&error),
            }
        }
        let n_possible = found.free.len().min(hands.len());
        conclusive &= given.len() == n_possible;
        for (lock, _) in &given {
            self.back_end.hold(lock.clone());
        }
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
        let mut done = Done { conclusive, ..Done::default() };
        for end in &joint.ends {
            done.fates.push(self.settle(end, &committed));
        }
        let mut started = committed.started;
        let mut n_vain = 0;
        for (lock, hand) in &given {
            match started.iter().position(|task| task.id == lock.task) {
                Some(place) => {
                    let task = Turn::Task(started.swap_remove(place));
                    done.started.push((hand.index, Answer::Turn(task)));
                }
                None => {
                    n_vain += 1;
                    self.back_end.let_go(lock.task);
                }
            }
        }
        if n_vain == 0 && committed.ended.len() == joint.ends.len() {
            let started = given.iter().map(|(lock, _)| lock.task).collect();
            found.window.update(&committed.ended, &started);
            self.back_end.keep_window(found.window);
        }
        let all_have_one = done.started.len() == hands.len();
        // It was canceled just now, or something that was to end first did not. Not
        // again and again: somebody may keep its row locked for long.
        let vain = self.back_end.is_first_vain_turn(n_vain > 0);
        done.unfinished = found.unfinished || vain;
        done.more = all_have_one && found.free.len() > hands.len();
        // Nobody here is left to look for what has become free, or can run it. (Telling
        // has a cause of its own, a start or an end, in this turn or the one before:
        // idle processes would wake each other for ever.)
        if found.is_for_others || all_have_one && (done.more || !joint.ends.is_empty()) {
            self.back_end.wake_others();
        }
        Ok(done)
    }

    /// What a transaction says of an end. Its locks go, unless it goes on.
    fn settle(&mut self, end: &End, committed: &Committed) -> Fate {
        if committed.held_up.contains(&end.ended.id) {
            return Fate::HeldUp;
        }
        self.back_end.let_go(end.ended.id);
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
        let mut failure = Failure::of(&session.client, error);
        let mut done = Done::default();
        if failure.in_doubt {
            // Those who had nothing to end may have a task now.
            for (_, hand) in given {
                done.started.push((hand.index, Answer::Failed(failure.copy())));
            }
        }
        for end in &joint.ends {
            // What the database does not take from one is no matter of the others.
            let alone = joint.ends.len() > 1 && !failure.error.is_unavailable();
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

fn ending(joint: &Joint) -> HashSet<TaskId> {
    joint.ends.iter().map(|end| end.ended.id).collect()
}

impl Lead for Leader<'_> {
    fn take_turn(&mut self, joint: &Joint) -> Done {
        match self.try_turn(joint) {
            Ok(done) => done,
            Err(error) => {
                let failure = Failure { error, in_doubt: false };
                let fates = joint.ends.iter().map(|_| Fate::Failed(failure.copy())).collect();
                Done { fates, ..Done::default() }
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

fn read_seen(row: &Row) -> Option<Seen> {
    Some(Seen {
        position: row.get::<_, Option<i64>>("task_position")?,
        id: TaskId(row.get("id")),
        name: row.get("name"),
        waiting: row.get::<_, &str>("state") == "waiting",
        needs: read_needs(row),
        behind_parked: row.get::<_, Option<bool>>("behind_parked").unwrap_or(false),
    })
}

/// The locks that what runs should have.
fn owned(session: &mut Session) -> Result<Vec<Lock>, Error> {
    let rows = session
        .client
        .query(include_str!("../../../../sql/queries/owned.sql"), &[])
        .map_err(|error| Error::postgres("could not look for running tasks", error))?;
    let lock = |row: &Row| Lock {
        owner: row.get("lock_owner"),
        task: TaskId(row.get("id")),
        needs: read_needs(row),
    };
    Ok(rows.iter().map(lock).collect())
}

fn read_needs(row: &Row) -> Arc<Needs> {
    Arc::new(Needs { exclusive: row.get("exclusive"), shared: row.get("shared") })
}
