//! How a worker waits for what passes: a server that is not there yet, or refuses for
//! the moment, workers of another type that are still online.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Shutdown;
use crate::error::{self, Error};

/// Pauses between two attempts: first, and at most.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Pauses that grow, and a line for each new reason.
pub(super) struct Patience {
    pause: Duration,
    said: String,
}

impl Patience {
    pub(super) fn new() -> Patience {
        Patience { pause: FIRST_PAUSE, said: String::new() }
    }

    /// An attempt has failed: says so, unless that was why the last one failed, and
    /// returns how long to wait before the next.
    pub(super) fn after(&mut self, who: &str, error: &Error) -> Duration {
        let reason = error::chain(error);
        if reason != self.said {
            log::warn!("{who}{reason}; trying again");
            self.said = reason;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST_PAUSE);
        pause
    }

    /// Whether an attempt has failed.
    pub(super) fn was_needed(&self) -> bool {
        !self.said.is_empty()
    }
}

/// Tries until it succeeds or fails for good; none if told to stop meanwhile.
pub(super) fn wait_for<T>(
    requests: &Receiver<Shutdown>,
    mut attempt: impl FnMut() -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let mut patience = Patience::new();
    loop {
        match error::guard("could not start", &mut attempt) {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.is_unavailable() => {
                let pause = patience.after("", &error);
                if requests.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
    }
}
