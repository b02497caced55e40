//! Tells systemd how a worker process is, where it is a unit of `Type=notify`: ready, busy,
//! alive, and that it is ending and may take its time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

use super::Shared;
use super::clock::Moment;
use super::lease::Activity;

/// How often it looks until the process is ready, and from then on at most.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
const LAST_INTERVAL: Duration = Duration::from_secs(5);
/// How much time is asked for at once while running tasks are waited for; far more than it
/// takes to ask again.
const EXTENSION: Duration = Duration::from_secs(60);

/// Whether and what to tell.
pub(crate) struct Notify {
    is_wanted: bool,
    watchdog: Option<Duration>,
    /// When the housekeeper came round last.
    turned: Mutex<Moment>,
    is_stopping: AtomicBool,
}

impl Notify {
    /// An embedded worker leaves this to its program.
    pub(super) fn new(owns_process: bool) -> Notify {
        let is_wanted = owns_process && std::env::var_os("NOTIFY_SOCKET").is_some();
        Notify {
            is_wanted,
            watchdog: sd_notify::watchdog_enabled().filter(|_| is_wanted),
            turned: Mutex::new(Moment::now()),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// The housekeeper's loop has come round, with or without a server.
    pub(super) fn housekeeper_turned(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now();
    }

    /// Nothing new is taken.
    pub(super) fn stopping(&self) {
        if !self.is_stopping.swap(true, Ordering::AcqRel) {
            self.tell(&[NotifyState::Stopping]);
        }
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.is_wanted
            && let Err(error) = sd_notify::notify(states)
        {
            log::debug!("could not tell the service manager: {error}");
        }
    }
}

/// Tells it until the workers have left.
pub(super) fn keep_informed(shared: &Arc<Shared>) {
    let notify = &shared.notify;
    let mut is_ready = false;
    let mut told = String::new();
    while notify.is_wanted && !shared.has_ended() {
        let mut states = Vec::new();
        let leases = shared.leases();
        if !is_ready && leases.iter().any(|lease| lease.is_held()) {
            is_ready = true;
            states.push(NotifyState::Ready);
        }
        let is_busy = |activity| matches!(activity, Activity::Runs(_));
        let n_busy = leases.iter().filter(|lease| is_busy(lease.activity())).count();
        let status = format!("{n_busy} of {} threads busy", shared.mailboxes.len());
        if is_ready && status != told {
            told.clone_from(&status);
            states.push(NotifyState::Status(&told));
        }
        // Heartbeats come each third of a ttl; where none was even tried for a whole one,
        // something stands still that nothing else would notice. Whether a server answers
        // is no matter: running tasks go on without.
        let turned = *notify.turned.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = shared.identity.ttl.max(EXTENSION);
        if notify.watchdog.is_some() && !turned.after(patience).has_passed() {
            states.push(NotifyState::Watchdog);
        }
        if notify.is_stopping.load(Ordering::Acquire) {
            states.push(NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32));
        }
        if !states.is_empty() {
            notify.tell(&states);
        }
        let interval = match notify.watchdog {
            _ if !is_ready => FIRST_INTERVAL,
            Some(watchdog) => (watchdog / 3).min(LAST_INTERVAL),
            None => LAST_INTERVAL,
        };
        let was_stopping = notify.is_stopping.load(Ordering::Acquire);
        let is_news = || notify.is_stopping.load(Ordering::Acquire) != was_stopping;
        shared.pause_unless(interval, is_news);
    }
}
