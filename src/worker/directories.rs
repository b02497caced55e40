//! The working directories of tasks: fresh ones, and what dead workers left of theirs.
//!
//! Beside them a worker process has one directory that it keeps locked, and copies of logs in. The lock goes with
//! the process, however that ends: whoever gets it knows that its worker is dead, of
//! whatever database that was, and without asking any.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use tempfile::TempDir;

use super::{mark, tail, warden};
use crate::task::TaskId;

/// Far more than a ttl: nobody comes for a log any more.
const A_DAY: Duration = Duration::from_secs(86_400);

pub(crate) struct Directories {
    folder: PathBuf,
    process: String,
    lock: Mutex<Option<OwnedFd>>,
}

impl Directories {
    /// Those of a worker process in this folder.
    pub(crate) fn new(folder: PathBuf, process: &str) -> Directories {
        Directories { folder, process: process.to_owned(), lock: Mutex::new(None) }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A fresh directory for a task, removed when dropped. The error says what to do.
    pub(crate) fn fresh(&self) -> Result<TempDir, String> {
        let prefix = warden::directory_prefix(&self.process);
        // What a command puts there is nobody else's business.
        let permissions = std::fs::Permissions::from_mode(0o700);
        let made = self.keep_locked().and_then(|()| {
            let mut builder = tempfile::Builder::new();
            builder.prefix(&prefix).permissions(permissions).tempdir_in(&self.folder)
        });
        made.map_err(|error| {
            format!(
                "could not make a working directory in {}: {error}; \
                 make room there or set `working_directory`",
                self.folder.display()
            )
        })
    }

    /// Where a copy of a start's log is to be; none if there is no place for it.
    pub(super) fn log(&self, id: TaskId, fence: i64) -> Option<PathBuf> {
        self.keep_locked().ok()?;
        Some(lock_path(&self.folder, &self.process).join(tail::file_name(id, fence)))
    }

    /// Removes the locked one: no task runs any more.
    pub(crate) fn end(&self) {
        if self.lock.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            // It may have been removed by hand.
            let _ = std::fs::remove_dir(lock_path(&self.folder, &self.process));
        }
    }

    /// The processes that left something here and are dead.
    pub(crate) fn dead(&self) -> Vec<String> {
        let mut processes = processes(&self.folder);
        processes.retain(|process| {
            *process != self.process && lock(&lock_path(&self.folder, process)).is_some()
        });
        processes
    }

    /// Removes what these dead processes left here, unless something of them still runs: that
    /// is for whoever sweeps their tasks.
    pub(crate) fn remove_remains(&self, processes: &[String]) {
        for process in processes {
            // Kept until all is removed.
            let Some(_lock) = lock(&lock_path(&self.folder, process)) else { continue };
            if mark::is_anybody_left(process) {
                continue;
            }
            // Whoever sweeps its tasks stores its logs, and removes all of this then.
            if has_new_logs(&lock_path(&self.folder, process)) {
                continue;
            }
            log::info!("removing what a dead worker left in {}", self.folder.display());
            for directory in warden::remains_of(process, &self.folder) {
                warden::remove(&directory);
            }
        }
    }

    /// Makes and locks the directory that says that this process is alive. Where there are no
    /// such locks, nobody takes it for dead either.
    fn keep_locked(&self) -> std::io::Result<()> {
        let path = lock_path(&self.folder, &self.process);
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // The whole folder may have been removed, and made again.
        if held.is_none() || !path.exists() {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => *held = lock(&path),
            }
        }
        Ok(())
    }
}

/// Whether there is a log that a sweeper may still come for.
fn has_new_logs(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let age = |entry: std::fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
    entries.filter_map(age).any(|age| age < A_DAY)
}

/// The directory that a worker process keeps locked.
pub(super) fn lock_path(folder: &Path, process: &str) -> PathBuf {
    folder.join(format!("{}lock", warden::directory_prefix(process)))
}

/// Locks a directory, unless somebody has, or it is another user's.
fn lock(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let directory = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    if rustix::fs::fstat(&directory).ok()?.st_uid != rustix::process::geteuid().as_raw() {
        return None;
    }
    rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(directory)
}

/// The processes that have, or had, a locked directory here.
fn processes(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let process = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let process = name.strip_prefix("millhand-task-")?.strip_suffix("-lock")?;
        Some(process.to_owned())
    };
    entries.flatten().filter_map(process).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn entries(folder: &Path) -> usize {
        std::fs::read_dir(folder).expect("it is there").count()
    }

    #[test]
    fn only_what_a_dead_worker_left_is_removed() {
        let folder = tempfile::tempdir().expect("there is room");
        let of = |process| Directories::new(folder.path().to_owned(), process);
        let (alive, dead) = (of("00000000-a"), of("00000000-b"));
        let task = alive.fresh().expect("there is room");
        let _left = dead.fresh().expect("there is room").keep();
        // Of nobody who says whether they are alive.
        std::fs::create_dir(folder.path().join("millhand-task-00000000-c-x"))
            .expect("there is room");
        let third = of("00000000-d");
        assert_eq!(third.dead(), Vec::<String>::new(), "all have their locks");
        drop(dead);
        let log = folder.path().join("millhand-task-00000000-b-lock/1-1.log");
        let file = std::fs::File::create(&log).expect("there is room");
        third.remove_remains(&third.dead());
        assert!(log.exists(), "nobody has stored it");
        file.set_modified(SystemTime::now() - 2 * A_DAY).expect("it is ours");
        third.remove_remains(&third.dead());
        assert!(task.path().exists());
        assert_eq!(entries(folder.path()), 3);
        drop(task);
        alive.end();
        assert_eq!(entries(folder.path()), 1);
    }
}
