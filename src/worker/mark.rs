//! By what the processes of a task are known, wherever they have gone.
//!
//! Each command begins under a limit that nothing else uses, and whatever it starts
//! inherits that: a child that leaves its process group, that outlives its parent, that
//! clears its environment. The limit is the processor time that a real-time process may
//! take without a pause (`RLIMIT_RTTIME`); a mark is a number of microseconds of more than
//! a hundred thousand years, so it limits nothing. It is lost only where a process sets
//! this very limit for itself (`ulimit -R`, a daemon that means to be real-time).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal};

use super::clock::Moment;
use crate::error::Error;

/// No less than this is ever a mark.
const LEAST: u64 = 1 << 62;

/// Whose a process is: of which worker process, of which of its leases, of which thread.
/// A thread runs one task at a time, and ends all of it before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    process: u32,
    lease: u16,
    thread: u16,
}

impl Mark {
    /// For thread `thread` under lease `lease` of a worker process, whose name is a UUID;
    /// its first 32 bits are kept.
    pub(crate) fn new(process: &str, lease: u64, thread: usize) -> Mark {
        Mark { process: number(process), lease: lease_number(lease), thread: thread as u16 }
    }

    /// What a child sets for itself, before it becomes the command.
    pub(crate) fn limit(self) -> Rlimit {
        let value = LEAST
            | u64::from(self.process) << 30
            | u64::from(self.lease) << 16
            | u64::from(self.thread);
        Rlimit { current: Some(value), maximum: Some(value) }
    }

    fn of_limit(value: u64) -> Option<Mark> {
        let is_mark = value & (3 << 62) == LEAST;
        is_mark.then_some(Mark {
            process: (value >> 30) as u32,
            lease: (value >> 16) as u16 & LEASES,
            thread: value as u16,
        })
    }

    /// The mark of a process, if it has one and is there.
    pub(crate) fn of(pid: Pid) -> Option<Mark> {
        Mark::in_folder(&Path::new("/proc").join(pid.as_raw_nonzero().to_string()))
    }

    fn in_folder(folder: &Path) -> Option<Mark> {
        let limits = std::fs::read_to_string(folder.join("limits")).ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max realtime timeout"))?;
        // The name, the soft limit, the hard limit, the unit. The soft one may be lowered
        // and raised again; the hard one stays.
        Mark::of_limit(line.split_whitespace().nth(4)?.parse().ok()?)
    }
}

/// Leases are counted in so many bits, and then begin again: by then nothing of the first
/// one is left.
const LEASES: u16 = (1 << 14) - 1;

fn lease_number(lease: u64) -> u16 {
    lease as u16 & LEASES
}

fn number(process: &str) -> u32 {
    process.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Fails where commands could not be marked.
pub(crate) fn check() -> Result<(), Error> {
    let most = rustix::process::getrlimit(Resource::Rttime).maximum;
    if most.is_some_and(|most| most < 2 * LEAST - 1) {
        return Err(Error::Config(
            "the limit of real-time processor time (RLIMIT_RTTIME, LimitRTTIME) is in use, by \
             which the processes of a command are known; remove it for workers"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Which marks of a worker process are meant.
pub(crate) enum Leases {
    All,
    But(u64),
    /// Those under which something began that long ago.
    BegunBefore(Moment),
}

/// Kills all processes of a worker process with such marks, and does not return before a
/// look finds none, or until `deadline`; whether none is left.
pub(crate) fn kill_all(process: &str, leases: &Leases, deadline: Option<Moment>) -> bool {
    let process = number(process);
    let is_meant: Box<dyn Fn(u16) -> bool> = match leases {
        Leases::All => Box::new(|_| true),
        Leases::But(spared) => {
            let spared = lease_number(*spared);
            Box::new(move |lease| lease != spared)
        }
        Leases::BegunBefore(moment) => {
            let old = leases_before(process, *moment);
            Box::new(move |lease| old.contains(&lease))
        }
    };
    // A child between fork and its mark gets that a moment later, and then looks whether
    // its lease has ended: two clean looks in a row, a little apart.
    let mut n_clean = 0;
    let mut pause = FIRST_PAUSE;
    while n_clean < 2 {
        let alive = kill_once(|mark| mark.process == process && is_meant(mark.lease));
        if alive.is_empty() {
            n_clean += 1;
        } else {
            n_clean = 0;
            pause = (pause * 2).min(LAST_PAUSE);
            if pause == LAST_PAUSE {
                log::warn!("processes that cannot be killed: {alive:?}; trying again");
            }
        }
        if n_clean < 2 && deadline.is_some_and(Moment::has_passed) {
            return false;
        }
        std::thread::sleep(pause);
    }
    true
}

/// Whether something that a worker process started is alive.
pub(crate) fn is_anybody_left(process: &str) -> bool {
    let process = number(process);
    let is_its =
        |folder: &Path| Mark::in_folder(folder).is_some_and(|mark| mark.process == process);
    processes().any(|(_, folder)| is_its(&folder) && is_alive(&folder))
}

/// Pauses between two looks: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// The process groups of a worker process's commands, whose leaders are alive.
pub(crate) fn groups(process: &str) -> impl Iterator<Item = Pid> {
    let process = number(process);
    processes()
        // In this order: the other look costs more. (Threads of the kernel have group 0,
        // which rustix takes for impossible.)
        .filter(|(pid, folder)| group_of(folder) == Some(pid.as_raw_nonzero().get()))
        .filter(move |(_, folder)| Mark::in_folder(folder).is_some_and(|it| it.process == process))
        .map(|(pid, _)| pid)
}

/// Kills every process of whose mark this holds; those that were alive.
fn kill_once(is_meant: impl Fn(Mark) -> bool) -> Vec<Pid> {
    let mut found = Vec::new();
    for (pid, folder) in processes() {
        // Opened before the look, so that the signal cannot hit a successor.
        let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if Mark::in_folder(&folder).is_some_and(&is_meant) && is_alive(&folder) {
            found.push(pid);
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    found
}

/// The leases in the marks of those processes that began before this moment. What such a
/// process started later bears the same.
fn leases_before(process: u32, moment: Moment) -> HashSet<u16> {
    let old = processes().filter(|(_, folder)| began(folder).is_some_and(|began| began < moment));
    let marks = old.filter_map(|(_, folder)| Mark::in_folder(&folder));
    marks.filter(|mark| mark.process == process).map(|mark| mark.lease).collect()
}

fn processes() -> impl Iterator<Item = (Pid, PathBuf)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some((pid, entry.path()))
    })
}

/// What `stat` says after the name, which may hold anything and stands in parentheses.
fn stat(folder: &Path) -> Option<String> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}

fn group_of(folder: &Path) -> Option<i32> {
    stat(folder)?.split_whitespace().nth(2)?.parse().ok()
}

/// Whether it can still do anything. One whose first thread has ended looks dead while
/// others run.
fn is_alive(folder: &Path) -> bool {
    let Some(stat) = stat(folder) else { return false };
    let n_threads = stat.split_whitespace().nth(17).and_then(|n| n.parse().ok()).unwrap_or(1);
    !stat.starts_with(['Z', 'X']) || n_threads > 1
}

fn began(folder: &Path) -> Option<Moment> {
    let ticks: u64 = stat(folder)?.split_whitespace().nth(19)?.parse().ok()?;
    Some(Moment::from_nanos(ticks * (1_000_000_000 / rustix::param::clock_ticks_per_second())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_set() {
        let mark = Mark::new("89abcdef-0000-4000-8000-000000000000", 70_000, 65_535);
        let limit = mark.limit().maximum.expect("it is a number");
        assert_eq!(Mark::of_limit(limit), Some(mark));
        assert_eq!(mark.process, 0x89ab_cdef);
        for unmarked in [0, 1000, LEAST - 1, u64::MAX, 1 << 63] {
            assert_eq!(Mark::of_limit(unmarked), None);
        }
    }
}
