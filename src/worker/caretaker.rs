//! The thread that touches the machine for a worker process: it looks whether commands can
//! begin again, reads handlers anew, takes note of orphans that have died, and removes what
//! dead workers left.
//!
//! File systems and the look-up of users may hang, and directories be large, so this is no work for the
//! housekeeper, whose heartbeats keep all tasks alive.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::reload::reload;
use super::{Shared, orphans, warden};
use crate::config::Config;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Caretaker {
    sender: Sender<PathBuf>,
    directories: Receiver<PathBuf>,
    reload_sender: Sender<Box<Config>>,
    reloads: Receiver<Box<Config>>,
}

impl Caretaker {
    pub(super) fn new() -> Caretaker {
        let (sender, directories) = crossbeam_channel::unbounded();
        let (reload_sender, reloads) = crossbeam_channel::unbounded();
        Caretaker { sender, directories, reload_sender, reloads }
    }

    /// Takes the handlers of these settings, at the next look.
    pub(super) fn reload(&self, config: Box<Config>) {
        // We hold the other end.
        let _ = self.reload_sender.send(config);
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
    let has_commands = shared.source.may_have_commands();
    // Whoever sweeps the tasks of a dead worker reads its logs first, and has done so by then.
    let mut remains =
        has_commands.then(|| (shared.directories.dead(), Instant::now() + shared.identity.ttl * 2));
    loop {
        let is_last = shared.has_ended();
        while let Ok(config) = shared.caretaker.reloads.try_recv() {
            reload(shared, &config);
        }
        if shared.offer.look() {
            shared.back_end.ring();
        }
        if let Some((dead, _)) = remains.take_if(|(_, due)| *due <= Instant::now()) {
            shared.directories.remove_remains(&dead);
        }
        if has_commands {
            orphans::reap(shared.owns_process, |process| shared.warden.knows(process));
        }
        while let Ok(directory) = shared.caretaker.directories.try_recv() {
            warden::remove(&directory);
        }
        if is_last {
            return;
        }
        let has_work =
            || !shared.caretaker.directories.is_empty() || !shared.caretaker.reloads.is_empty();
        shared.pause_unless(INTERVAL, has_work);
    }
}
