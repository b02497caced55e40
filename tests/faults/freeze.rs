//! Freezes at the worst moment: of a worker between taking a task and beginning it, of
//! the server around the end of a lease.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use millhand::{NewTask, TaskState, client};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::support::clean::assert_clean;
use crate::support::database::{Database, start_server};
use crate::support::process::{WorkerProcess, Workshop, run, server_processes, signal_all};
use crate::support::{SOON, WORKER_TYPES, wait_until};

const HANDLERS: &str = r#"
[handlers.note]
command = ["sh", "-c", "echo $MILLHAND_TASK_ID >>\"$0/starts\"", "{folder}"]
[handlers.short]
command = ["sleep", "0.05"]
"#;

const N_THREADS: usize = 24;

/// A file system of its own, that can be frozen.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn new() -> Disk {
        let disk = Disk { folder: TempDir::with_prefix("millhand-test-").unwrap() };
        let image = disk.folder.path().join("image");
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        fs::create_dir(disk.path()).unwrap();
        disk.must(Command::new("mkfs.ext4").arg("-q").arg(&image));
        disk.must(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(disk.path()));
        disk
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    #[track_caller]
    fn must(&self, command: &mut Command) {
        let said = run(command);
        assert_eq!(said.code, Some(0), "this needs root and a loop device: {command:?}: {said:?}");
    }

    /// Whoever changes something in it stands still until the value is dropped, and
    /// cannot be killed either.
    fn freeze(&self) -> Frozen {
        self.must(Command::new("fsfreeze").arg("--freeze").arg(self.path()));
        Frozen { path: self.path() }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

struct Frozen {
    path: PathBuf,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.path).status();
    }
}

fn worker(
    workshop: &Workshop,
    worker_type: &str,
    ttl: &str,
    n: usize,
    work: &Path,
) -> WorkerProcess {
    let mut command = workshop.millhand(["worker", "--type", worker_type]);
    command.args(["--threads", &n.to_string()]);
    command.env("MILLHAND_TTL", ttl).env("MILLHAND_WORKING_DIRECTORY", work);
    WorkerProcess::start(command)
}

#[test]
fn a_worker_frozen_before_it_begins_its_tasks_begins_none_that_was_given_on() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let disk = Disk::new();
        let slow = worker(&workshop, worker_type, "2s", N_THREADS, &disk.path());
        let old = database.wait_for_workers(N_THREADS);
        let frozen = disk.freeze();
        let folder = workshop.path().display().to_string();
        let task = NewTask::new("note").args(json!({ "folder": folder }));
        let tasks = client::dispatch_many(&mut database.connect(), &vec![task; N_THREADS]).unwrap();
        // All are taken, and hang where their working directories are made.
        for id in &tasks {
            database.wait_for_state(*id, TaskState::Running);
        }
        slow.signal(Signal::STOP);
        drop(frozen);
        let other = worker(&workshop, worker_type, "2s", 1, &workshop.work());
        for id in &tasks {
            database.wait_for_state(*id, TaskState::Failed);
        }
        slow.signal(Signal::CONT);
        wait_until(&database, "it has started anew", SOON, || {
            let ids = database.worker_ids();
            if ids.len() == N_THREADS + 1 && ids.is_disjoint(&old) { Ok(()) } else { Err(ids) }
        });
        let starts = fs::read_to_string(workshop.path().join("starts")).unwrap_or_default();
        assert_eq!(starts, "", "these began after they had failed");
        slow.stop(Signal::TERM);
        other.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// Processes that have nothing to do with anything, but are there to be looked at.
struct Crowd {
    members: Vec<Child>,
}

impl Crowd {
    fn new(n: usize) -> Crowd {
        let member = |_| Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        Crowd { members: (0..n).map(member).collect() }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// A server stands still from a heartbeat until about when the lease that this one gave
/// ends. What is killed then is what began before; what begins later is under a lease of
/// its own. The crowd makes every search for processes long.
#[test]
fn after_a_stall_no_command_is_killed_that_has_begun_under_a_new_lease() {
    const LEASE: u64 = 3600;
    let _crowd = Crowd::new(1000);
    for worker_type in WORKER_TYPES {
        // Its own: it stands still.
        let server = start_server();
        let database = Database::of(&server);
        let workshop = Workshop::new(&database, HANDLERS);
        let worker = worker(&workshop, worker_type, "4s", 8, &workshop.work());
        database.wait_for_workers(8);
        let mut connection = database.connect();
        let mut spans = Vec::new();
        for millis in [-400, -30, 0, 30, 60, 100, 150, 600] {
            // More than can be done until the next stall.
            client::dispatch_many(&mut connection, &vec![NewTask::new("short"); 600]).unwrap();
            wait_for_completed(&database, 40);
            wait_for_heartbeat(&database);
            let began = Instant::now();
            let stalled = server_processes(&server);
            signal_all(&stalled, Signal::STOP);
            let span = Duration::from_millis(LEASE.saturating_add_signed(millis));
            std::thread::sleep(span.saturating_sub(began.elapsed()));
            signal_all(&stalled, Signal::CONT);
            let row = connection.query_one("SELECT clock_timestamp()", &[]).unwrap();
            let back: Timestamp = row.get(0);
            wait_for_completed(&database, 80);
            let cancel = "SELECT millhand.cancel(id) FROM millhand.task WHERE state = 'waiting'";
            connection.execute(cancel, &[]).unwrap();
            database.wait_for_all_final();
            spans.push((back, database.tasks().iter().filter_map(|task| task.finished_at).max()));
        }
        let is_new = |start: Option<Timestamp>| {
            spans.iter().any(|(back, end)| start > Some(*back) && start <= *end)
        };
        let killed: Vec<_> = database
            .tasks()
            .into_iter()
            // One that began under the old lease is ended by its worker, which says so.
            .filter(|task| task.error.as_ref().is_some_and(|error| error.contains("killed")))
            .filter(|task| is_new(task.started_at))
            .map(|task| (task.id, task.started_at, task.error))
            .collect();
        assert!(killed.is_empty(), "{killed:#?}\n{}", worker.stderr());
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// Waits until the one worker process has renewed its rows once more.
fn wait_for_heartbeat(database: &Database) {
    let mut connection = database.connect();
    let mut last = || -> Option<i64> {
        let query = "SELECT max(xmin::text::bigint) FROM millhand.worker";
        connection.query_one(query, &[]).unwrap().get(0)
    };
    let before = last();
    wait_until(database, "a heartbeat", SOON, || {
        let now = last();
        if now > before { Ok(()) } else { Err(now) }
    });
}

/// Waits until this many more tasks are completed.
fn wait_for_completed(database: &Database, n: i64) {
    let mut connection = database.connect();
    let mut count = || -> i64 {
        let query = "SELECT count(*) FROM millhand.task WHERE state = 'completed'";
        connection.query_one(query, &[]).unwrap().get(0)
    };
    let before = count();
    wait_until(database, &format!("{n} more tasks are completed"), SOON, || {
        let now = count();
        if now >= before + n { Ok(()) } else { Err(now - before) }
    });
}
