//! Rests: after something was in vain, it is not tried again at once.

use std::time::Duration;

/// How long the bell rests when it rings in vain again and again, each time within
/// `QUIET` of the time before: first, and at most. Who dispatches thousands of tasks a
/// second that nobody here can start yet would otherwise be held up by a look at each of
/// them. The most is what a task that could start may wait for in that case.
const FIRST_REST_OF_BELL: Duration = Duration::from_millis(1);
pub(super) const LAST_REST_OF_BELL: Duration = Duration::from_millis(16);
pub(super) const QUIET: Duration = Duration::from_millis(50);

/// The `n`th rest of the bell, from 0. Where a ring in vain costs much, they begin later.
pub(super) fn rest_of_bell(n: u32) -> Duration {
    backed_off(FIRST_REST_OF_BELL, LAST_REST_OF_BELL, n)
}

/// The pause after `n` before it: each twice as long, up to the last.
pub(super) fn backed_off(first: Duration, last: Duration, n: u32) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(last)
}
