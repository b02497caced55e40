//! How a turn finds tasks that may start: in what the last look showed, or by another
//! one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::Row;
use r2d2::PooledConnection;

use super::desk::Joint;
use super::look::{Choice, Seen, choose};
use super::sessions::{Manager, Session};
use super::turn::Leader;
use crate::error::Error;
use crate::lock_store::Needs;
use crate::row::Names;
use crate::task::TaskId;
use crate::worker::Sight;

/// How many tasks a look shows: at first, as many as are likely to be enough, and
/// then all up to a number beyond which those that are blocked are parked.
const PAGE: usize = 20;
const PAGE_FOR_EACH: usize = 3;
const DEEP_PAGE: usize = 1000;
const DEEPEST_PAGE: usize = 10_000;
/// What deep looks pass over again and again beyond this place is parked.
pub(super) const KEPT_IN_SIGHT: usize = 100;
/// How often. To park a task and to bring it back costs the database as much as
/// passing over it some fifty times; and in a queue that moves on most tasks are soon
/// at the front. Where less than half of it can be parked, a look goes ten times as far.
pub(super) const TOO_OFTEN: usize = 8;
/// Deep looks beside tasks that end may take this part of the time, and a fourth of
/// that as long as nobody rings and they find nothing that the first page did not show.
pub(super) const DEEP_SHARE: u32 = 10;
pub(super) const DEEP_SHARE_IN_VAIN: u32 = 4 * DEEP_SHARE;
/// They come again after this time, however long they take.
pub(super) const LAST_DEEP_PAUSE: Duration = Duration::from_secs(1);
/// For how long turns go on from what one look has shown, if they end tasks and
/// nobody rang: looks take this part of the time at most, but for the least and the most
/// of that. What they do themselves they know, and what others do meanwhile only makes
/// tasks look blocked, or waiting, that are not any more; each start makes sure of that.
/// So this is how much later a task may start for which the last thing in its way ended
/// in another process.
const FIRST_AGE: Duration = Duration::from_millis(10);
const LOOK_SHARE: u32 = 20;
const LAST_AGE: Duration = Duration::from_millis(100);
/// What a look showed, and what this process has done since.
pub(super) struct Window {
    pub(super) seen: Vec<Seen>,
    /// How much it was at first.
    n_seen: usize,
    good_until: Instant,
    /// Whether there is nothing beyond.
    is_all: bool,
}

impl Window {
    /// Of the first `n` tasks that a look showed, which began then and has just ended,
    /// if those were not all that there are.
    fn new(mut seen: Vec<Seen>, began: Instant, is_all: bool, n: usize) -> Window {
        let is_all = is_all && seen.len() <= n;
        seen.truncate(n);
        let good_until = began + (began.elapsed() * LOOK_SHARE).clamp(FIRST_AGE, LAST_AGE);
        Window { n_seen: seen.len(), seen, good_until, is_all }
    }

    /// Of no look.
    fn empty() -> Window {
        Window { seen: Vec::new(), n_seen: 0, good_until: Instant::now(), is_all: false }
    }

    pub(super) fn update(&mut self, ended: &[TaskId], started: &HashSet<TaskId>) {
        let ended: HashSet<TaskId> = ended.iter().copied().collect();
        self.seen.retain_mut(|task| {
            task.waiting &= !started.contains(&task.id);
            !ended.contains(&task.id)
        });
    }
}

/// What a look showed and what may start of it.
pub(super) struct Found {
    pub(super) window: Window,
    /// Places in the window.
    pub(super) free: Vec<usize>,
    /// Whether the look went as far as it had to.
    pub(super) conclusive: bool,
    /// Whether another look would show more.
    pub(super) unfinished: bool,
    /// Whether there is something to start for those who have a handler for it.
    pub(super) is_for_others: bool,
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

impl Leader<'_> {
    /// A session, and what a look on it shows; one that was cut meanwhile is
    /// replaced.
    pub(super) fn look(
        &self,
        joint: &Joint,
        n: usize,
    ) -> Result<(PooledConnection<Manager>, Found), Error> {
        loop {
            let mut session = self.back_end.sessions.get()?;
            let found = if n == 0 {
                session.check().map(|()| Found::nothing())
            } else if let Some(found) = self.remember(joint, n) {
                session.check().map(|()| found)
            } else {
                self.find(&mut session, joint, n)
            };
            match found {
                Ok(found) => return Ok((session, found)),
                Err(_) if session.client.is_closed() => {
                    // Perhaps it is another server that answers next.
                    self.shared.set_sight(Sight::default());
                }
                Err(error) => {
                    session.note(&error);
                    return Err(Error::postgres("could not look for a task", error));
                }
            }
        }
    }

    /// What the last look showed, as far as it is still good.
    fn remember(&self, joint: &Joint, n: usize) -> Option<Found> {
        let window = self.back_end.take_window()?;
        let (is_good, n_left) = (Instant::now() < window.good_until, window.seen.len());
        if joint.must_look() || !is_good || !window.is_all && n_left < window.n_seen / 2 {
            return None;
        }
        let mut choice = choose(&window.seen, &ending(joint), &self.shared.offer.handlers());
        self.back_end.leave_out_vain(&window.seen, &mut choice.free);
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
        &self,
        session: &mut Session,
        joint: &Joint,
        n: usize,
    ) -> Result<Found, postgres::Error> {
        let sight = self.shared.sight();
        let ending = ending(joint);
        let handlers = &*self.shared.offer.handlers();
        let n_likely = PAGE + PAGE_FOR_EACH * n;
        let mut page = n_likely;
        let mut brought_back = false;
        let began = Instant::now();
        loop {
            let at = Instant::now();
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
            let mut choice = choose(&seen, &ending, handlers);
            let in_vain = self.back_end.leave_out_vain(&seen, &mut choice.free);
            let is_all = rows.len() < limit as usize;
            let is_enough = choice.free.len() >= n;
            // A turn that ends nothing looks deep, but not at once after one that did: what
            // that has started may have ended by then, and more is free near by.
            let ends_nothing = joint.ends.is_empty() && (joint.unseen || !joint.follows_up);
            let may_look_deep = ends_nothing || self.back_end.may_look_deep(joint);
            let is_deep = may_look_deep && !is_enough && !(is_all && seen.len() <= KEPT_IN_SIGHT);
            let mut unfinished = joint.ends.is_empty() && !may_look_deep && !is_enough && !is_all;
            if is_deep {
                if page < DEEP_PAGE && !is_all {
                    page = DEEP_PAGE;
                    continue;
                }
                let only_near = choice.free.last().is_none_or(|last| *last < n_likely);
                self.back_end.looked_deep(began, only_near);
                let must_go_further = !is_all && ends_nothing && choice.free.is_empty();
                let is_in_the_way = self.back_end.is_passed_over_again(&seen) || must_go_further;
                let mut would_show_more = joint.ends.is_empty();
                if is_in_the_way {
                    let n_parked = self.park(session, &sight, &seen, &choice)?;
                    let few = n_parked * 2 < seen.len().saturating_sub(KEPT_IN_SIGHT);
                    if must_go_further && few && page < DEEPEST_PAGE {
                        // Somebody keeps their rows or those of their blockers locked:
                        // steps of a few would get nowhere.
                        page = DEEPEST_PAGE;
                        continue;
                    }
                    would_show_more = n_parked > 0;
                }
                unfinished = !is_all && would_show_more;
            }
            // Turns go through all of the window: what was seen far behind is left out.
            let n_near = choice.free.last().map_or(0, |last| last + 1).max(n_likely);
            return Ok(Found {
                window: Window::new(seen, at, is_all, n_near),
                is_for_others: !choice.foreign.is_empty(),
                free: choice.free,
                conclusive: (is_enough || is_all) && !in_vain,
                unfinished,
            });
        }
    }

    /// Parks what is beyond those that are kept in sight: what is found again and again
    /// makes way for what is behind it. How many it could park.
    fn park(
        &self,
        session: &mut Session,
        sight: &Sight,
        seen: &[Seen],
        choice: &Choice,
    ) -> Result<usize, postgres::Error> {
        let beyond = |places: &[usize]| -> Vec<i64> {
            let far = places.iter().filter(|place| **place >= KEPT_IN_SIGHT);
            far.map(|place| seen[*place].id.0).collect()
        };
        let row = session.client.query_one(
            include_str!("../../../../sql/queries/park.sql"),
            &[&beyond(&choice.blocked), &beyond(&choice.foreign), &sight.low, &sight.stragglers],
        )?;
        let (n_blocked, n_foreign): (i32, i32) = (row.get(0), row.get(1));
        if n_foreign > 0 {
            // They may have a handler, and have looked too early to see it there.
            self.back_end.wake_others();
        }
        Ok((n_blocked + n_foreign).unsigned_abs() as usize)
    }
}

fn ending(joint: &Joint) -> HashSet<TaskId> {
    joint.ends.iter().map(|end| end.ended.id).collect()
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

pub(super) fn read_needs(row: &Row) -> Arc<Needs> {
    let names = |column| row.get::<_, Names>(column).0;
    Arc::new(Needs { exclusive: names("exclusive"), shared: names("shared") })
}
