//! A worker process: its threads, and how it starts and ends.
//!
//! | thread | does | blocks on |
//! |---|---|---|
//! | the caller of [`Worker::run`] | starts and stops the others | the control channel |
//! | `worker-N`, one for each worker | claim, run, end; see `thread.rs` | its inbox, its connection, its task |
//! | `listener` | passes wake-ups and cancels on | its connection |
//! | `housekeeper` | heartbeats, the safety poll, sweeping | its connection |
//! | `warden-watch` | replaces a warden that died | the warden process |
//!
//! The threads share one `Shared`; who is idle is known to its `BackEnd`, and who
//! may act at all to its `Lease`s.

pub(crate) mod claim;
mod command;
mod housekeeper;
pub(crate) mod inbox;
mod lease;
mod listener;
mod run;
mod thread;
pub mod warden;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use postgres::Client;

use crate::config::{Config, WorkerType};
use crate::error::{self, Error};
use crate::registry::Registry;
use crate::{db, migrate};
use claim::postgres::PostgresBackEnd;
use claim::redis::RedisBackEnd;
use claim::{BackEnd, Previous};
use inbox::{Event, Inbox, Mailbox};
use lease::Lease;
use warden::Warden;

/// How often a thread that waits for a server looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);

/// How a worker process should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Take nothing new; running tasks may go on for `stop_after`, or for ever.
    Drain,
    /// Take nothing new; running tasks may go on for `task_grace_interval`.
    Grace,
    /// End running tasks at once; they fail.
    Now,
}

/// Stops a [`Worker`] from another thread.
#[derive(Debug, Clone)]
pub struct Control {
    sender: Sender<Shutdown>,
}

impl Control {
    /// Asks the workers to end; a second, more urgent call hastens them.
    pub fn stop(&self, shutdown: Shutdown) {
        // A worker process that has ended already needs no telling.
        let _ = self.sender.send(shutdown);
    }
}

/// Runs tasks on `threads` worker threads until it is told to stop.
///
/// Making one opens and starts nothing; [`Worker::run`] does.
pub struct Worker {
    config: Config,
    registry: Registry,
    burst: bool,
    auxiliary: bool,
    warden: Option<Vec<OsString>>,
    control: Control,
    requests: Receiver<Shutdown>,
}

/// Who a worker process is.
pub(crate) struct Identity {
    /// Drawn at each start, shared by its workers.
    pub(crate) process: String,
    pub(crate) hostname: String,
    pub(crate) pid: i32,
    pub(crate) ttl: Duration,
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
    pub(crate) registry: Registry,
    pub(crate) handlers: Vec<String>,
    pub(crate) burst: bool,
    pub(crate) auxiliary: bool,
    pub(crate) cancel_grace: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) back_end: Box<dyn BackEnd>,
    pub(crate) warden: Arc<Warden>,
    pub(crate) control: Control,
    name_template: String,
    working_directory: PathBuf,
    sight: Mutex<Arc<Sight>>,
    mailboxes: Vec<Mailbox>,
    leases: Mutex<BTreeMap<i64, Arc<Lease>>>,
    has_ended: AtomicBool,
    ended: (Mutex<()>, Condvar),
}

impl Worker {
    /// A worker with the handlers of `registry` and the commands of `config`.
    #[must_use]
    pub fn new(config: Config, mut registry: Registry) -> Worker {
        for (name, command) in &config.handlers {
            registry.register_command(name, command.clone());
        }
        let (sender, requests) = crossbeam_channel::unbounded();
        Worker {
            config,
            registry,
            burst: false,
            auxiliary: false,
            warden: None,
            control: Control { sender },
            requests,
        }
    }

    /// End when nothing is left that could run.
    #[must_use]
    pub fn burst(mut self, burst: bool) -> Worker {
        self.burst = burst;
        self
    }

    /// Leave sweeping to others.
    #[must_use]
    pub fn auxiliary(mut self, auxiliary: bool) -> Worker {
        self.auxiliary = auxiliary;
        self
    }

    /// The command that starts a warden, the small process that outlives this
    /// one for a moment, kills its commands and settles its tasks. It has to
    /// come to [`warden::run`]; while no warden runs, nothing new is taken.
    ///
    /// If it is not given, a worker with command handlers starts `millhand
    /// warden`, with the program found in the PATH, and one whose handlers are
    /// all functions starts none. It needs none: functions die with their
    /// process. But without a warden nobody knows at once that they have, and
    /// the tasks of a process that was killed keep their resources until its
    /// ttl has passed and another worker sweeps them.
    #[must_use]
    pub fn warden(mut self, command: Vec<OsString>) -> Worker {
        self.warden = Some(command);
        self
    }

    /// What stops this worker, from any thread.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Runs tasks until told to stop, or, with burst, until nothing is left.
    pub fn run(self) -> Result<(), Error> {
        self.config.check()?;
        let url = self.config.database_url()?.to_owned();
        migrate::check(&mut db::connect(&url, "millhand")?)?;
        let identity = Identity {
            process: random_token()?,
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id().cast_signed(),
            ttl: self.config.ttl,
        };
        let mut mailboxes = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..self.config.threads {
            let (mailbox, inbox) = Inbox::new().map_err(|error| Error::Unavailable {
                doing: "could not make a worker's inbox".to_owned(),
                source: error.into(),
            })?;
            mailboxes.push(mailbox);
            inboxes.push(inbox);
        }
        let back_end: Box<dyn BackEnd> = match self.config.worker_type {
            WorkerType::Postgres => Box::new(PostgresBackEnd::new(mailboxes.clone())),
            WorkerType::Redis => Box::new(RedisBackEnd::new(&self.config, mailboxes.clone())?),
        };
        let default = || vec![OsString::from("millhand"), OsString::from("warden")];
        let warden = self.warden.filter(|command| !command.is_empty());
        let warden = warden.or_else(|| self.registry.has_commands().then(default));
        let working_directory =
            self.config.working_directory.clone().unwrap_or_else(std::env::temp_dir);
        // The warden has another current directory.
        let working_directory =
            std::path::absolute(&working_directory).unwrap_or(working_directory);
        let warden = Warden::start(
            warden.unwrap_or_default(),
            identity.process.clone(),
            identity.ttl,
            warden_settings(&self.config, &url, &working_directory),
        )?;
        let handlers: Vec<String> = self.registry.names().map(str::to_owned).collect();
        log::info!(
            "{} worker threads of type {} on {}, handlers {}",
            self.config.threads,
            self.config.worker_type.as_str(),
            db::place(&url),
            handlers.join(" ")
        );
        let shared = Arc::new(Shared {
            url,
            identity,
            registry: self.registry,
            handlers,
            burst: self.burst,
            auxiliary: self.auxiliary,
            cancel_grace: self.config.cancel_grace_interval,
            poll_interval: self.config.poll_interval,
            back_end,
            warden,
            control: self.control,
            name_template: self.config.name_template.clone(),
            working_directory,
            sight: Mutex::default(),
            mailboxes,
            leases: Mutex::default(),
            has_ended: AtomicBool::new(false),
            ended: (Mutex::new(()), Condvar::new()),
        });
        let result = supervise(&shared, inboxes, &self.requests, &self.config);
        match &result {
            Ok(()) => shared.warden.end(true),
            // Something may be owned still: the warden knows what to do.
            Err(_) => shared.warden.end(false),
        }
        log::info!("stopped");
        result
    }
}

/// What a warden has to know of the settings: where tasks and locks are.
fn warden_settings(config: &Config, url: &str, directory: &Path) -> Vec<(&'static str, OsString)> {
    let mut settings = vec![
        ("MILLHAND_DATABASE_URL", url.into()),
        ("MILLHAND_WORKING_DIRECTORY", directory.into()),
    ];
    if let (WorkerType::Redis, Some(redis_url)) = (config.worker_type, &config.redis_url) {
        settings.push(("MILLHAND_REDIS_URL", redis_url.into()));
        settings.push(("MILLHAND_REDIS_PREFIX", config.redis_prefix.clone().into()));
    }
    settings
}

/// Starts the threads, passes requests to stop on to them, and waits for them.
fn supervise(
    shared: &Arc<Shared>,
    inboxes: Vec<Inbox>,
    requests: &Receiver<Shutdown>,
    config: &Config,
) -> Result<(), Error> {
    let (ended_sender, ended) = crossbeam_channel::unbounded();
    let n_threads = inboxes.len();
    let mut n_ended = 0;
    let mut result = Ok(());
    std::thread::scope(|scope| {
        let spawn = |name: String| std::thread::Builder::new().name(name).stack_size(1 << 20);
        let mut started = 0;
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let ended = EndNotice { sender: ended_sender.clone(), result: None };
            let worker = spawn(format!("worker-{index}")).spawn_scoped(scope, move || {
                let mut ended = ended;
                ended.result = Some(thread::work(shared, index, &inbox));
            });
            match worker {
                Ok(_) => started += 1,
                Err(error) => {
                    result = Err(Error::Unavailable {
                        doing: "could not start a worker thread".to_owned(),
                        source: error.into(),
                    });
                    shared.control.stop(Shutdown::Now);
                    break;
                }
            }
        }
        let helpers = [
            ("listener", listener::listen as fn(&Arc<Shared>)),
            ("housekeeper", housekeeper::keep_house),
        ];
        for (name, helper) in helpers {
            if let Err(error) = spawn(name.to_owned()).spawn_scoped(scope, move || helper(shared)) {
                log::error!("could not start the {name}: {error}");
                shared.control.stop(Shutdown::Now);
            }
        }
        let mut stop = Stop::default();
        while n_ended < started {
            let never = crossbeam_channel::never();
            let at_deadline = stop.deadline.map_or(never, crossbeam_channel::at);
            crossbeam_channel::select! {
                recv(requests) -> request => {
                    if let Ok(request) = request {
                        stop.begin(request, shared, config);
                    }
                }
                recv(ended) -> thread => {
                    n_ended += 1;
                    let thread: Option<Result<(), Error>> = thread.unwrap_or_default();
                    let error = match thread {
                        Some(Ok(())) => continue,
                        Some(Err(error)) => error,
                        None => Error::Bug {
                            doing: "a worker thread panicked".to_owned(),
                            source: "see the log".into(),
                        },
                    };
                    // One thread that cannot go on ends the process: its
                    // supervisor should hear of it.
                    if n_ended < n_threads && result.is_ok() {
                        log::error!("{}; stopping", error::chain(&error));
                    }
                    if result.is_ok() {
                        result = Err(error);
                    }
                    stop.begin(Shutdown::Drain, shared, config);
                }
                recv(at_deadline) -> _ => stop.begin(Shutdown::Now, shared, config),
            }
        }
        shared.end();
    });
    result
}

/// Says how a worker thread ended, also when it panics.
struct EndNotice {
    sender: Sender<Option<Result<(), Error>>>,
    result: Option<Result<(), Error>>,
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        let _ = self.sender.send(self.result.take());
    }
}

/// How far a shutdown has come.
#[derive(Default)]
struct Stop {
    stage: Option<Shutdown>,
    deadline: Option<Instant>,
}

impl Stop {
    /// A request only ever hastens the end.
    fn begin(&mut self, request: Shutdown, shared: &Shared, config: &Config) {
        let request = match (request, self.stage) {
            (Shutdown::Grace, Some(Shutdown::Grace)) => Shutdown::Now,
            (request, _) => request,
        };
        if self.stage >= Some(request) {
            return;
        }
        self.stage = Some(request);
        match request {
            Shutdown::Drain => {
                log::info!("taking nothing new, waiting for running tasks");
                self.deadline = config.stop_after.map(|after| Instant::now() + after);
                shared.tell_all(Event::Drain);
            }
            Shutdown::Grace => {
                let grace = config.task_grace_interval;
                log::info!(
                    "taking nothing new, waiting {} for running tasks",
                    humantime::format_duration(grace)
                );
                self.deadline = Some(Instant::now() + grace);
                shared.tell_all(Event::Drain);
            }
            Shutdown::Now => {
                log::info!("ending running tasks");
                self.deadline = None;
                shared.tell_all(Event::Abort);
            }
        }
    }
}

impl Shared {
    /// The name of worker `index`, from the template.
    pub(crate) fn worker_name(&self, index: usize) -> String {
        let hostname = &self.identity.hostname;
        self.name_template
            .replace("{pid}", &self.identity.pid.to_string())
            .replace("{hostname}", hostname.split('.').next().unwrap_or(hostname))
            .replace("{fqdn}", &fqdn(hostname))
            .replace("{thread}", &index.to_string())
    }

    /// A fresh directory for a task, removed when dropped.
    pub(crate) fn working_directory(&self) -> Result<tempfile::TempDir, String> {
        tempfile::Builder::new()
            .prefix(&warden::directory_prefix(&self.identity.process))
            .tempdir_in(&self.working_directory)
            .map_err(|error| {
                format!(
                    "could not make a working directory in {}: {error}; \
                     make room there or set `working_directory`",
                    self.working_directory.display()
                )
            })
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
        worker_type: &str,
        lock_owner: Option<&str>,
        previous: Option<Previous>,
    ) -> Result<i64, postgres::Error> {
        let row = client.query_one(
            include_str!("../sql/queries/register_worker.sql"),
            &[
                &name,
                &worker_type,
                &self.identity.process,
                &self.identity.hostname,
                &self.identity.pid,
                &self.identity.ttl.as_secs_f64(),
                &lock_owner,
                &previous.map(|previous| previous.worker),
                &previous.and_then(|previous| previous.begun).map(|id| id.0),
            ],
        )?;
        Ok(row.get(0))
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

    fn end(&self) {
        let _guard = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_ended.store(true, Ordering::Release);
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
    let token = std::fs::read_to_string(path).map_err(|error| Error::Unavailable {
        doing: format!("could not read {path}"),
        source: error.into(),
    })?;
    Ok(token.trim().to_owned())
}
