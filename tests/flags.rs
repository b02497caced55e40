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
            "INSERT INTO millhand.worker (name, type, process, hostname, pid, ttl)
             SELECT $1, $2, $1, 'elsewhere', 1, $3::text::interval",
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
        insert_worker(&database, worker_type, "missing", "1 s");
        let mut command = workshop.millhand(["worker", "--auxiliary", "--type", worker_type]);
        command.env("MILLHAND_TTL", "1s");
        let auxiliary = WorkerProcess::start(command);
        // Who polls as often as it beats would have watched that one for long enough.
        let mut connection = database.connect();
        wait_until(&database, "it has renewed its row for three ttls", SOON, || {
            let n: i64 = connection
                .query_one("SELECT count(*) FROM millhand.worker WHERE heartbeat > 9", &[])
                .unwrap()
                .get(0);
            if n == 1 { Ok(()) } else { Err(auxiliary.stderr()) }
        });
        assert!(names(&database).contains(&"missing".to_owned()));
        // It says once that nobody does it.
        let says = |words: &str| {
            wait_until(&database, words, SOON, || {
                let stderr = auxiliary.stderr();
                if stderr.matches(words).count() == 1 { Ok(()) } else { Err(stderr) }
            });
        };
        says("only auxiliary workers are online");
        let other = workshop.worker(worker_type, &[]);
        says("a worker that keeps house is online again");
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
        insert_worker(&database, "older", "the-older-one", "1 hour");
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        let mut worker = workshop.worker(worker_type, &["--burst"]);
        wait_until(&database, "it says why it waits", SOON, || {
            let stderr = worker.stderr();
            let parts =
                [&format!("`{worker_type}`"), "`older`", "the-older-one", "stop those first"];
            if parts.iter().all(|part| stderr.contains(*part)) { Ok(()) } else { Err(stderr) }
        });
        assert_eq!(database.task(id).state, TaskState::Waiting);
        // It does not stand in the way for ever: it is watched, and is dead after its ttl.
        database.connect().execute("UPDATE millhand.worker SET ttl = '1 s'", &[]).unwrap();
        database.connect().execute("UPDATE millhand.worker SET heartbeat = 1", &[]).unwrap();
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
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

/// Takes what can be had of one task where working directories are made in `folder`, and
/// returns it with what the worker said.
fn run_in(folder: &str, handler: &str) -> (millhand::Task, String) {
    let database = Database::new();
    let workshop = Workshop::new(&database, HANDLERS);
    let id = database.dispatch(&NewTask::new(handler));
    let mut command = workshop.millhand(["worker", "--burst"]);
    let said = run(command.env("MILLHAND_WORKING_DIRECTORY", folder));
    let task = database.task(id);
    assert_eq!(said.code, Some(i32::from(task.state == TaskState::Failed)), "{said:?}");
    assert_clean(&database, &workshop);
    (task, said.stderr)
}

#[test]
fn a_worker_that_can_make_no_working_directory_takes_no_command() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for folder in [file.path().display().to_string(), "/nonexistent/folder".to_owned()] {
        let (task, stderr) = run_in(&folder, "true");
        assert_eq!((task.state, task.attempt), (TaskState::Waiting, 0));
        let told: Vec<&str> = stderr.lines().filter(|line| line.contains(&folder)).collect();
        assert!(told.len() == 1 && told[0].contains("`working_directory`"), "{stderr}");
    }
}

#[test]
fn what_could_not_begin_begins_when_it_can() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let folder = workshop.path().join("room");
        fs::create_dir(&folder).unwrap();
        let mut command = workshop.millhand(["worker", "--threads", "4", "--type", worker_type]);
        command.env("MILLHAND_WORKING_DIRECTORY", &folder);
        let worker = WorkerProcess::start(command);
        let first = database.dispatch(&NewTask::new("true"));
        database.wait_for_state(first, TaskState::Completed);
        fs::remove_dir_all(&folder).unwrap();
        let ids: Vec<_> = (0..20).map(|_| database.dispatch(&NewTask::new("true"))).collect();
        // Functions need no room.
        let function = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(function, TaskState::Completed);
        wait_until(&database, "it says that it takes no commands", SOON, || {
            let stderr = worker.stderr();
            if stderr.contains("no command can begin here") { Ok(()) } else { Err(stderr) }
        });
        fs::create_dir(&folder).unwrap();
        for id in ids {
            let task = database.wait_for_state(id, TaskState::Completed);
            assert_eq!(task.attempt, 1);
        }
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
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
fn a_full_disk_fails_a_task_only_once_it_has_begun() {
    for (options, handler, state) in
        [("nr_inodes=1", "true", TaskState::Waiting), ("size=64k", "fill", TaskState::Failed)]
    {
        let Some(disk) = SmallDisk::mount(options) else {
            println!("this user may not mount a small disk; the case of a full one is left out");
            return;
        };
        let (task, stderr) = run_in(&disk.0.path().display().to_string(), handler);
        assert_eq!(task.state, state);
        let said = task.error.unwrap_or(stderr);
        assert!(said.contains("No space left on device"), "{said}");
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
