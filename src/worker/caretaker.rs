//! The thread that touches the machine for a worker process: it looks whether commands can
//! begin again, takes note of orphans that have died, and removes what dead workers left.
//!
//! File systems may hang, and directories be large, so this is no work for the
//! housekeeper, whose heartbeats keep all tasks alive.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::{Shared, orphans, warden};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Caretaker {
    sender: Sender<PathBuf>,
    directories: Receiver<PathBuf>,
}

impl Caretaker {
    pub(super) fn new() -> Caretaker {
        let (sender, directories) = crossbeam_channel::unbounded();
        Caretaker { sender, directories }
    }

    /// Removes these directories, some time.
    pub(super) fn remove(&self, directories: Vec<PathBuf>) {
        for directory in directories {
            // We hold the other end.
            let _ = self.sender.send(directory);
        }
    }
}

/// Works until the workers have left, and what there is to remove is removed.
pub(super) fn take_care(shared: &Arc<Shared>) {
    loop {
        let is_last = shared.has_ended();
        if shared.offer.look() {
            shared.back_end.ring();
        }
        if shared.registry.has_commands() {
            orphans::reap(shared.owns_process, |process| shared.warden.knows(process));
        }
        while let Ok(directory) = shared.caretaker.directories.try_recv() {
            warden::remove(&directory);
        }
        if is_last {
            return;
        }
        shared.pause_unless(INTERVAL, || !shared.caretaker.directories.is_empty());
    }
}
