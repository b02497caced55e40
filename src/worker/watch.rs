//! What a sweeper has seen of the workers of the fleet.
//!
//! A worker is dead when its heartbeat, which counts, has stood still for the worker's
//! whole ttl while somebody watched, by that somebody's own clock. Nobody's wall clock
//! takes part.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::clock::Moment;

/// Pauses before a worker that could not be settled is tried again: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// The heartbeat of an owner of tasks that is no worker.
pub(super) const NO_WORKER: i64 = -1;

#[derive(Default)]
pub(super) struct Watch {
    seen: HashMap<i64, Seen>,
}

struct Seen {
    heartbeat: i64,
    ttl: Duration,
    /// The first look that showed this heartbeat had ended by then,
    first: Moment,
    /// and the last one began then.
    last: Moment,
    /// When it may be tried to be settled again, after that was in vain.
    retry: Option<(Moment, Duration)>,
}

impl Watch {
    /// A look that began and ended then showed these workers, their heartbeats and ttls.
    /// Others are gone.
    pub(super) fn look(
        &mut self,
        (began, ended): (Moment, Moment),
        workers: impl Iterator<Item = (i64, i64, Duration)>,
    ) {
        let mut there = HashSet::new();
        for (id, heartbeat, ttl) in workers {
            there.insert(id);
            match self.seen.get_mut(&id).filter(|seen| seen.heartbeat == heartbeat) {
                Some(seen) => seen.last = began,
                None => {
                    let seen = Seen { heartbeat, ttl, first: ended, last: began, retry: None };
                    self.seen.insert(id, seen);
                }
            }
        }
        self.seen.retain(|id, _| there.contains(id));
    }

    /// Who is dead: its id, and the heartbeat that it stands at. Those that could not be
    /// settled come last, and not at every look.
    pub(super) fn missing(&self) -> Vec<(i64, i64)> {
        let missing = self.seen.iter().filter(|(_, seen)| {
            seen.is_missing() && seen.retry.is_none_or(|(moment, _)| moment.has_passed())
        });
        let mut missing: Vec<_> =
            missing.map(|(id, seen)| (seen.retry.is_some(), *id, seen.heartbeat)).collect();
        missing.sort_unstable();
        missing.into_iter().map(|(_, id, heartbeat)| (id, heartbeat)).collect()
    }

    pub(super) fn is_missing(&self, id: i64) -> bool {
        self.seen.get(&id).is_some_and(Seen::is_missing)
    }

    /// Whether it is missing for so long that nobody can be waited for who should have
    /// settled it.
    pub(super) fn is_long_missing(&self, id: i64) -> bool {
        self.seen.get(&id).is_some_and(|seen| seen.stood_still_for(seen.ttl.mul_f64(1.5)))
    }

    /// When the last look began that showed it.
    pub(super) fn last_seen(&self, id: i64) -> Moment {
        self.seen.get(&id).map_or_else(|| Moment::from_nanos(0), |seen| seen.last)
    }

    /// It could not be settled; whether that is news.
    pub(super) fn could_not_settle(&mut self, id: i64) -> bool {
        let Some(seen) = self.seen.get_mut(&id) else { return false };
        let pause = seen.retry.map_or(FIRST_PAUSE, |(_, pause)| (pause * 2).min(LAST_PAUSE));
        seen.retry.replace((Moment::now().after(pause), pause)).is_none()
    }

    pub(super) fn forget(&mut self, id: i64) {
        self.seen.remove(&id);
    }
}

impl Seen {
    fn is_missing(&self) -> bool {
        self.stood_still_for(self.ttl)
    }

    fn stood_still_for(&self, time: Duration) -> bool {
        self.last >= self.first.after(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn in_s(seconds: u64) -> (Moment, Moment) {
        let moment = |nanos| Moment::from_nanos(seconds * 1_000_000_000 + nanos);
        (moment(0), moment(1000))
    }

    #[test]
    fn who_stands_still_for_a_whole_ttl_is_missing() {
        let mut watch = Watch::default();
        watch.look(in_s(0), [(1, 7, TTL), (2, 7, TTL), (3, 7, TTL)].into_iter());
        assert_eq!(watch.missing(), []);
        watch.look(in_s(29), [(1, 7, TTL), (2, 8, TTL), (3, 7, TTL)].into_iter());
        assert_eq!(watch.missing(), []);
        watch.look(in_s(31), [(1, 7, TTL), (2, 8, TTL), (4, 0, TTL)].into_iter());
        assert_eq!(watch.missing(), [(1, 7)]);
    }

    #[test]
    fn one_that_cannot_be_settled_is_told_once_and_tried_again_later() {
        let mut watch = Watch::default();
        watch.look(in_s(0), [(1, 7, TTL), (2, 7, TTL)].into_iter());
        watch.look(in_s(31), [(1, 7, TTL), (2, 7, TTL)].into_iter());
        assert_eq!(watch.missing(), [(1, 7), (2, 7)]);
        assert!(watch.could_not_settle(1));
        assert!(!watch.could_not_settle(1));
        assert_eq!(watch.missing(), [(2, 7)]);
        assert!(watch.is_missing(1));
    }
}
