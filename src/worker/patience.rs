//! How a worker waits for what passes: a server that is not there yet, or refuses for
//! the moment, workers of another type that are still online.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Request;
use crate::config::Config;
use crate::error::{self, Error};

/// Pauses between two attempts: first, and at most.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(super) const LAST_PAUSE: Duration = Duration::from_secs(2);

/// Pauses that grow.
pub(super) struct Patience {
    pause: Duration,
    was_needed: bool,
}

/// What was said last of what is waited for: many threads wait for the same, and one line
/// says so.
#[derive(Default)]
pub(super) struct News(Mutex<String>);

impl Patience {
    pub(super) fn new() -> Patience {
        Patience { pause: FIRST_PAUSE, was_needed: false }
    }

    /// An attempt has failed: says so, unless that is no news, and returns how long to wait
    /// before the next.
    pub(super) fn after(&mut self, news: &News, error: &Error) -> Duration {
        let reason = error::chain(error);
        let mut said = news.lock();
        if reason != *said {
            log::warn!("{reason}; trying again");
            *said = reason;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST_PAUSE);
        self.was_needed = true;
        pause
    }

    /// Whether an attempt has failed.
    pub(super) fn was_needed(&self) -> bool {
        self.was_needed
    }
}

impl News {
    /// An attempt has succeeded; says so where trouble was told of.
    pub(super) fn is_over(&self) {
        if !std::mem::take(&mut *self.lock()).is_empty() {
            log::info!("connected again");
        }
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries until it succeeds or fails for good; none if told to stop meanwhile. Settings that
/// come meanwhile are for later (`reload`).
pub(super) fn wait_for<T>(
    requests: &Receiver<Request>,
    reload: &mut Option<Box<Config>>,
    mut attempt: impl FnMut() -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    let (mut patience, news) = (Patience::new(), News::default());
    loop {
        match error::guard("could not start", &mut attempt) {
            Ok(value) => return Ok(Some(value)),
            Err(error) if error.is_unavailable() => {
                let pause = patience.after(&news, &error);
                match requests.recv_timeout(pause) {
                    Ok(Request::Reload(config)) => *reload = Some(config),
                    Err(RecvTimeoutError::Timeout) => {}
                    _ => return Ok(None),
                }
            }
            Err(error) => return Err(error),
        }
    }
}
