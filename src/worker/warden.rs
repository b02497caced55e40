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
//! | `+N` | process group N belongs to a task |
//! | `-N` | it has ended |
//! | `lease N` | the worker's rows were renewed: its tasks may run for N µs from now |
//! | `end` | the worker has left in good order |
//!
//! The warden says `ready` when it can be relied on. One that dies is replaced;
//! until its successor is ready the worker takes nothing new.
//!
//! A child that was just started when its worker died may not be known yet. So
//! the warden also looks for the worker's mark in the environment of every
//! process, which finds those that have left their group, too.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::lease::LEASE_SHARE;
use crate::db;
use crate::error::{self, Error};

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
    url: String,
    working_directory: PathBuf,
    link: Mutex<Link>,
    /// Notified when the warden gets ready, and at the end.
    changed: Condvar,
}

struct Link {
    pipe: Option<ChildStdin>,
    /// The process that reads from the pipe.
    reader: Option<OwnedFd>,
    /// Whether there is a warden that has said so.
    ready: bool,
    groups: HashSet<i32>,
    lease_end: Option<Instant>,
    ended: bool,
}

impl Warden {
    /// Starts the warden process; none if `program` is empty, for a worker
    /// without commands. It has the worker's settings in its environment, where
    /// the command line would show the password.
    pub(crate) fn start(
        program: Vec<OsString>,
        process: String,
        ttl: Duration,
        url: String,
        working_directory: PathBuf,
    ) -> Result<Arc<Warden>, Error> {
        let link = Link {
            pipe: None,
            reader: None,
            ready: false,
            groups: HashSet::new(),
            lease_end: None,
            ended: false,
        };
        let warden = Arc::new(Warden {
            program,
            process,
            ttl,
            url,
            working_directory,
            link: Mutex::new(link),
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
        self.program.is_empty() || self.lock().ready
    }

    /// Waits until that is so, for `time` at most.
    pub(crate) fn wait_until_ready(&self, time: Duration) {
        if !self.program.is_empty() {
            drop(self.changed.wait_timeout_while(self.lock(), time, |link| !link.ready));
        }
    }

    /// A task's process group has come to be.
    pub(crate) fn add(&self, group: Pid) {
        let number = group.as_raw_nonzero().get();
        let mut link = self.lock();
        link.groups.insert(number);
        link.say(&format!("+{number}\n"));
    }

    /// It has ended, and its number may be somebody else's soon.
    pub(crate) fn remove(&self, group: Pid) {
        let number = group.as_raw_nonzero().get();
        let mut link = self.lock();
        link.groups.remove(&number);
        link.say(&format!("-{number}\n"));
    }

    /// The worker's rows were renewed; this is when its leases end.
    pub(crate) fn renew(&self, lease_end: Instant) {
        let mut link = self.lock();
        link.lease_end = Some(lease_end);
        link.say_lease();
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
            .env("MILLHAND_DATABASE_URL", &self.url)
            .env("MILLHAND_WARDEN_OF", &self.process)
            .env("MILLHAND_WORKING_DIRECTORY", &self.working_directory)
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
        link.reader =
            rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        link.say_lease();
        let groups: Vec<i32> = link.groups.iter().copied().collect();
        for group in groups {
            link.say(&format!("+{group}\n"));
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
        if says_ready(&mut child)
            && let Some(warden) = watched.upgrade()
        {
            warden.lock().ready = true;
            warden.changed.notify_all();
        }
        let status = child.wait();
        let Some(warden) = watched.upgrade() else { return };
        let mut link = warden.lock();
        (link.ready, link.pipe, link.reader) = (false, None, None);
        if link.ended {
            return;
        }
        log::warn!("the warden has died ({status:?}); starting another");
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

/// Waits until the warden is ready; false if it ends before.
fn says_ready(child: &mut Child) -> bool {
    let Some(stdout) = child.stdout.take() else { return false };
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).is_ok() && line == "ready\n"
}

impl Link {
    /// What is left of the lease, not its whole length: a heartbeat was sent a
    /// while before its answer came, and a successor begins in the midst of one.
    /// Not rounded to milliseconds: a command that is killed before its thread
    /// finds the lease over looks like one that failed.
    fn say_lease(&mut self) {
        if let Some(end) = self.lease_end {
            let left = end.saturating_duration_since(Instant::now());
            self.say(&format!("lease {}\n", left.as_micros()));
        }
    }

    fn say(&mut self, line: &str) {
        let Some(pipe) = &mut self.pipe else { return };
        // A warden that has died is replaced by its watcher, which tells the
        // successor of every group. One that has not read for so long that the
        // pipe is full is frozen, and would not kill either.
        if pipe.write_all(line.as_bytes()).is_err() {
            self.ready = false;
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

/// What the warden process does: reads `MILLHAND_WARDEN_OF`, the ttl and the
/// database from its environment, and its worker from stdin. Returns when its
/// work is done.
pub fn run() -> Result<(), Error> {
    let missing = || Error::Config("the warden is started by a worker, not by hand".to_owned());
    let process = std::env::var("MILLHAND_WARDEN_OF").map_err(|_| missing())?;
    let ttl = std::env::var("MILLHAND_TTL")
        .ok()
        .and_then(|ttl| humantime::parse_duration(&ttl).ok())
        .ok_or_else(missing)?;
    // A stopping system signals everyone at once; the worker's children may
    // still need their warden, which ends when its worker has.
    for signal in
        [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP]
    {
        let ignored = Arc::new(std::sync::atomic::AtomicBool::new(false));
        signal_hook::flag::register(signal, ignored)
            .map_err(|error| unavailable("could not ignore a signal", error))?;
    }
    // If the worker is gone already, its pipe says so, too.
    let _ = std::io::stdout().write_all(b"ready\n");
    let stdin = std::io::stdin();
    let mut groups = HashSet::new();
    if watch(&mut BufReader::new(stdin.lock()), &process, ttl.mul_f64(LEASE_SHARE), &mut groups) {
        return Ok(());
    }
    kill_all(&process, &groups);
    let settled = settle(&process, ttl);
    remove_directories(&process);
    settled
}

/// Follows the worker until it ends; true if it took its leave.
fn watch(
    input: &mut (impl BufRead + Waitable),
    process: &str,
    lease: Duration,
    groups: &mut HashSet<i32>,
) -> bool {
    // None when it is over.
    let mut lease_end = Some(Instant::now() + lease);
    let mut line = String::new();
    loop {
        let left = lease_end.map(|end| end.saturating_duration_since(Instant::now()));
        if !input.has_line_within(left) {
            // The worker is frozen or cut off.
            kill_all(process, groups);
            lease_end = None;
            continue;
        }
        line.clear();
        match input.read_line(&mut line) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return false,
        }
        match line.trim_end() {
            "end" => return true,
            line if line.starts_with("lease ") => {
                let left = line["lease ".len()..].parse().unwrap_or_default();
                lease_end = Some(Instant::now() + Duration::from_micros(left));
            }
            line => {
                let number = line.get(1..).and_then(|number| number.parse().ok());
                match (line.chars().next(), number) {
                    (Some('+'), Some(group)) => {
                        groups.insert(group);
                        // Begun by a worker that was frozen in the midst of it.
                        if lease_end.is_none() {
                            kill_group(group);
                        }
                    }
                    (Some('-'), Some(group)) => {
                        groups.remove(&group);
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A buffered reader over a descriptor that can be waited for.
trait Waitable {
    /// Without a time it waits for ever.
    fn has_line_within(&self, time: Option<Duration>) -> bool;
}

impl<R: std::io::Read + AsFd> Waitable for BufReader<R> {
    fn has_line_within(&self, time: Option<Duration>) -> bool {
        if !self.buffer().is_empty() {
            return true;
        }
        let timeout = time.map(|time| Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let mut fds = [PollFd::new(self.get_ref(), PollFlags::IN)];
        !matches!(rustix::event::poll(&mut fds, timeout.as_ref()), Ok(0))
    }
}

/// Kills the groups, and then whatever bears the worker's mark, until a look
/// finds nothing more.
fn kill_all(process: &str, groups: &HashSet<i32>) {
    for group in groups {
        kill_group(*group);
    }
    let mark = format!("MILLHAND_PROCESS={process}");
    // A child between fork and exec gets its mark a moment later: two clean
    // looks in a row, a little apart.
    let mut n_clean = 0;
    while n_clean < 2 {
        if kill_marked(mark.as_bytes()) {
            n_clean = 0;
        } else {
            n_clean += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn kill_group(group: i32) {
    if let Some(group) = Pid::from_raw(group) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// Kills every process that has this mark in its environment; whether there
/// was one.
fn kill_marked(mark: &[u8]) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    let mut found = false;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // Opened before the look, so that the signal cannot hit a successor.
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
        if environment.split(|byte| *byte == 0).any(|variable| variable == mark) {
            found = true;
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    found
}

/// What the names of a worker process's working directories begin with.
pub(crate) fn directory_prefix(process: &str) -> String {
    format!("millhand-task-{process}-")
}

/// Removes the working directories that the dead worker could not. They may be
/// large, so this comes after its tasks have been settled.
fn remove_directories(process: &str) {
    let Some(folder) = std::env::var_os("MILLHAND_WORKING_DIRECTORY") else { return };
    let prefix = directory_prefix(process);
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes())
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            log::warn!("could not remove {}: {error}", entry.path().display());
        }
    }
}

/// Ends the tasks of the dead worker in the table. Tries for as long as nobody
/// else would do it.
fn settle(process: &str, ttl: Duration) -> Result<(), Error> {
    let url = std::env::var("MILLHAND_DATABASE_URL").unwrap_or_default();
    let deadline = Instant::now() + ttl;
    let mut pause = Duration::from_millis(50);
    loop {
        let settled = db::connect(&url, "millhand warden").and_then(|mut client| {
            client
                .batch_execute(include_str!("../../sql/queries/worker_session.sql"))
                .and_then(|()| {
                    client.query_one(
                        include_str!("../../sql/queries/settle_process.sql"),
                        &[&process],
                    )
                })
                .map_err(|error| Error::postgres("could not settle a dead worker's tasks", error))
        });
        match settled {
            Ok(row) if row.get::<_, i32>(0) == 0 => return Ok(()),
            // Somebody keeps the rows of the others locked.
            Ok(_) if Instant::now() < deadline => {}
            // After the ttl anybody may sweep them.
            Ok(_) => return Ok(()),
            Err(error) if error.is_unavailable() && Instant::now() < deadline => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Starts a process group that ends in good order if nobody kills it.
    fn start_group() -> Child {
        Command::new("sleep").arg("30").process_group(0).spawn().unwrap()
    }

    #[test]
    fn what_begins_after_the_lease_is_killed_at_once() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let mut pipe = std::fs::File::from(write_end);
        let warden = std::thread::spawn(move || {
            let mut input = BufReader::new(std::fs::File::from(read_end));
            let day = Duration::from_secs(86400);
            watch(&mut input, "no process has this mark", day, &mut HashSet::new())
        });
        let mut first = start_group();
        writeln!(pipe, "+{}\nlease 0", first.id()).unwrap();
        assert_eq!(first.wait().unwrap().signal(), Some(9));
        let mut second = start_group();
        writeln!(pipe, "+{}", second.id()).unwrap();
        assert_eq!(second.wait().unwrap().signal(), Some(9));
        let mut third = start_group();
        writeln!(pipe, "-{}\n-{}", first.id(), second.id()).unwrap();
        writeln!(pipe, "lease 86400000000\n+{}", third.id()).unwrap();
        writeln!(pipe, "end").unwrap();
        assert!(warden.join().unwrap(), "it took its leave");
        assert_eq!(third.try_wait().unwrap(), None, "killed under a lease");
        third.kill().unwrap();
        third.wait().unwrap();
    }

    /// Waiting for it would keep heartbeats and the ends of tasks from being sent.
    #[test]
    fn nobody_waits_for_a_warden_that_does_not_read() {
        let warden = Warden {
            program: vec!["sleep".into(), "30".into()],
            process: String::new(),
            ttl: Duration::ZERO,
            url: String::new(),
            working_directory: PathBuf::new(),
            link: Mutex::new(Link {
                pipe: None,
                reader: None,
                ready: true,
                groups: HashSet::new(),
                lease_end: None,
                ended: false,
            }),
            changed: Condvar::new(),
        };
        let mut child = warden.spawn(&mut warden.lock()).unwrap();
        for _ in 0..100_000 {
            warden.add(Pid::INIT);
        }
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!warden.is_ready());
    }
}
