//! The warden process: follows its worker, and kills and settles when that is
//! gone.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::unavailable;
use crate::config::Config;
use crate::db;
use crate::error::{self, Error};
use crate::lock_store::{Link, LockStore, abandoned};
use crate::worker::cgroup::Cgroups;
use crate::worker::clock::Moment;
use crate::worker::mark::{self, Leases};
use crate::worker::reports::store_remains;
use crate::worker::tail::{self, Remains, logs_of};

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
    let stdin = std::io::stdin();
    let mut charge = Charge::new(process);
    if charge.watch(&mut BufReader::new(stdin.lock()), &mut std::io::stdout())? {
        return Ok(());
    }
    // Before they are killed.
    let unread = tail::unread(charge.groups.keys().filter_map(|group| Pid::from_raw(*group)));
    charge.kill(None, None);
    let process = charge.process;
    let deadline = Moment::now().after(ttl);
    let folder = std::env::var_os("MILLHAND_WORKING_DIRECTORY");
    let logs = folder.as_ref().map(|folder| logs_of(&process, Path::new(folder), unread));
    let settled = settle(&process, deadline, &mut logs.unwrap_or_default())
        .and_then(|()| release(&process, deadline));
    if let Some(folder) = folder {
        // They may be large, so this comes after its tasks have been settled.
        for directory in remains_of(&process, Path::new(&folder)) {
            remove(&directory);
        }
    }
    if let Some(cgroups) = Cgroups::of(&process) {
        cgroups.remove();
    }
    settled
}

/// What the warden knows of its worker.
struct Charge {
    process: String,
    cgroups: Option<Cgroups>,
    /// The lease that it has said to be ready for.
    lease: u64,
    /// None when it is over, or has not begun.
    lease_end: Option<Moment>,
    groups: HashMap<i32, u64>,
}

impl Charge {
    fn new(process: String) -> Charge {
        let cgroups = Cgroups::of(&process);
        Charge { process, cgroups, lease: 0, lease_end: None, groups: HashMap::new() }
    }

    /// Follows the worker until it ends; true if it took its leave.
    fn watch(
        &mut self,
        input: &mut (impl BufRead + Waitable),
        output: &mut impl Write,
    ) -> Result<bool, Error> {
        let alarm = Alarm::new()?;
        let mut line = String::new();
        loop {
            alarm.set(self.lease_end);
            if !input.has_line_before(&alarm) {
                // The end had passed, and after that nothing stood in the pipe: the worker
                // is frozen or cut off.
                self.kill(None, Some(Moment::now().after(PATIENCE)));
                self.lease_end = None;
                continue;
            }
            line.clear();
            match input.read_line(&mut line) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Ok(false),
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| word.parse::<u64>().unwrap_or_default();
            match words[..] {
                ["end"] => return Ok(true),
                ["begin", lease] => {
                    self.lease = number(lease);
                    if self.lease > 0 {
                        self.kill(Some(self.lease), Some(Moment::now().after(PATIENCE)));
                    }
                    // If the worker is gone already, its pipe says so, too.
                    let _ = writeln!(output, "ready {}", self.lease);
                    let _ = output.flush();
                }
                ["lease", end] => self.lease_end = Some(Moment::from_nanos(number(end))),
                [group] => {
                    self.groups
                        .remove(&number(group.trim_start_matches('-')).try_into().unwrap_or(0));
                }
                [lease, group] => {
                    let lease = number(lease.trim_start_matches('+'));
                    let group = group.parse().unwrap_or(0);
                    self.groups.insert(group, lease);
                    // Begun at the very end of its lease.
                    if lease != self.lease || self.lease_end.is_none() {
                        kill_group(group);
                    }
                }
                _ => {}
            }
        }
    }

    /// Kills all that began under other leases than `spared`, and does not return before
    /// that is dead, or until `deadline`.
    fn kill(&self, spared: Option<u64>, deadline: Option<Moment>) {
        for (group, lease) in &self.groups {
            if Some(*lease) != spared {
                kill_group(*group);
            }
        }
        let leases = spared.map_or(Leases::All, Leases::But);
        if let Some(cgroups) = &self.cgroups {
            cgroups.kill_all(|lease| Some(lease) != spared);
        }
        mark::kill_all(&self.process, &leases, deadline);
    }
}

/// For how long a living worker waits for what cannot be killed, such as what runs as
/// another user. Its thread waits for longer: its task is not ended before.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends what a dead worker process, and its warden, have left on this host: what began
/// before `moment`, when it was dead, because it may come back just now. False if some of
/// that is not dead by `deadline`.
pub(crate) fn end_remains(process: &str, moment: Moment, deadline: Moment) -> bool {
    mark::kill_all(process, &Leases::BegunBefore(moment), Some(deadline))
}

/// Tells of a moment on a clock that goes on while the host sleeps, as the time limit of
/// poll(2) does not.
struct Alarm(OwnedFd);

impl Alarm {
    fn new() -> Result<Alarm, Error> {
        timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map(Alarm)
            .map_err(|error| unavailable("could not make a timer", error.into()))
    }

    fn set(&self, moment: Option<Moment>) {
        // Zero would disarm it.
        let nanos = moment.map_or(0, |moment| moment.to_nanos().max(1));
        let value = Timespec {
            tv_sec: (nanos / 1_000_000_000) as i64,
            tv_nsec: (nanos % 1_000_000_000) as i64,
        };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec { it_interval: never, it_value: value };
        // It takes every moment; armed anew, it is silent until that.
        let _ = timerfd_settime(&self.0, TimerfdTimerFlags::ABSTIME, &timer);
    }
}

/// A buffered reader over a descriptor that can be waited for.
trait Waitable {
    /// False if the alarm came first, and still there was nothing to read after it.
    fn has_line_before(&self, alarm: &Alarm) -> bool;
}

impl<R: std::io::Read + AsFd> Waitable for BufReader<R> {
    fn has_line_before(&self, alarm: &Alarm) -> bool {
        if !self.buffer().is_empty() {
            return true;
        }
        let mut fds =
            [PollFd::new(self.get_ref(), PollFlags::IN), PollFd::new(&alarm.0, PollFlags::IN)];
        loop {
            let polled = rustix::event::poll(&mut fds, None);
            if polled.is_err() {
                continue;
            }
            if !fds[0].revents().is_empty() {
                return true;
            }
            if fds[1].revents().is_empty() {
                continue;
            }
            // What came before the alarm can be seen now; only then it is late.
            let mut pipe = [PollFd::new(self.get_ref(), PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            return !matches!(rustix::event::poll(&mut pipe, Some(&now)), Ok(0));
        }
    }
}

fn kill_group(group: i32) {
    if let Some(group) = Pid::from_raw(group) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

/// What the names of a worker process's working directories begin with.
pub(crate) fn directory_prefix(process: &str) -> String {
    format!("millhand-task-{process}-")
}

/// Removes a directory with all in it, or a file.
pub(crate) fn remove(path: &Path) {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    if let Err(error) = removed {
        log::warn!("could not remove {}: {error}", path.display());
    }
}

/// The working directories and logs that a dead worker could not remove.
pub(crate) fn remains_of(process: &str, folder: &Path) -> Vec<PathBuf> {
    let prefix = directory_prefix(process);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_its = |name: &OsStr| name.as_encoded_bytes().starts_with(prefix.as_bytes());
    let entries = entries.flatten().filter(|entry| is_its(&entry.file_name()));
    entries.map(|entry| entry.path()).collect()
}

/// Ends the tasks of the dead worker in the table. Tries for as long as nobody
/// else would do it.
fn settle(process: &str, deadline: Moment, logs: &mut Vec<Remains>) -> Result<(), Error> {
    let url = std::env::var("MILLHAND_DATABASE_URL").unwrap_or_default();
    let mut pause = Duration::from_millis(50);
    let mut told = false;
    loop {
        match settle_workers(&url, process, logs) {
            Ok(0) if logs.is_empty() => return Ok(()),
            // After the ttl anybody may sweep them.
            Ok(_) if deadline.has_passed() => return Ok(()),
            Ok(n) => {
                if n > 0 && !std::mem::replace(&mut told, true) {
                    log::warn!("{n} workers cannot be settled yet; trying again");
                }
            }
            Err(error) if error.is_unavailable() && !deadline.has_passed() => {}
            Err(error) => return Err(error),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Settles each in a transaction of its own, so that one that cannot be settled holds up
/// no other; how many are left.
fn settle_workers(url: &str, process: &str, logs: &mut Vec<Remains>) -> Result<usize, Error> {
    let fail = |error| Error::postgres("could not settle a dead worker's tasks", error);
    let mut client = db::connect_for_long(url, "millhand warden")?;
    client.batch_execute("SET lock_timeout = '2s'; SET statement_timeout = '5s'").map_err(fail)?;
    // First, so that whoever waits for the end finds them. A log is no reason to be late.
    for log in std::mem::take(logs) {
        match store_remains(&mut client, &log) {
            Ok(true) => {}
            Ok(false) => logs.push(log),
            Err(error) if error.is_unavailable() => logs.push(log),
            Err(error) => log::warn!("{}", error::chain(&error)),
        }
    }
    let workers = client
        .query(include_str!("../../../sql/queries/process_workers.sql"), &[&process])
        .map_err(fail)?;
    let mut n_left = 0;
    let mut failure = None;
    for worker in &workers {
        let id: i64 = worker.get(0);
        let settle = include_str!("../../../sql/queries/settle_worker.sql");
        match client.query_opt(settle, &[&id]) {
            Ok(row) => {
                let n_settled: Option<i32> = row.as_ref().map_or(Some(0), |row| row.get(0));
                n_left += usize::from(n_settled.is_none());
            }
            Err(error) => failure = Some(fail(error)),
        }
    }
    failure.map_or(Ok(n_left), Err)
}

/// Lets go of locks in a lock store whose owners are gone from the table, as these
/// workers are now. Should that fail, the next worker's audit does it.
fn release(process: &str, deadline: Moment) -> Result<(), Error> {
    let Ok(redis_url) = std::env::var("MILLHAND_REDIS_URL") else { return Ok(()) };
    let redis_prefix = std::env::var("MILLHAND_REDIS_PREFIX").unwrap_or_default();
    let url = std::env::var("MILLHAND_DATABASE_URL").unwrap_or_default();
    let config = Config { redis_url: Some(redis_url), redis_prefix, ..Config::default() };
    let mut link = Link::new(Arc::new(LockStore::new(&config)?));
    loop {
        let released = link.registry().and_then(|locks| {
            let gone = abandoned(&mut db::connect(&url, "millhand warden")?, locks)?;
            // Others may wait for what these workers had, and see only now that it has
            // ended.
            link.release(&gone, Some(process))
        });
        match released {
            Err(error) if error.is_unavailable() && !deadline.has_passed() => {
                std::thread::sleep(Duration::from_millis(500));
            }
            other => return other,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command};

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
            let mut said = Vec::new();
            let left = Charge::new("no process has this mark".to_owned())
                .watch(&mut input, &mut said)
                .unwrap();
            (left, String::from_utf8(said).unwrap())
        });
        let in_a_day = Moment::now().after(Duration::from_secs(86_400)).to_nanos();
        let mut first = start_group();
        writeln!(pipe, "begin 0\nlease {in_a_day}\n+0 {}\nlease 1", first.id()).unwrap();
        assert_eq!(first.wait().unwrap().signal(), Some(9));
        let mut second = start_group();
        writeln!(pipe, "+0 {}", second.id()).unwrap();
        assert_eq!(second.wait().unwrap().signal(), Some(9));
        let mut third = start_group();
        writeln!(pipe, "-{}\n-{}", first.id(), second.id()).unwrap();
        writeln!(pipe, "begin 1\nlease {in_a_day}\n+1 {}", third.id()).unwrap();
        let mut late = start_group();
        writeln!(pipe, "+0 {}", late.id()).unwrap();
        assert_eq!(late.wait().unwrap().signal(), Some(9));
        writeln!(pipe, "end").unwrap();
        let (left, said) = warden.join().unwrap();
        assert!(left, "it took its leave");
        assert_eq!(said, "ready 0\nready 1\n");
        assert_eq!(third.try_wait().unwrap(), None, "killed under a lease");
        third.kill().unwrap();
        third.wait().unwrap();
    }

    /// A renewal that stands in the pipe before the end counts, however late it is read.
    #[test]
    fn a_warden_that_was_held_up_itself_kills_nothing_that_was_renewed_in_time() {
        let (read_end, write_end) = rustix::pipe::pipe().unwrap();
        let mut pipe = std::fs::File::from(write_end);
        let mut group = start_group();
        let now = Moment::now().to_nanos();
        let in_a_day = Moment::now().after(Duration::from_secs(86_400)).to_nanos();
        writeln!(pipe, "begin 0\nlease {now}\n+0 {}\nlease {in_a_day}\nend", group.id()).unwrap();
        let mut input = BufReader::with_capacity(8, std::fs::File::from(read_end));
        let mut charge = Charge::new("no process has this mark".to_owned());
        assert!(charge.watch(&mut input, &mut Vec::new()).unwrap());
        assert_eq!(group.try_wait().unwrap(), None, "killed though its lease was renewed");
        group.kill().unwrap();
        group.wait().unwrap();
    }
}
