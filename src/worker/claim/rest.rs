//! Rests: after something was in vain, it is not tried again at once.

use std::time::Duration;

/// How long the bell rests at most when it rings in vain again and again, each time
/// within `QUIET` of the time before. Who dispatches thousands of tasks a second that
/// nobody here can start yet would otherwise be held up by a look at each of them. A task
/// that could start may wait for so long in that case.
pub(super) const LAST_REST_OF_BELL: Duration = Duration::from_millis(16);
pub(super) const QUIET: Duration = Duration::from_millis(50);

/// The pause after `n` before it: each twice as long, up to the last.
pub(super) fn backed_off(first: Duration, last: Duration, n: u32) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(last)
}
