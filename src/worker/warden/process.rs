//! The warden process: follows its worker, and kills and settles when that is
//! gone.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::unavailable;
use crate::config::Config;
use crate::db;
use crate::error::Error;
use crate::lock_store::{Link, LockStore, abandoned};
use crate::worker::lease::LEASE_SHARE;

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
    let deadline = Instant::now() + ttl;
    let settled = settle(&process, deadline).and_then(|()| release(&process, deadline));
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
fn settle(process: &str, deadline: Instant) -> Result<(), Error> {
    let url = std::env::var("MILLHAND_DATABASE_URL").unwrap_or_default();
    let mut pause = Duration::from_millis(50);
    loop {
        let settled = db::connect(&url, "millhand warden").and_then(|mut client| {
            client
                .batch_execute(include_str!("../../../sql/queries/worker_session.sql"))
                .and_then(|()| {
                    client.query_one(
                        include_str!("../../../sql/queries/settle_process.sql"),
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

/// Lets go of locks in a lock store whose owners are gone from the table, as these
/// workers are now. Should that fail, the next worker's audit does it.
fn release(process: &str, deadline: Instant) -> Result<(), Error> {
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
            Err(error) if error.is_unavailable() && Instant::now() < deadline => {
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
}
