//! By what the processes of a task are known, wherever they have gone.
//!
//! Each command begins under a limit that nothing else uses, and whatever it starts
//! inherits that: a child that leaves its process group, that outlives its parent, that
//! clears its environment. The limit is the processor time that a real-time process may
//! take without a pause (`RLIMIT_RTTIME`); a mark is a number of microseconds of more than
//! a hundred thousand years, so it limits nothing. No process can raise it again, but for
//! one that may raise any limit (`CAP_SYS_RESOURCE`).

use std::io;
use std::path::Path;
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

/// Kills all processes of a worker process that bear a mark of one of its leases but
/// `spared`, and does not return before a look finds none, or until `deadline`; whether
/// none is left.
pub(crate) fn kill_all(process: &str, spared: Option<u64>, deadline: Option<Moment>) -> bool {
    let process = number(process);
    let spared = spared.map(lease_number);
    // A child between fork and its mark gets that a moment later, and then looks whether
    // its lease has ended: two clean looks in a row, a little apart.
    let mut n_clean = 0;
    while n_clean < 2 {
        if kill_once(|mark| mark.process == process && Some(mark.lease) != spared) {
            n_clean = 0;
        } else {
            n_clean += 1;
        }
        if n_clean < 2 && deadline.is_some_and(Moment::has_passed) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Kills every process of whose mark this holds; whether there was one alive.
fn kill_once(is_meant: impl Fn(Mark) -> bool) -> bool {
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
        if Mark::in_folder(&entry.path()).is_some_and(&is_meant) && !is_dead(&entry.path()) {
            found = true;
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
    found
}

/// Whether it is dead, and its parent has yet to notice.
fn is_dead(folder: &Path) -> bool {
    let stat: io::Result<String> = std::fs::read_to_string(folder.join("stat"));
    // Its name, which may hold anything, stands in parentheses before the state.
    stat.is_ok_and(|stat| {
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
    })
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
