//! Where a command runs.

use std::io;
use std::path::Path;

use tempfile::TempDir;

use super::{NotBegun, Plan};
use crate::worker::directories::Directories;

pub(super) enum Place<'a> {
    /// Its task's own, gone when that has ended.
    Fresh(TempDir),
    /// Its handler's.
    Kept(&'a Path),
}

impl Place<'_> {
    pub(super) fn of<'a>(plan: &'a Plan, directories: &Directories) -> Result<Place<'a>, NotBegun> {
        if let Some(directory) = &plan.handler.directory {
            return Ok(Place::Kept(directory));
        }
        let fresh = directories.fresh().map_err(NotBegun::Machine)?;
        if let Some(account) = &plan.account {
            let (uid, gid) = (account.uid.as_raw(), account.gid.as_raw());
            std::os::unix::fs::chown(fresh.path(), Some(uid), Some(gid)).map_err(|error| {
                NotBegun::Machine(format!(
                    "could not give a working directory to user `{}`: {error}",
                    account.name
                ))
            })?;
        }
        Ok(Place::Fresh(fresh))
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Place::Fresh(directory) => directory.path(),
            Place::Kept(directory) => directory,
        }
    }

    /// The task has ended, and nothing of it runs.
    pub(super) fn leave(self) -> io::Result<()> {
        match self {
            Place::Fresh(directory) => directory.close(),
            Place::Kept(_) => Ok(()),
        }
    }
}
