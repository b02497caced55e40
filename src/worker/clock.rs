//! The clock that leases and deaths are measured by.
//!
//! It is the host's own, and the same for all its processes: a worker and its warden
//! mean the same moment by the same number. Nobody can set it, and it goes on while the
//! host sleeps (`CLOCK_BOOTTIME`), as the clocks of others do. A virtual machine that is
//! paused without being told stops it; that is what fencing tokens are for.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on that clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    pub(crate) fn now() -> Moment {
        let time = clock_gettime(ClockId::Boottime);
        // It counts from the start of the host, so it is never negative.
        Moment(Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32))
    }

    pub(crate) fn after(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(duration))
    }

    pub(crate) fn has_passed(self) -> bool {
        self <= Moment::now()
    }

    /// Nanoseconds since the host's start, to tell another process of it.
    pub(crate) fn to_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn from_nanos(nanos: u64) -> Moment {
        Moment(Duration::from_nanos(nanos))
    }
}
