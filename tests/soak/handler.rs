//! What the tasks of a soak run: a command that finds out whether it is alone.
//!
//! It takes a lock on a file for each of its resources, which lives as long as it does
//! and as long as anybody that it has left behind, and notes in a journal what should
//! not be:
//!
//! - `OVERLAP`: somebody who needs the same resource, or whom such a one has left
//!   behind, is alive;
//! - `STALEFENCE`: the fencing token is not above all that the resource has seen.
//!
//! That a task started twice shows in two lines `START`.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

/// How long anybody who is left behind lives if nobody ends it: longer than its
/// resources stay free.
const AFTERLIFE: Duration = Duration::from_secs(40);

/// A dead process keeps its locks for as long as the kernel needs to clear it away.
const FUNERAL: Duration = Duration::from_secs(5);

/// Whom a command leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Left {
    Nobody,
    /// In a session of its own.
    Child,
    /// The same, and its parent is dead.
    Daemon,
}

/// What a command is told to do, as JSON on stdin.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Of the journal and of the files of resources.
    pub(crate) folder: PathBuf,
    pub(crate) exclusive: Vec<String>,
    pub(crate) shared: Vec<String>,
    pub(crate) millis: u64,
    pub(crate) leaves: Left,
    /// Whether whom it leaves has an empty environment.
    pub(crate) bare: bool,
    /// Whether it ignores SIGTERM.
    pub(crate) stubborn: bool,
    /// How many bytes it writes.
    pub(crate) n_bytes: usize,
    pub(crate) fails: bool,
}

/// Appends one line, at once and whole.
struct Journal {
    file: File,
    task: String,
}

impl Journal {
    fn open(folder: &Path) -> Journal {
        let file = OpenOptions::new().append(true).create(true).open(folder.join("journal"));
        Journal { file: file.unwrap(), task: std::env::var("MILLHAND_TASK_ID").unwrap() }
    }

    fn note(&mut self, what: &str, details: impl Display) {
        let line = format!("{what} {} {details}\n", self.task);
        self.file.write_all(line.as_bytes()).unwrap();
    }
}

/// Runs a task.
pub(crate) fn run() -> ExitCode {
    let mut input = String::new();
    std::io::stdin().read_to_string(&mut input).unwrap();
    let order: Order = serde_json::from_str(&input).unwrap();
    if order.stubborn {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, flag).unwrap();
    }
    let mut journal = Journal::open(&order.folder);
    let fence: u64 = std::env::var("MILLHAND_FENCE").unwrap().parse().unwrap();
    journal.note("START", format_args!("{fence} {}", std::process::id()));
    let mut locks = Vec::new();
    for (names, exclusively) in [(&order.exclusive, true), (&order.shared, false)] {
        for name in names.iter().filter(|name| exclusively || !order.exclusive.contains(name)) {
            locks.push(lock(&mut journal, &order.folder, name, exclusively));
            if exclusively {
                check_fence(&mut journal, &order.folder, name, fence);
            }
        }
    }
    leave(&order);
    thread::sleep(Duration::from_millis(order.millis));
    let _ = std::io::stdout().write_all(&vec![b'x'; order.n_bytes]);
    journal.note("END", fence);
    drop(locks);
    ExitCode::from(if order.fails { 3 } else { 0 })
}

/// A lock that whoever is started from now on inherits.
fn lock(journal: &mut Journal, folder: &Path, name: &str, exclusively: bool) -> File {
    let path = folder.join(format!("lock-{name}"));
    let file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    let operation = if exclusively {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    let end = Instant::now() + FUNERAL;
    while flock(&file, operation).is_err() {
        if let Some(holder) = holders(&[file.metadata().unwrap().ino()]).first() {
            journal.note("OVERLAP", format_args!("{name} is held by {holder}"));
            break;
        }
        if Instant::now() > end {
            journal.note("OVERLAP", format_args!("{name} is held by somebody unseen"));
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    rustix::io::fcntl_setfd(&file, FdFlags::empty()).unwrap();
    file
}

/// The living processes that hold a lock on one of these files. One that has no program
/// any more is dead, though its descriptors may still be open.
pub(crate) fn holders(inodes: &[u64]) -> Vec<String> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let folder = process.path();
        let Ok(fds) = fs::read_dir(folder.join("fd")) else { continue };
        for fd in fds.flatten() {
            let is_one = fs::metadata(fd.path()).is_ok_and(|file| inodes.contains(&file.ino()));
            let info = folder.join("fdinfo").join(fd.file_name());
            if is_one
                && fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
                && fs::read_link(folder.join("exe")).is_ok()
            {
                let words = fs::read(folder.join("cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                let environ = fs::read(folder.join("environ")).unwrap_or_default();
                let task = variable(&environ, "MILLHAND_TASK_ID").unwrap_or_default();
                found.push(format!("{} {words}of task {task}", process.file_name().display()));
            }
        }
    }
    found
}

/// One variable of what /proc says of a process's environment.
pub(crate) fn variable(environ: &[u8], name: &str) -> Option<String> {
    let environ = String::from_utf8_lossy(environ);
    let mut variables = environ.split('\0').filter_map(|variable| variable.split_once('='));
    variables.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
}

fn check_fence(journal: &mut Journal, folder: &Path, name: &str, fence: u64) {
    let path = folder.join(format!("fence-{name}"));
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).unwrap();
    let mut seen = String::new();
    file.read_to_string(&mut seen).unwrap();
    let highest = seen.lines().filter_map(|line| line.parse().ok()).max().unwrap_or(0);
    if fence <= highest {
        journal.note("STALEFENCE", format_args!("{name} has seen {highest}, now {fence}"));
        return;
    }
    // The last one is enough; one that is killed in between leaves an older one.
    if seen.len() > 4096 {
        file.set_len(0).unwrap();
        file.rewind().unwrap();
    }
    file.write_all(format!("{fence}\n").as_bytes()).unwrap();
}

fn leave(order: &Order) {
    let word = match order.leaves {
        Left::Nobody => return,
        Left::Child => "child",
        Left::Daemon => "daemon",
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["left", word]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if order.bare {
        command.env_clear();
    }
    let mut child = command.spawn().unwrap();
    match order.leaves {
        Left::Daemon => drop(child.wait().unwrap()),
        // It is not waited for: that is what this is about.
        _ => std::mem::forget(child),
    }
}

/// Runs somebody who is left behind; our descriptors stay open.
pub(crate) fn be_left(word: &str) -> ExitCode {
    rustix::process::setsid().unwrap();
    if word == "daemon" {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["left", "child"]);
        let daemon = command.spawn().unwrap();
        // Its parent is gone in a moment.
        std::mem::forget(daemon);
        return ExitCode::SUCCESS;
    }
    thread::sleep(AFTERLIFE);
    ExitCode::SUCCESS
}
