//! A worker process: its threads, and how it starts and ends.
//!
//! | thread | does | blocks on |
//! |---|---|---|
//! | the caller of [`Worker::run`] | starts and stops the others | the control channel |
//! | `worker-N`, one for each worker | claim, run, end; see `thread.rs` | its inbox, its connection, its task |
//! | `listener` | passes wake-ups and cancels on | its connection |
//! | `housekeeper` | heartbeats, the safety poll, sweeping | its connection |
//! | `caretaker` | what begins again, handlers read anew, orphans, remains | file systems |
//! | `warden-watch` | replaces a warden that died | the warden process |
//!
//! The threads share one `Shared`; who is idle is known to its `BackEnd`, and who
//! may act at all to its `Lease`s.

mod account;
pub(crate) mod args;
mod caretaker;
mod cgroup;
pub(crate) mod claim;
mod clock;
mod command;
mod directories;
mod housekeeper;
pub(crate) mod inbox;
mod lease;
mod limits;
mod listener;
mod mark;
mod notify;
mod offer;
mod orphans;
mod patience;
mod reload;
pub(crate) mod reports;
pub(crate) mod run;
mod shared;
mod sweeper;
mod tail;
mod tally;
mod thread;
pub mod warden;
mod watch;

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::config::{Config, WorkerType};
use crate::error::{self, Error};
use crate::lock_store::LockStore;
use crate::registry::Registry;
use crate::{db, migrate};
use caretaker::Caretaker;
use cgroup::Cgroups;
use claim::BackEnd;
use claim::postgres::{PostgresBackEnd, Way};
use claim::redis::RedisBackEnd;
use command::{Plan, Reach};
use directories::Directories;
use inbox::{Event, Inbox, Mailbox};
use lease::Activity;
use notify::Notify;
use offer::Offer;
use reload::Source;
use reports::Reports;
pub(crate) use shared::{Identity, Shared, Sight, random_token};
use tally::Count;
pub use tally::Tally;
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

/// Stops a [`Worker`] from another thread, or gives it other handlers.
#[derive(Debug, Clone)]
pub struct Control {
    sender: Sender<Request>,
}

/// What a worker process is asked for.
#[derive(Debug)]
enum Request {
    Stop(Shutdown),
    Reload(Box<Config>),
}

impl Control {
    /// Asks the workers to end; a second, more urgent call hastens them.
    pub fn stop(&self, shutdown: Shutdown) {
        // A worker process that has ended already needs no telling.
        let _ = self.sender.send(Request::Stop(shutdown));
    }

    /// Asks the worker to take the command handlers of these settings, which were read anew,
    /// instead of those that it has from its own ([`Worker::commands`]).
    ///
    /// What runs goes on as it began. Handlers that could not run are refused as a whole, and
    /// the worker keeps those that it has. Other settings stay what they were at the start.
    /// The log says what has changed.
    pub fn reload(&self, config: Config) {
        let _ = self.sender.send(Request::Reload(Box::new(config)));
    }
}

/// Runs tasks on `threads` worker threads until it is told to stop.
///
/// Making one opens and starts nothing; [`Worker::run`] does.
pub struct Worker {
    config: Config,
    registry: Registry,
    commands: bool,
    burst: bool,
    auxiliary: bool,
    warden: Option<Vec<OsString>>,
    owns_process: bool,
    control: Control,
    requests: Receiver<Request>,
}

impl Worker {
    /// A worker with the handlers of `registry`. The commands of `config` are left to workers
    /// that ask for them: see [`Worker::commands`].
    #[must_use]
    pub fn new(config: Config, registry: Registry) -> Worker {
        let (sender, requests) = crossbeam_channel::unbounded();
        Worker {
            config,
            registry,
            commands: false,
            burst: false,
            auxiliary: false,
            warden: None,
            owns_process: false,
            control: Control { sender },
            requests,
        }
    }

    /// Whether to run the command handlers of the configuration, too, as `millhand worker`
    /// does; of two of one name they replace that of the registry.
    ///
    /// By default it does not: a program that reads its settings by [`Config::load`] may find
    /// a config file that was meant for other workers.
    #[must_use]
    pub fn commands(mut self, commands: bool) -> Worker {
        self.commands = commands;
        self
    }

    /// End when nothing is left that could run.
    #[must_use]
    pub fn burst(mut self, burst: bool) -> Worker {
        self.burst = burst;
        self
    }

    /// Leave sweeping to others, of which at least one should be online.
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

    /// Whether this process does nothing else and has no children of its own: then it takes
    /// note of the death of every orphan that comes to it, as the first process of a
    /// container has to.
    #[must_use]
    pub fn owns_process(mut self, owns_process: bool) -> Worker {
        self.owns_process = owns_process;
        self
    }

    /// What stops this worker, from any thread.
    #[must_use]
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Runs tasks until told to stop, or, with burst, until nothing is left; returns what
    /// became of those that it ran.
    pub fn run(self) -> Result<Tally, Error> {
        self.config.check()?;
        let url = self.config.database_url()?.to_owned();
        // What is wrong with the settings is said before anything is waited for.
        let connector = db::Connector::new(&url, "millhand")?;
        for place in connector.unverified() {
            log::warn!(
                "{place} could be anybody: sslmode=require encrypts and does not verify whom it \
                 talks to; verify-full does"
            );
        }
        if self.config.worker_type == WorkerType::Redis {
            LockStore::new(&self.config)?;
        }
        let default = || vec![OsString::from("millhand"), OsString::from("warden")];
        let warden = self.warden.filter(|command| !command.is_empty());
        let program = warden.as_ref().and_then(|command| command.first());
        let source = Source::new(&self.config, &url, self.registry, self.commands, program);
        let runnables = source.runnables(&self.config)?;
        let has_commands = source.may_have_commands();
        let warden = warden.or_else(|| has_commands.then(default));
        let working_directory =
            self.config.working_directory.clone().unwrap_or_else(std::env::temp_dir);
        // The warden has another current directory.
        let working_directory =
            std::path::absolute(&working_directory).unwrap_or(working_directory);
        if has_commands {
            mark::check()?;
            orphans::adopt()?;
        }
        let files = limits::raise_files(self.config.threads);
        let prepare = || {
            let mut client = db::connect(&url, "millhand")?;
            db::pooler::check_sessions(&mut client, &url)?;
            migrate::prepare(&mut client)?;
            // A warden that an attempt in vain has left behind is of another process.
            let identity = Identity::new(self.config.ttl)?;
            let mut mailboxes = Vec::new();
            let mut inboxes = Vec::new();
            for _ in 0..self.config.threads {
                let (mailbox, inbox) = Inbox::new()
                    .map_err(|error| Error::system("could not make a worker's inbox", error))?;
                mailboxes.push(mailbox);
                inboxes.push(inbox);
            }
            let back_end = open_back_end(&self.config, self.auxiliary, &identity, &mailboxes)?;
            let warden = Warden::start(
                warden.clone().unwrap_or_default(),
                identity.process.clone(),
                identity.ttl,
                warden_settings(&self.config, &url, &working_directory)?,
            )?;
            limits::check_connections(&mut client, self.config.worker_type, self.config.threads)?;
            Ok(Prepared { identity, mailboxes, inboxes, back_end, warden })
        };
        let mut reload = None;
        // Whoever runs what there is, and no more, decides itself how long to wait.
        let prepared = if self.burst {
            Some(error::guard("could not start", prepare)?)
        } else {
            patience::wait_for(&self.requests, &mut reload, prepare)?
        };
        let Some(Prepared { identity, mailboxes, inboxes, back_end, warden }) = prepared else {
            return Ok(Tally::default());
        };
        let directories = Arc::new(Directories::new(working_directory, &identity.process));
        let offer = Offer::new(runnables, directories.clone());
        let handlers = offer.handlers();
        log::info!(
            "{} of type {} on {}, handlers {}",
            plural(self.config.threads, "worker thread"),
            self.config.worker_type.as_str(),
            db::place(&url),
            handlers.join(" ")
        );
        match &self.config.file {
            _ if !self.commands => {}
            Some(file) => log::info!("the config file is {}", file.display()),
            None => log::warn!(
                "there is no config file (./millhand.toml, /etc/millhand/millhand.toml, --config), \
                 and so no handler but those for trying things out, which begin with `millhand.`"
            ),
        }
        let shared = Arc::new(Shared {
            url,
            cgroups: if has_commands { Cgroups::make(&identity.process) } else { None },
            identity,
            source,
            offer,
            files,
            owns_process: self.owns_process,
            burst: self.burst,
            auxiliary: self.auxiliary,
            cancel_grace: self.config.cancel_grace_interval,
            poll_interval: self.config.poll_interval,
            back_end,
            warden,
            control: self.control,
            name_template: self.config.name_template.clone(),
            directories,
            count: Count::default(),
            reports: Reports::default(),
            notify: Notify::new(self.owns_process),
            news: patience::News::default(),
            caretaker: Caretaker::new(),
            sight: Mutex::default(),
            mailboxes,
            leases: Mutex::default(),
            has_ended: AtomicBool::new(false),
            ended: (Mutex::new(()), Condvar::new()),
        });
        if let Some(config) = reload {
            shared.reload(config);
        }
        let result = supervise(&shared, inboxes, &self.requests, &self.config);
        match &result {
            Ok(()) => shared.warden.end(true),
            // Something may be owned still: the warden knows what to do.
            Err(_) => shared.warden.end(false),
        }
        if let (Ok(()), Some(cgroups)) = (&result, &shared.cgroups) {
            cgroups.remove();
        }
        shared.directories.end();
        let tally = shared.count.tally();
        log::info!("stopped; tasks: {tally}");
        result.map(|()| tally)
    }
}

/// Such as "1 worker", "2 workers".
fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// The handlers that this machine cannot run, as far as that can be seen without running
/// them, and why; fails for those that no machine could.
pub fn problems(config: &Config) -> Result<Vec<(String, String)>, Error> {
    let mut problems = Vec::new();
    for (name, handler) in &config.handlers {
        let plan = Plan::new(name, handler, &Reach::default())?;
        problems.extend(offer::cannot_run(&plan).map(|problem| (name.clone(), problem)));
    }
    Ok(problems)
}

/// Host, port and database number of the Redis that the settings name.
pub fn redis_place(config: &Config) -> Result<String, Error> {
    LockStore::new(config).map(|store| store.place())
}

/// What a worker process needs before its threads start.
struct Prepared {
    identity: Identity,
    mailboxes: Vec<Mailbox>,
    inboxes: Vec<Inbox>,
    back_end: Box<dyn BackEnd>,
    warden: Arc<Warden>,
}

fn open_back_end(
    config: &Config,
    auxiliary: bool,
    identity: &Identity,
    mailboxes: &[Mailbox],
) -> Result<Box<dyn BackEnd>, Error> {
    let mailboxes = mailboxes.to_vec();
    Ok(match config.worker_type {
        WorkerType::Postgres => Box::new(PostgresBackEnd::new(mailboxes, Way::Look)),
        WorkerType::Redis => Box::new(RedisBackEnd::new(config, &identity.process, mailboxes)?),
        WorkerType::Pulpcore => {
            let way = Way::Unblocked { unblocks: !auxiliary };
            Box::new(PostgresBackEnd::new(mailboxes, way))
        }
    })
}

/// What a warden has to know of the settings: where tasks and locks are.
fn warden_settings(
    config: &Config,
    url: &str,
    directory: &Path,
) -> Result<Vec<(&'static str, OsString)>, Error> {
    let mut settings = vec![
        ("MILLHAND_DATABASE_URL", db::from_anywhere(url)?.into()),
        ("MILLHAND_WORKING_DIRECTORY", directory.into()),
    ];
    if let (WorkerType::Redis, Some(redis_url)) = (config.worker_type, &config.redis_url) {
        settings.push(("MILLHAND_REDIS_URL", redis_url.into()));
        settings.push(("MILLHAND_REDIS_PREFIX", config.redis_prefix.clone().into()));
    }
    Ok(settings)
}

/// Starts the threads, passes requests to stop on to them, and waits for them.
fn supervise(
    shared: &Arc<Shared>,
    inboxes: Vec<Inbox>,
    requests: &Receiver<Request>,
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
                let work = || thread::work(shared, index, &inbox);
                ended.result = Some(error::guard("a worker thread ended early", work));
            });
            match worker {
                Ok(_) => started += 1,
                Err(error) => {
                    result = Err(Error::system("could not start a worker thread", error));
                    shared.control.stop(Shutdown::Now);
                    break;
                }
            }
        }
        let helpers = [
            ("listener", listener::listen as fn(&Arc<Shared>, &dyn Fn(Error))),
            ("housekeeper", housekeeper::keep_house),
            ("caretaker", |shared, _| caretaker::take_care(shared)),
            ("reporter", |shared, _| reports::report(shared)),
            ("notifier", |shared, _| notify::keep_informed(shared)),
        ];
        let (failed_sender, failed) = crossbeam_channel::unbounded();
        for (name, helper) in helpers {
            let failed = failed_sender.clone();
            let help = move || {
                let doing = format!("the {name} ended early");
                // (Whoever would hear it may have ended.)
                let report = |error| drop(failed.send((Shutdown::Drain, error)));
                if let Err(error) = error::guard(&doing, || {
                    helper(shared, &report);
                    Ok(())
                }) {
                    let _ = failed.send((Shutdown::Now, error));
                }
            };
            if let Err(error) = spawn(name.to_owned()).spawn_scoped(scope, help) {
                let error = Error::system(&format!("could not start the {name}"), error);
                let _ = failed_sender.send((Shutdown::Now, error));
            }
        }
        let mut stop = Stop::default();
        while n_ended < started {
            let never = crossbeam_channel::never();
            let at_deadline = stop.deadline.map_or(never, crossbeam_channel::at);
            crossbeam_channel::select! {
                recv(requests) -> request => match request {
                    Ok(Request::Stop(shutdown)) => stop.begin(shutdown, shared, config),
                    Ok(Request::Reload(config)) => shared.reload(config),
                    // We hold the other end.
                    Err(_) => {}
                },
                recv(failed) -> failure => {
                    // Nothing may be run without a helper, and nothing new is taken with
                    // one that cannot do its work.
                    let request = match failure {
                        Ok((request, error)) => {
                            if result.is_ok() {
                                log::error!("{}; stopping", error::chain(&error));
                                result = Err(error);
                            }
                            request
                        }
                        Err(_) => Shutdown::Now,
                    };
                    stop.begin(request, shared, config);
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
        shared.notify.stopping();
        match request {
            Shutdown::Drain => {
                log::info!("taking nothing new{}", waiting_for(shared, config.stop_after));
                self.deadline = config.stop_after.map(|after| Instant::now() + after);
                shared.tell_all(Event::Drain);
            }
            Shutdown::Grace => {
                let grace = config.task_grace_interval;
                log::info!("taking nothing new{}", waiting_for(shared, Some(grace)));
                self.deadline = Some(Instant::now() + grace);
                shared.tell_all(Event::Drain);
            }
            Shutdown::Now => {
                log::info!("ending what runs");
                self.deadline = None;
                shared.tell_all(Event::Abort);
            }
        }
    }
}

/// What a worker that takes nothing new waits for, and how long.
fn waiting_for(shared: &Shared, time: Option<Duration>) -> String {
    let ids: Vec<String> = shared
        .leases()
        .iter()
        .filter_map(|lease| match lease.activity() {
            Activity::Runs(id) => Some(id.to_string()),
            Activity::Idle | Activity::Ends => None,
        })
        .collect();
    if ids.is_empty() {
        return String::new();
    }
    let time = time.map(|time| format!(" for {} at most", humantime::format_duration(time)));
    let time = time.unwrap_or_default();
    format!(
        "; waiting{time} for {}: {}; SIGQUIT or a second SIGINT ends them now",
        plural(ids.len(), "running task"),
        ids.join(" ")
    )
}
