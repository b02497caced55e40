//! A cgroup of its own for the commands of each thread, where the worker may make some:
//! in a systemd unit with `Delegate=yes`, or as root.
//!
//! The kernel kills all of a cgroup in one step that nothing in it can outrun or leave.
//! Below the worker's own cgroup there is one for its process, in that one for each of its
//! leases, and in those one for each thread, which runs one task at a time.
//!
//! Where that cannot be had, marks, groups and orphans do (`mark.rs`, `orphans.rs`).

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};

/// What belongs to one worker process.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    folder: PathBuf,
}

/// The cgroup of a thread, under one lease.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    /// Writing 0 here moves the writer into it.
    pub(crate) entry: File,
}

impl Cgroups {
    /// Makes those of a worker process; none where that may not be.
    pub(crate) fn make(process: &str) -> Option<Cgroups> {
        let cgroups = Cgroups::of(process)?;
        std::fs::create_dir(&cgroups.folder).ok()?;
        // Linux 5.14.
        if cgroups.folder.join("cgroup.kill").exists() {
            return Some(cgroups);
        }
        cgroups.remove();
        None
    }

    /// Those that a process of this cgroup would have.
    pub(crate) fn of(process: &str) -> Option<Cgroups> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let folder = own_folder(&mounts, &groups)?;
        Some(Cgroups { folder: folder.join(format!("millhand-{process}")) })
    }

    /// The one of a thread under a lease, which begins with it.
    pub(crate) fn of_thread(&self, lease: u64, thread: usize) -> std::io::Result<Cgroup> {
        let folder = self.folder.join(lease.to_string()).join(thread.to_string());
        std::fs::create_dir_all(&folder)?;
        let entry = OpenOptions::new().write(true).open(folder.join("cgroup.procs"))?;
        Ok(Cgroup { folder, entry })
    }

    /// Kills what began under leases of which this holds; it may take a moment to be dead.
    pub(crate) fn kill_all(&self, is_meant: impl Fn(u64) -> bool) {
        for lease in subfolders(&self.folder) {
            let number = lease.file_name().and_then(|name| name.to_str()?.parse().ok());
            if number.is_some_and(&is_meant) {
                kill(&lease);
            }
        }
    }

    /// Takes them away; those in which something lives stay.
    pub(crate) fn remove(&self) {
        for lease in subfolders(&self.folder) {
            for thread in subfolders(&lease) {
                let _ = std::fs::remove_dir(thread);
            }
            let _ = std::fs::remove_dir(lease);
        }
        let _ = std::fs::remove_dir(&self.folder);
    }
}

impl Cgroup {
    /// Kills all that is in it, and waits until that is dead.
    pub(crate) fn end(&self) {
        kill(&self.folder);
        let Ok(mut events) = File::open(self.folder.join("cgroup.events")) else { return };
        loop {
            let mut text = String::new();
            if std::io::Seek::rewind(&mut events).is_err()
                || events.read_to_string(&mut text).is_err()
                || text.lines().any(|line| line == "populated 0")
            {
                return;
            }
            // Told when that changes after the read above.
            let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
            let _ = rustix::event::poll(&mut fds, None);
        }
    }
}

fn kill(folder: &Path) {
    let _ = std::fs::write(folder.join("cgroup.kill"), "1");
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let folders = entries.flatten().map(|entry| entry.path());
    folders.filter(|path| path.is_dir()).collect()
}

/// The folder of a process's own cgroup, from its `mountinfo` and `cgroup` files. In a
/// container the mount may begin further down than the name of the cgroup.
fn own_folder(mounts: &str, groups: &str) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = before.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        let below = Path::new(group).strip_prefix(root).ok()?;
        Some(Path::new(place).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::own_folder;
    use std::path::Path;

    #[test]
    fn the_own_cgroup_is_found_below_its_mount() {
        let mount =
            |root| format!("30 1 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw");
        let legacy = "31 1 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let unit = "5:pids:/x\n0::/system.slice/millhand.service\n";
        let found = |mounts: &str, groups| own_folder(mounts, groups);
        assert_eq!(
            found(&format!("{legacy}{}", mount("/")), unit).as_deref(),
            Some(Path::new("/sys/fs/cgroup/system.slice/millhand.service"))
        );
        assert_eq!(
            found(&mount("/system.slice"), unit).as_deref(),
            Some(Path::new("/sys/fs/cgroup/millhand.service"))
        );
        assert_eq!(found(&mount("/"), "0::/\n").as_deref(), Some(Path::new("/sys/fs/cgroup/")));
        assert_eq!(found(&mount("/other"), unit), None);
        assert_eq!(found(legacy, unit), None);
    }
}
