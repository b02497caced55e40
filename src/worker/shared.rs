//! What the threads of a worker process share, and whom they are told through.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postgres::Client;
use rustix::process::Rlimit;

use super::Control;
use super::caretaker::Caretaker;
use super::cgroup::Cgroups;
use super::claim::{BackEnd, Previous};
use super::directories::Directories;
use super::inbox::{Event, Mailbox};
use super::lease::{Activity, Lease};
use super::notify::Notify;
use super::offer::Offer;
use super::patience::News;
use super::reload::Source;
use super::reports::Reports;
use super::tally::Count;
use super::warden::Warden;
use crate::config::placeholders::{Piece, pieces};
use crate::config::{Config, WorkerType};
use crate::error::Error;

/// Who a worker process is.
pub(crate) struct Identity {
    /// Drawn at each start, shared by its workers.
    pub(crate) process: String,
    pub(crate) hostname: String,
    pub(crate) pid: i32,
    pub(crate) ttl: Duration,
}

impl Identity {
    pub(crate) fn new(ttl: Duration) -> Result<Identity, Error> {
        Ok(Identity {
            process: random_token()?,
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id().cast_signed(),
            ttl,
        })
    }
}

/// Where looks find everything that is incomplete and not parked; by default
/// everywhere. See `sql/functions/10_sight.sql`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sight {
    /// From this position on,
    pub(crate) low: i64,
    /// and at these.
    pub(crate) stragglers: Vec<i64>,
}

/// What the threads of a process share.
pub(crate) struct Shared {
    pub(crate) url: String,
    pub(crate) identity: Identity,
    pub(crate) source: Source,
    pub(crate) offer: Offer,
    pub(crate) cgroups: Option<Cgroups>,
    /// The soft limit of open files that commands get: that which this process had.
    pub(crate) files: Rlimit,
    /// Whether nobody else in this process waits for children.
    pub(crate) owns_process: bool,
    pub(crate) burst: bool,
    pub(crate) auxiliary: bool,
    pub(crate) cancel_grace: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) back_end: Box<dyn BackEnd>,
    pub(crate) warden: Arc<Warden>,
    pub(crate) control: Control,
    pub(super) name_template: String,
    pub(crate) directories: Arc<Directories>,
    pub(super) count: Count,
    pub(crate) reports: Reports,
    pub(super) notify: Notify,
    pub(super) news: News,
    pub(super) caretaker: Caretaker,
    pub(super) sight: Mutex<Arc<Sight>>,
    pub(super) mailboxes: Vec<Mailbox>,
    pub(super) leases: Mutex<BTreeMap<i64, Arc<Lease>>>,
    pub(super) has_ended: AtomicBool,
    pub(super) ended: (Mutex<()>, Condvar),
}

impl Shared {
    /// The name of worker `index`, from the template.
    pub(crate) fn worker_name(&self, index: usize) -> String {
        let hostname = &self.identity.hostname;
        let pieces = pieces(&self.name_template).expect("it was checked");
        let words = pieces.into_iter().map(|piece| match piece {
            Piece::Text(text) => text.to_owned(),
            Piece::Field("pid") => self.identity.pid.to_string(),
            Piece::Field("hostname") => hostname.split('.').next().unwrap_or(hostname).to_owned(),
            Piece::Field("fqdn") => fqdn(hostname),
            Piece::Field(_) => index.to_string(),
        });
        words.collect()
    }

    /// Has the handlers of these settings taken.
    pub(super) fn reload(&self, config: Box<Config>) {
        self.caretaker.reload(config);
        let _guard = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.1.notify_all();
    }

    /// Tells every worker.
    pub(crate) fn tell_all(&self, event: Event) {
        for mailbox in &self.mailboxes {
            mailbox.send(event);
        }
    }

    /// Registers a worker of this process under a new id, and settles first what
    /// its thread had before.
    pub(crate) fn register(
        &self,
        client: &mut Client,
        name: &str,
        worker_type: WorkerType,
        lock_owner: Option<&str>,
        previous: Option<&Previous>,
    ) -> Result<i64, Error> {
        let begun = previous.map(|previous| &previous.begun);
        let task = begun.and_then(|begun| begun.task.as_ref());
        let row = client.query_one(
            include_str!("../../sql/queries/add_worker.sql"),
            &[
                &name,
                &worker_type.as_str(),
                &self.identity.process,
                &self.identity.hostname,
                &self.identity.pid,
                &self.identity.ttl.as_secs_f64(),
                &lock_owner,
                &previous.map(|previous| previous.worker),
                &begun.and_then(|begun| begun.fence),
                &task.map(|(id, ..)| id.0),
                &task.map(|(_, name, _)| name),
                &task.map(|(.., attempt)| attempt),
            ],
        );
        row.map(|row| row.get(0)).map_err(|error| Error::postgres("could not register", error))
    }

    /// Takes the row of a worker away, which owns nothing by now.
    pub(crate) fn sign_off(
        &self,
        client: &mut Client,
        name: &str,
        worker: i64,
    ) -> Result<(), Error> {
        client.execute(include_str!("../../sql/queries/leave.sql"), &[&worker]).map_err(
            |error| Error::postgres(&format!("could not sign off worker {name}"), error),
        )?;
        Ok(())
    }

    /// Where to look, for whoever finds a lease that holds after reading it.
    pub(crate) fn sight(&self) -> Arc<Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_sight(&self, sight: Sight) {
        *self.sight.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(sight);
    }

    /// The leases of the worker ids in use now.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        self.lock_leases().values().cloned().collect()
    }

    /// Worker `index` has registered under this id; the housekeeper hears of it.
    pub(crate) fn joined(&self, index: usize, worker: i64) -> Arc<Lease> {
        let lease = Arc::new(Lease::new(worker, self.mailboxes[index].clone()));
        self.lock_leases().insert(worker, lease.clone());
        let _guard = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.ended.1.notify_all();
        lease
    }

    pub(crate) fn left(&self, worker: i64) {
        self.lock_leases().remove(&worker);
    }

    /// The end of what this worker ran is stored; it may wait for long for what comes next.
    pub(crate) fn end_is_stored(&self, worker: i64) {
        if let Some(lease) = self.lock_leases().get(&worker) {
            lease.set_activity(Activity::Idle);
        }
    }

    /// Whether a worker waits for its first heartbeat.
    pub(crate) fn has_fresh_leases(&self) -> bool {
        self.lock_leases().values().any(|lease| lease.is_fresh())
    }

    fn lock_leases(&self) -> MutexGuard<'_, BTreeMap<i64, Arc<Lease>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all worker threads have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Waits for `time`, or until all worker threads have ended.
    pub(crate) fn pause(&self, time: Duration) {
        self.pause_unless(time, || false);
    }

    /// The same, or until `reason` holds.
    pub(crate) fn pause_unless(&self, time: Duration, reason: impl Fn() -> bool) {
        let guard = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Woken early or for nothing: the callers look at the time themselves.
        let condition = |(): &mut ()| !self.has_ended() && !reason();
        drop(self.ended.1.wait_timeout_while(guard, time, condition));
    }

    pub(super) fn end(&self) {
        let _guard = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_ended.store(true, Ordering::Release);
        self.reports.close();
        self.ended.1.notify_all();
    }
}

/// The host's full name: its own if it has a dot, else with the domain that the
/// kernel knows.
fn fqdn(hostname: &str) -> String {
    let domain = rustix::system::uname().domainname().to_string_lossy().into_owned();
    if hostname.contains('.') || domain.is_empty() || domain == "(none)" {
        return hostname.to_owned();
    }
    format!("{hostname}.{domain}")
}

/// A UUID from the kernel.
pub(crate) fn random_token() -> Result<String, Error> {
    let path = "/proc/sys/kernel/random/uuid";
    let token = std::fs::read_to_string(path)
        .map_err(|error| Error::system(&format!("could not read {path}"), error))?;
    Ok(token.trim().to_owned())
}
