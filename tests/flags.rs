//! What a worker process is told by flags and settings.

use std::fs;

use millhand::{NewTask, TaskState, fleet};
use rustix::process::Signal;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{WorkerProcess, Workshop, run};
use crate::support::{SOON, WORKER_TYPES, wait_until};

const HANDLERS: &str = "[handlers.true]\ncommand = [\"true\"]\n\
                        [handlers.fill]\ncommand = [\"sh\", \"-c\", \"head -c 1000000 /dev/zero >file\"]";

/// A row as a worker leaves it that died with its whole machine.
fn insert_worker(database: &Database, worker_type: &str, name: &str, ttl: &str) {
    database
        .connect()
        .execute(
            "INSERT INTO millhand.worker (name, type, process, hostname, pid, ttl, last_heartbeat)
             SELECT $1, $2, $1, 'elsewhere', 1, $3::text::interval,
                    clock_timestamp() - '1 minute'::interval",
            &[&name, &worker_type, &ttl],
        )
        .unwrap();
}

fn names(database: &Database) -> Vec<String> {
    let workers = fleet::workers(&mut database.connect()).unwrap();
    workers.into_iter().map(|worker| worker.name).collect()
}

#[test]
fn a_name_template_names_each_worker() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let template = "mill-{thread}-of-{pid} at {hostname}";
        let worker = workshop.worker(worker_type, &["--threads", "2", "--name-template", template]);
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let hostname = hostname.split('.').next().unwrap();
        let pid = worker.pid();
        let wanted = [0, 1].map(|thread| format!("mill-{thread}-of-{pid} at {hostname}"));
        wait_until(&database, "both are registered", SOON, || {
            let mut names = names(&database);
            names.sort();
            if names == wanted { Ok(()) } else { Err(names) }
        });
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        let task = database.wait_for_state(id, TaskState::Completed);
        assert!(wanted.contains(task.worker.as_ref().unwrap()), "{:?}", task.worker);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_pid_file_is_there_for_as_long_as_the_worker() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let path = workshop.path().join("pid");
    let worker = workshop.worker("postgres", &["--pid-file", path.to_str().unwrap()]);
    wait_until(&database, "it is registered", SOON, || {
        let names = names(&database);
        if names.len() == 1 { Ok(()) } else { Err(names) }
    });
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", worker.pid()));
    worker.stop(Signal::TERM);
    assert!(!path.exists());
}

#[test]
fn an_unwritable_pid_file_is_a_usage_error() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let said = run(&mut workshop.millhand(["worker", "--burst", "--pid-file", "/nonexistent/pid"]));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.stderr.contains("/nonexistent/pid"), "{said:?}");
}

#[test]
fn an_auxiliary_worker_leaves_sweeping_to_others() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        insert_worker(&database, worker_type, "missing", "30 s");
        let mut command = workshop.millhand(["worker", "--auxiliary", "--type", worker_type]);
        command.env("MILLHAND_TTL", "1s");
        let auxiliary = WorkerProcess::start(command);
        // Whoever renews its rows sweeps in the same turn, if it does at all.
        let mut connection = database.connect();
        wait_until(&database, "it has renewed its row twice", SOON, || {
            let n: i64 = connection
                .query_one(
                    "SELECT count(*) FROM millhand.worker WHERE last_heartbeat > started_at + ttl",
                    &[],
                )
                .unwrap()
                .get(0);
            if n == 1 { Ok(()) } else { Err(auxiliary.stderr()) }
        });
        assert!(names(&database).contains(&"missing".to_owned()));
        let other = workshop.worker(worker_type, &[]);
        wait_until(&database, "another worker sweeps", SOON, || {
            let names = names(&database);
            if names.contains(&"missing".to_owned()) { Err(names) } else { Ok(()) }
        });
        auxiliary.stop(Signal::TERM);
        other.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn workers_of_two_types_do_not_mix() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        insert_worker(&database, "elder", "the-elder-one", "1 hour");
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        let said = run(&mut workshop.millhand(["worker", "--burst", "--type", worker_type]));
        assert_eq!(said.code, Some(75), "{said:?}");
        for part in [&format!("`{worker_type}`"), "`elder`", "the-elder-one", "stop those first"] {
            assert!(said.stderr.contains(part), "{said:?} does not say {part}");
        }
        assert_eq!(database.task(id).state, TaskState::Waiting);
        // It does not stand in the way for ever: only while it is online.
        database.connect().execute("UPDATE millhand.worker SET ttl = '30 s'", &[]).unwrap();
        let said = run(&mut workshop.millhand(["worker", "--burst", "--type", worker_type]));
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(database.task(id).state, TaskState::Completed);
    }
}

#[test]
fn an_unknown_worker_type_is_answered_with_the_known_ones() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    for said in [
        run(&mut workshop.millhand(["worker", "--type", "carrier-pigeon"])),
        run(workshop.millhand(["worker"]).env("MILLHAND_WORKER_TYPE", "carrier-pigeon")),
    ] {
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.stderr.contains("carrier-pigeon"), "{said:?}");
        for worker_type in WORKER_TYPES {
            assert!(said.stderr.contains(worker_type), "{said:?}");
        }
    }
}

/// Runs one task where working directories are made in `folder`.
fn run_in(folder: &str, handler: &str) -> millhand::Task {
    let database = Database::new();
    let workshop = Workshop::new(&database, HANDLERS);
    let id = database.dispatch(&NewTask::new(handler));
    let mut command = workshop.millhand(["worker", "--burst"]);
    let said = run(command.env("MILLHAND_WORKING_DIRECTORY", folder));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_clean(&database, &workshop);
    database.task(id)
}

#[test]
fn a_working_directory_that_cannot_be_made_fails_the_task() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for folder in [file.path().display().to_string(), "/nonexistent/folder".to_owned()] {
        let task = run_in(&folder, "true");
        assert_eq!(task.state, TaskState::Failed);
        let error = task.error.unwrap();
        assert!(error.contains(&folder) && error.contains("`working_directory`"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// A small file system, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None where this user may not mount; a limit on the size of files would
    /// be no substitute, as it fails in another way and not for directories.
    fn mount(options: &str) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(folder.path());
        mount.output().is_ok_and(|output| output.status.success()).then(|| SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_fails_the_task_that_needs_it() {
    for (options, handler, message) in [
        ("nr_inodes=1", "true", "could not make a working directory"),
        ("size=64k", "fill", "No space left on device"),
    ] {
        let Some(disk) = SmallDisk::mount(options) else {
            println!("this user may not mount a small disk; the case of a full one is left out");
            return;
        };
        let task = run_in(&disk.0.path().display().to_string(), handler);
        assert_eq!(task.state, TaskState::Failed);
        let error = task.error.unwrap();
        assert!(error.contains(message) && error.contains("No space left"), "{error}");
        assert_eq!(fs::read_dir(disk.0.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_time_that_no_clock_can_add_is_refused() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    for name in ["ttl", "poll_interval", "task_grace_interval", "stop_after"] {
        let mut command = workshop.millhand(["worker", "--burst"]);
        command.env(format!("MILLHAND_{}", name.to_uppercase()), "500000000000y");
        let said = run(&mut command);
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.stderr.contains(&format!("{name} must be at most 1year")), "{said:?}");
    }
}
