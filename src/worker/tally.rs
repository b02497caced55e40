//! What has become of the tasks that a worker process ran.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers of tasks that a worker process ran to an end, by what became of them.
///
/// A task whose worker lost its claim meanwhile is none of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Their handlers succeeded.
    pub completed: u64,
    /// Their handlers failed, or were ended by a shutdown.
    pub failed: u64,
    /// They were canceled.
    pub canceled: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { completed, failed, canceled } = self;
        write!(f, "{completed} completed, {failed} failed, {canceled} canceled")
    }
}

/// What became of one.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Completed,
    Failed,
    Canceled,
}

/// The tally while it is counted, by all threads.
#[derive(Debug, Default)]
pub(super) struct Count(Mutex<Tally>);

impl Count {
    pub(super) fn add(&self, end: End) {
        let mut tally = self.lock();
        match end {
            End::Completed => tally.completed += 1,
            End::Failed => tally.failed += 1,
            End::Canceled => tally.canceled += 1,
        }
    }

    pub(super) fn tally(&self) -> Tally {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
