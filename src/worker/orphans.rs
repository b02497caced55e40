//! What commands leave behind: processes whose parents have died.
//!
//! The kernel gives them to this process (`PR_SET_CHILD_SUBREAPER`), as it gives all
//! orphans of a system to its init. So all that a command started is below it while it
//! lives, and is a child of this process, or below one, when it has died.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::mark::Mark;
use crate::error::Error;

/// From now on the orphans of commands come to this process.
pub(crate) fn adopt() -> Result<(), Error> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| {
        Error::Unavailable {
            doing: "could not become the parent of orphans".to_owned(),
            source: error.into(),
        }
    })
}

/// Ends all that bears this mark and has been left by its parents, and what that leaves
/// behind in turn, until nothing is. The command itself (`leader`) has ended, and is for
/// its thread to take note of.
pub(crate) fn end(mark: Mark, leader: Pid) {
    // The kernel may skip an entry of the list while another one goes.
    let mut n_clean = 0;
    while n_clean < 2 {
        n_clean += 1;
        for pid in adopted() {
            // Opened before the look, so that the signal cannot hit a successor.
            let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
            if pid != leader && Mark::of(pid) == Some(mark) {
                n_clean = 0;
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                wait_for_death(&pidfd, pid);
                // Its children have come to us by now.
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options);
            }
        }
    }
}

/// Waits until it is dead, which is in a moment; unless it runs as another user, or hangs in
/// the kernel. Nobody else may have the task's resources before.
fn wait_for_death(pidfd: &OwnedFd, pid: Pid) {
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    while matches!(rustix::event::poll(&mut fds, Some(&patience)), Ok(0)) {
        log::warn!("process {pid} was left by a command and cannot be killed; waiting for its end");
        let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    }
}

/// Takes note of orphans that have died by themselves, so that they go: of those that
/// commands left or, if this process has no other children, of all. Who waits for a child
/// of its own is not robbed of it (`known`).
pub(crate) fn reap(all: bool, known: impl Fn(Pid) -> bool) {
    for pid in adopted() {
        if !known(pid) && (all || Mark::of(pid).is_some()) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let _ = rustix::process::waitid(WaitId::Pid(pid), options);
        }
    }
}

/// The children of this process's first thread. Orphans are among them; what other
/// threads start is not.
fn adopted() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero();
    let list = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    let list = list.unwrap_or_else(|_| children_by_parent(own.get()));
    list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// The same where the kernel has no such list (without `CONFIG_PROC_CHILDREN`).
fn children_by_parent(parent: i32) -> String {
    let Ok(entries) = std::fs::read_dir("/proc") else { return String::new() };
    let mut list = String::new();
    for entry in entries.flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, rest)| rest.split_whitespace());
        if fields.and_then(|mut fields| fields.nth(1)?.parse().ok()) == Some(parent) {
            list.push_str(&entry.file_name().to_string_lossy());
            list.push(' ');
        }
    }
    list
}
