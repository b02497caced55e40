//! Command tasks die with their worker: a small process beside each worker
//! process that outlives it for a moment.
//!
//! The worker tells it of each process group through a pipe. When the pipe
//! ends, however the worker died, or when the worker has not renewed its lease
//! in time (it is frozen, or cut off from Postgres), the warden kills them all.
//! After an end without a farewell it also settles the worker's tasks in the
//! table: it knows for certain that their processes are dead, which nobody else
//! does before the ttl has passed. Last, it removes their working directories.
//!
//! | line | means |
//! |---|---|
//! | `begin L` | what begins from now on does so under lease L: end what began under another |
//! | `+L N` | process group N belongs to a task that began under lease L |
//! | `-N` | it has ended |
//! | `lease T` | the worker's rows were renewed: its tasks may run until T, on the host's clock |
//! | `end` | the worker has left in good order |
//!
//! The warden answers `ready L` when all that began under other leases is dead. One that
//! dies is replaced. Until it is ready for the present lease the worker takes nothing new,
//! so that what is killed when a lease ends is never something that began after it.
//!
//! A child that was just started when its worker died may not be known yet. So
//! the warden also looks for the marks of its worker's commands on every
//! process (`mark.rs`), which finds those that have left their group, too.

mod process;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::clock::Moment;
use super::command::how_it_ended;
use crate::error::{self, Error};
pub use process::run;
pub(crate) use process::{directory_prefix, end_remains, remains_of, remove};

/// Pauses before a warden is replaced: first, and at most. The first comes
/// again after one that has lived for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);
const A_WHILE: Duration = Duration::from_secs(10);

/// The worker's side: keeps a warden process alive and informed.
pub(crate) struct Warden {
    program: Vec<OsString>,
    process: String,
    ttl: Duration,
    /// What it needs to know besides, in its environment.
    settings: Vec<(&'static str, OsString)>,
    link: Mutex<Link>,
    /// Notified when the warden gets ready, and at the end.
    changed: Condvar,
}

struct Link {
    pipe: Option<ChildStdin>,
    /// The process that reads from the pipe.
    pid: Option<Pid>,
    reader: Option<OwnedFd>,
    /// For which lease the warden has said to be ready.
    ready: Option<u64>,
    groups: HashMap<i32, u64>,
    /// The number of the present lease: one that ends is followed by another.
    lease: u64,
    lease_end: Option<Moment>,
    ended: bool,
}

/// What a command may begin under.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Permit {
    /// The number of the lease.
    pub(crate) lease: u64,
    /// Not later than then.
    pub(crate) until: Moment,
}

impl Warden {
    /// Starts the warden process; none if `program` is empty, for a worker
    /// without commands. It has the worker's settings in its environment, where
    /// the command line would show the password.
    pub(crate) fn start(
        program: Vec<OsString>,
        process: String,
        ttl: Duration,
        settings: Vec<(&'static str, OsString)>,
    ) -> Result<Arc<Warden>, Error> {
        let warden = Arc::new(Warden {
            program,
            process,
            ttl,
            settings,
            link: Mutex::new(Link::new()),
            changed: Condvar::new(),
        });
        if warden.program.is_empty() {
            return Ok(warden);
        }
        let child = warden.spawn(&mut warden.lock())?;
        let watched = Arc::downgrade(&warden);
        std::thread::Builder::new()
            .name("warden-watch".to_owned())
            .spawn(move || keep_alive(&watched, child))
            .map_err(|error| unavailable("could not start a thread", error))?;
        Ok(warden)
    }

    /// Whether commands that begin now have a warden; always true where none is
    /// wanted.
    pub(crate) fn is_ready(&self) -> bool {
        self.program.is_empty() || self.lock().is_ready()
    }

    /// Waits until that is so, for `time` at most.
    pub(crate) fn wait_until_ready(&self, time: Duration) {
        if !self.program.is_empty() {
            drop(self.changed.wait_timeout_while(self.lock(), time, |link| !link.is_ready()));
        }
    }

    /// Whether this process is the warden, or a command: somebody waits for it.
    pub(crate) fn knows(&self, process: Pid) -> bool {
        let link = self.lock();
        link.pid == Some(process) || link.groups.contains_key(&process.as_raw_nonzero().get())
    }

    /// What a command may begin under just now; none without a warden or a lease.
    pub(crate) fn permit(&self) -> Option<Permit> {
        let link = self.lock();
        let until = link.lease_end.filter(|_| link.is_ready())?;
        Some(Permit { lease: link.lease, until })
    }

    /// A task's process group has come to be, under this lease.
    pub(crate) fn add(&self, group: Pid, lease: u64) {
        let number = group.as_raw_nonzero().get();
        let mut link = self.lock();
        link.groups.insert(number, lease);
        link.say(&format!("+{lease} {number}\n"));
    }

    /// It has ended. The warden forgets it before it is waited for, because its number may be
    /// somebody else's after that.
    pub(crate) fn take_leave(&self, leader: &mut Child) -> std::io::Result<ExitStatus> {
        let number = Pid::from_child(leader).as_raw_nonzero().get();
        let mut link = self.lock();
        link.say(&format!("-{number}\n"));
        let status = leader.wait();
        link.groups.remove(&number);
        status
    }

    /// The worker's rows were renewed; this is when its leases end.
    pub(crate) fn renew(&self, lease_end: Moment) {
        let mut link = self.lock();
        let last_end = link.lease_end.replace(lease_end);
        link.say_lease();
        // The warden acts when the end has passed and nothing is in the pipe. Unless this
        // stood there before, it counts as late, here as there.
        if last_end.is_some_and(Moment::has_passed) {
            link.lease += 1;
            link.say_begin();
            link.say_lease();
        }
    }

    /// The worker leaves; in good order, nothing is left to settle.
    pub(crate) fn end(&self, in_good_order: bool) {
        let mut link = self.lock();
        link.ended = true;
        if in_good_order {
            link.say("end\n");
        }
        link.pipe = None;
        self.changed.notify_all();
    }

    fn spawn(&self, link: &mut Link) -> Result<Child, Error> {
        let program = &self.program[0];
        let mut child = Command::new(program)
            .args(&self.program[1..])
            .env_remove("MILLHAND_REDIS_URL")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .env("MILLHAND_WARDEN_OF", &self.process)
            .env("MILLHAND_TTL", format!("{}ms", self.ttl.as_millis()))
            // Its own group: a terminal's Ctrl-C is not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .current_dir("/")
            .spawn()
            .map_err(|error| {
                unavailable(
                    &format!("could not start the warden, {}", program.to_string_lossy()),
                    error,
                )
            })?;
        // Nobody ever waits for a warden that does not read: see `Link::say`.
        link.pipe = child.stdin.take().filter(|pipe| rustix::io::ioctl_fionbio(pipe, true).is_ok());
        link.pid = Some(Pid::from_child(&child));
        link.reader =
            rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        link.say_begin();
        link.say_lease();
        for (group, lease) in link.groups.clone() {
            link.say(&format!("+{lease} {group}\n"));
        }
        Ok(child)
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces the warden whenever it has died, until the worker ends.
fn keep_alive(watched: &Weak<Warden>, mut child: Child) {
    let mut pause = FIRST_PAUSE;
    loop {
        let start = Instant::now();
        hear(&mut child, watched);
        let status = child.wait();
        let Some(warden) = watched.upgrade() else { return };
        let mut link = warden.lock();
        (link.ready, link.pipe, link.reader) = (None, None, None);
        if link.ended {
            return;
        }
        let how = status.map_or_else(|error| error.to_string(), how_it_ended);
        log::warn!("the warden has died ({how}); starting another");
        if start.elapsed() > A_WHILE {
            pause = FIRST_PAUSE;
        }
        child = loop {
            let ended = |link: &mut Link| !link.ended;
            link = warden
                .changed
                .wait_timeout_while(link, pause, ended)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if link.ended {
                return;
            }
            pause = (pause * 2).min(LAST_PAUSE);
            match warden.spawn(&mut link) {
                Ok(successor) => break successor,
                // What passes may pass: no memory for a fork, a program that is
                // just being installed anew.
                Err(error) => log::error!("{}; trying again", error::chain(&error)),
            }
        };
    }
}

/// Hears for which leases the warden is ready, until it ends.
fn hear(child: &mut Child, watched: &Weak<Warden>) {
    let Some(stdout) = child.stdout.take() else { return };
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let Some(lease) = line.strip_prefix("ready ").and_then(|lease| lease.parse().ok()) else {
            return;
        };
        let Some(warden) = watched.upgrade() else { return };
        warden.lock().ready = Some(lease);
        warden.changed.notify_all();
    }
}

impl Link {
    fn new() -> Link {
        Link {
            pipe: None,
            pid: None,
            reader: None,
            ready: None,
            groups: HashMap::new(),
            lease: 0,
            lease_end: None,
            ended: false,
        }
    }

    fn is_ready(&self) -> bool {
        self.ready == Some(self.lease)
    }

    fn say_begin(&mut self) {
        self.say(&format!("begin {}\n", self.lease));
    }

    fn say_lease(&mut self) {
        if let Some(end) = self.lease_end {
            self.say(&format!("lease {}\n", end.to_nanos()));
        }
    }

    fn say(&mut self, line: &str) {
        let Some(pipe) = &mut self.pipe else { return };
        // A warden that has died is replaced by its watcher, which tells the
        // successor of every group. One that has not read for so long that the
        // pipe is full is frozen, and would not kill either.
        if pipe.write_all(line.as_bytes()).is_err() {
            self.ready = None;
            if let Some(reader) = &self.reader {
                let _ = rustix::process::pidfd_send_signal(reader, Signal::KILL);
            }
            self.pipe = None;
        }
    }
}

fn unavailable(doing: &str, error: std::io::Error) -> Error {
    Error::Unavailable { doing: doing.to_owned(), source: error.into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Waiting for it would keep heartbeats and the ends of tasks from being sent.
    #[test]
    fn nobody_waits_for_a_warden_that_does_not_read() {
        let warden = Warden {
            program: vec!["sleep".into(), "30".into()],
            process: String::new(),
            ttl: Duration::ZERO,
            settings: Vec::new(),
            link: Mutex::new(Link { ready: Some(0), ..Link::new() }),
            changed: Condvar::new(),
        };
        let mut child = warden.spawn(&mut warden.lock()).unwrap();
        for _ in 0..100_000 {
            warden.add(Pid::INIT, 0);
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!warden.is_ready());
    }
}
