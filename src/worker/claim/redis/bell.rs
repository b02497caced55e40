//! When workers are told that there may be work, by messages that come as fast as
//! somebody dispatches.

use std::time::{Duration, Instant};

use crate::worker::claim::rest::{LAST_REST_OF_BELL, QUIET, backed_off};

/// How long it rests first.
const FIRST_REST_OF_BELL: Duration = Duration::from_millis(1);

/// It rings at once, but where it rings in vain again and again, because what comes has
/// to wait or another process was faster, it rests in between, and rings once for all
/// that was said meanwhile.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// When it rang last, and how many tasks had been started by then.
    rung: Option<(Instant, u64)>,
    /// How often it rang in vain of late.
    n_vain: u32,
    /// When to ring for what was said while it rests.
    due: Option<Instant>,
}

impl Bell {
    /// There may be work, says somebody, when so many tasks have been started.
    pub(super) fn hear(&mut self, now: Instant, n_started: u64) {
        match self.rung {
            Some((at, n)) if n == n_started && now < at + QUIET => {
                if self.due.is_none() {
                    let rest = backed_off(FIRST_REST_OF_BELL, LAST_REST_OF_BELL, self.n_vain);
                    self.due = Some(at + rest);
                    self.n_vain += 1;
                }
            }
            _ => {
                self.due = Some(now);
                self.n_vain = 0;
            }
        }
    }

    /// Whether it is time to ring; then it has rung.
    pub(super) fn rings(&mut self, now: Instant, n_started: u64) -> bool {
        let is_due = self.due.take_if(|due| *due <= now).is_some();
        if is_due {
            self.rung = Some((now, n_started));
        }
        is_due
    }

    /// How long it may be left alone, if nothing more is said.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(now))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn what_leads_to_starts_rings_at_once() {
        let (mut bell, start) = (Bell::default(), Instant::now());
        for n in 0..10 {
            let now = start + ms(n);
            bell.hear(now, n);
            assert!(bell.rings(now, n));
            assert_eq!(bell.rest(now), None);
        }
    }

    #[test]
    fn what_is_said_in_vain_rings_ever_more_seldom_and_is_never_forgotten() {
        let (mut bell, start) = (Bell::default(), Instant::now());
        let mut rung = Vec::new();
        for n in 0..1000 {
            let now = start + ms(n) / 10;
            if n < 900 {
                bell.hear(now, 7);
            }
            if bell.rings(now, 7) {
                rung.push(n);
            }
        }
        assert_eq!(rung, [0, 10, 20 + 10, 70, 150, 310, 470, 630, 790, 950]);
        assert_eq!(bell.rest(start), None);
    }

    #[test]
    fn after_a_start_or_some_quiet_it_rings_at_once_again() {
        let (mut bell, start) = (Bell::default(), Instant::now());
        for n in 0..100 {
            bell.hear(start + ms(n), 7);
            bell.rings(start + ms(n), 7);
        }
        bell.hear(start + ms(100), 7);
        assert!(!bell.rings(start + ms(100), 7));
        bell.hear(start + ms(101), 8);
        assert!(bell.rings(start + ms(101), 8));
        bell.hear(start + ms(102), 8);
        assert_eq!(bell.rest(start + ms(101)), Some(ms(1)));
        assert!(bell.rings(start + ms(102), 8));
        bell.hear(start + ms(160), 8);
        assert!(bell.rings(start + ms(160), 8));
    }
}
