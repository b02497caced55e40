//! Workers, wardens and commands that are killed or frozen.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millhand::config::CommandHandler;
use millhand::worker::Shutdown;
use millhand::{Config, NewTask, Registry, TaskState, Worker};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{WorkerProcess, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES, process::GATE_HANDLERS, wait_until};

/// Far less than a ttl, far more than it takes on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// `family` notes itself and a child that has left the process group's leader
/// alone, and runs for ever; `witness` tells whether they still live. (Who is
/// dead and not yet reaped by its parent is dead.)
const FAMILY: &str = r#"
[handlers.family]
command = ["sh", "-c", "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >\"$0/child\"; while :; do sleep 0.05; done' \"$0\" & echo $$ >\"$0/parent.new\"; while [ ! -s \"$0/child\" ]; do sleep 0.01; done; mv \"$0/parent.new\" \"$0/parent\"; wait", "{folder}"]
[handlers.witness]
command = ["sh", "-c", "for who in parent child; do if grep -q '^State:.[^ZX]' \"/proc/$(cat \"$0/$who\")/status\" 2>/dev/null; then echo alive; else echo dead; fi; done", "{folder}"]
"#;

fn workshop(database: &Database) -> Workshop {
    Workshop::new(database, &format!("{GATE_HANDLERS}{FAMILY}"))
}

fn on_folder(workshop: &Workshop, handler: &str) -> NewTask {
    let folder = workshop.path().display().to_string();
    NewTask::new(handler).args(json!({ "folder": folder })).exclusive("r")
}

fn wait_for_family(database: &Database, workshop: &Workshop) {
    wait_until(database, "the family lives", SOON, || {
        if workshop.path().join("parent").exists() { Ok(()) } else { Err("no note of it") }
    });
}

fn worker_ids(database: &Database, pid: u32) -> Vec<i64> {
    let workers = millhand::fleet::workers(&mut database.connect()).unwrap();
    workers.iter().filter(|w| w.pid == pid.cast_signed()).map(|w| w.id).collect()
}

fn signal_pid(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// The processes of this test whose command line has this in it.
fn pids(workshop: &Workshop, part: &str) -> Vec<i32> {
    workshop
        .processes()
        .iter()
        .filter(|process| process.contains(part))
        .map(|process| process.split(' ').next().unwrap().parse().unwrap())
        .collect()
}

fn worker_with_ttl(workshop: &Workshop, worker_type: &str, ttl: &str) -> WorkerProcess {
    let mut command = workshop.millhand(["worker", "--type", worker_type]);
    command.env("MILLHAND_TTL", ttl);
    WorkerProcess::start(command)
}

/// Runs the family under one worker, which `harm` then harms, and asserts that
/// its task fails, and that the next task on its resource, run by another
/// worker, finds it dead.
fn check_death(ttl: &str, harm: impl Fn(&Workshop, &WorkerProcess)) {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let first = worker_with_ttl(&workshop, worker_type, ttl);
        let family = database.dispatch(&on_folder(&workshop, "family"));
        wait_for_family(&database, &workshop);
        let second = worker_with_ttl(&workshop, worker_type, ttl);
        let witness = database.dispatch(&on_folder(&workshop, "witness"));
        database.wait_for_workers(2);
        harm(&workshop, &first);
        let task = database.wait_for_state(family, TaskState::Failed);
        assert!(task.error.as_ref().unwrap().contains("has gone missing"), "{:?}", task.error);
        let task = database.wait_for_state(witness, TaskState::Completed);
        assert_eq!(task.result, Some(json!("dead\ndead")));
        signal_pid(first.pid().cast_signed(), Signal::CONT);
        first.kill();
        second.stop(Signal::TERM);
        // A worker that came back, or was killed in the end, has left its rows
        // to others.
        let mut last = worker_with_ttl(&workshop, worker_type, ttl);
        database.wait_for_workers(1);
        last.signal(Signal::TERM);
        last.wait(SOON);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_killed_worker_takes_its_commands_along_and_its_task_fails() {
    check_death("30s", |_, worker| worker.signal(Signal::KILL));
}

#[test]
fn a_worker_killed_after_its_warden_takes_its_commands_along_too() {
    check_death("30s", |workshop, worker| {
        let wardens = pids(workshop, " warden");
        assert_eq!(wardens.len(), 2, "{:?}", workshop.processes());
        for warden in &wardens {
            signal_pid(*warden, Signal::KILL);
        }
        let database = Database::new();
        wait_until(&database, "the wardens are replaced", SOON, || {
            let now = pids(workshop, " warden");
            if now.len() == 2 && now.iter().all(|pid| !wardens.contains(pid)) {
                Ok(())
            } else {
                Err(now)
            }
        });
        worker.signal(Signal::KILL);
    });
}

#[test]
fn nothing_begins_until_a_warden_stays() {
    const WARDEN: &str =
        r#"date +%s%N >>"$0/starts"; [ -e "$0/good" ] && exec "$1" warden; exit 1"#;
    let database = Database::new();
    let workshop = workshop(&database);
    let handler = CommandHandler::new(["true"]);
    let config = Config {
        database_url: Some(database.url()),
        handlers: [("true".to_owned(), handler)].into(),
        threads: 1,
        ..Config::default()
    };
    let folder = workshop.path().as_os_str();
    let worker = Worker::new(config, Registry::new()).commands(true).warden(vec![
        "sh".into(),
        "-c".into(),
        WARDEN.into(),
        folder.into(),
        env!("CARGO_BIN_EXE_millhand").into(),
    ]);
    let id = database.dispatch(&NewTask::new("true"));
    let control = worker.control();
    let worker = std::thread::spawn(move || worker.run());
    database.wait_for_workers(1);
    let starts = wait_until(&database, "four wardens", SOON, || {
        let starts = std::fs::read_to_string(workshop.path().join("starts")).unwrap_or_default();
        let starts: Vec<u64> = starts.lines().filter_map(|line| line.parse().ok()).collect();
        if starts.len() >= 4 { Ok(starts) } else { Err(starts) }
    });
    for (pair, pause) in starts.windows(2).zip([50, 100, 200]) {
        assert!(pair[1] - pair[0] >= pause * 1_000_000, "{starts:?}");
    }
    let task = database.task(id);
    assert_eq!((task.state, task.started_at), (TaskState::Waiting, None));
    std::fs::write(workshop.path().join("good"), "").unwrap();
    database.wait_for_state(id, TaskState::Completed);
    control.stop(Shutdown::Drain);
    worker.join().unwrap().unwrap();
    assert_clean(&database, &workshop);
}

/// Starts a worker from a file of its own, such as one that is installed anew.
fn worker_from(program: &Path, workshop: &Workshop, worker_type: &str) -> WorkerProcess {
    std::fs::copy(env!("CARGO_BIN_EXE_millhand"), program).unwrap();
    let template = workshop.millhand(["worker", "--type", worker_type]);
    let mut command = Command::new(program);
    command.args(template.get_args()).current_dir("/").stdin(Stdio::null());
    for (name, value) in template.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    WorkerProcess::start(command)
}

#[test]
fn a_warden_that_cannot_be_started_is_tried_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let program = workshop.path().join("program");
        let worker = worker_from(&program, &workshop, worker_type);
        workshop.open_gate("a");
        let first = database.dispatch(&gate_task(&workshop, "gate", "a"));
        database.wait_for_state(first, TaskState::Completed);
        let ids = worker_ids(&database, worker.pid());
        let aside = workshop.path().join("aside");
        std::fs::rename(&program, &aside).unwrap();
        signal_pid(pids(&workshop, " warden")[0], Signal::KILL);
        wait_until(&database, "no warden can be started", SOON, || {
            let stderr = worker.stderr();
            if stderr.matches("could not start the warden").count() > 1 {
                Ok(())
            } else {
                Err(stderr)
            }
        });
        let second = database.dispatch(&gate_task(&workshop, "gate", "a"));
        // Its thread starts anew, and waits.
        wait_until(&database, "its thread has put it back", SOON, || {
            let now = worker_ids(&database, worker.pid());
            if now.len() == 1 && now != ids { Ok(()) } else { Err((now, worker.stderr())) }
        });
        let task = database.task(second);
        assert_eq!((task.state, task.attempt), (TaskState::Waiting, 0));
        std::fs::rename(&aside, &program).unwrap();
        let task = database.wait_for_state(second, TaskState::Completed);
        assert_eq!(task.attempt, 1);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// Only the session that holds the locks is cut; the worker's process lives. (Where
/// no session holds them, there is none to be cut.)
#[test]
fn a_cut_off_workers_command_is_dead_before_its_resource_is_free() {
    for worker_type in WORKER_TYPES.into_iter().filter(|name| *name != "redis") {
        let database = Database::new();
        let workshop = workshop(&database);
        let first = workshop.worker(worker_type, &[]);
        let family = database.dispatch(&on_folder(&workshop, "family"));
        wait_for_family(&database, &workshop);
        let second = workshop.worker(worker_type, &[]);
        database.wait_for_workers(2);
        let witness = database.dispatch(&on_folder(&workshop, "witness"));
        let n = database.terminate(
            &format!(
                "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
                            AND (classid::bigint << 32 | objid::bigint) = millhand.task_lock({family}))"
            ),
        );
        assert_eq!(n, 1);
        let failed = database.wait_for_state(family, TaskState::Failed);
        assert!(failed.error.as_ref().unwrap().contains("connection"), "{:?}", failed.error);
        let task = database.wait_for_state(witness, TaskState::Completed);
        assert_eq!(task.result, Some(json!("dead\ndead")));
        // It is back, under a new id, and wrote nothing under the old one.
        database.wait_for_workers(2);
        second.stop(Signal::TERM);
        let next = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
        database.wait_for_state(next, TaskState::Completed);
        let now = database.task(family);
        assert_eq!((now.state, now.finished_at), (TaskState::Failed, failed.finished_at));
        first.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_frozen_workers_commands_are_dead_before_its_resources_are_free() {
    check_death("3s", |_, worker| worker.signal(Signal::STOP));
}

#[test]
fn a_thawed_worker_writes_nothing_and_works_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let frozen = worker_with_ttl(&workshop, worker_type, "2s");
        let other = worker_with_ttl(&workshop, worker_type, "2s");
        let id = database.dispatch(&gate_task(&workshop, "gate", "a"));
        let task = database.wait_for_state(id, TaskState::Running);
        let holder = format!("{}@", frozen.pid());
        let (frozen, other) = if task.worker.unwrap().starts_with(&holder) {
            (frozen, other)
        } else {
            (other, frozen)
        };
        let ids = worker_ids(&database, frozen.pid());
        frozen.signal(Signal::STOP);
        let failed = database.wait_for_state(id, TaskState::Failed);
        workshop.open_gate("a");
        frozen.signal(Signal::CONT);
        // The other one leaves; what comes is for the one that was frozen.
        other.stop(Signal::TERM);
        let next = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(next, TaskState::Completed);
        let now = database.task(id);
        assert_eq!((now.state, now.finished_at), (TaskState::Failed, failed.finished_at));
        let new_ids = worker_ids(&database, frozen.pid());
        assert!(new_ids.len() == 1 && !ids.contains(&new_ids[0]), "{ids:?}, then {new_ids:?}");
        frozen.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_killed_command_fails_its_task_and_the_worker_goes_on() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let worker = workshop.worker(worker_type, &[]);
        let family = database.dispatch(&on_folder(&workshop, "family"));
        let witness = database.dispatch(&on_folder(&workshop, "witness"));
        wait_for_family(&database, &workshop);
        let parent = std::fs::read_to_string(workshop.path().join("parent")).unwrap();
        signal_pid(parent.trim().parse().unwrap(), Signal::KILL);
        let task = database.wait_for_state(family, TaskState::Failed);
        assert!(task.error.as_ref().unwrap().contains("SIGKILL"), "{:?}", task.error);
        let task = database.wait_for_state(witness, TaskState::Completed);
        assert_eq!(task.result, Some(json!("dead\ndead")));
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_command_that_ignores_a_cancel_is_killed() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_CANCEL_GRACE_INTERVAL", "100ms");
        let worker = WorkerProcess::start(command);
        let id = database.dispatch(&gate_task(&workshop, "stubborn", "never"));
        database.wait_for_state(id, TaskState::Running);
        millhand::cancel(&mut database.connect(), id).unwrap();
        let task = database.wait_for_state(id, TaskState::Canceled);
        assert_eq!(task.error, None);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_dead_workers_task_fails_long_before_the_ttl() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let worker = workshop.worker(worker_type, &[]);
        let id = database.dispatch(&gate_task(&workshop, "stubborn", "never"));
        database.wait_for_state(id, TaskState::Running);
        worker.kill();
        let mut connection = database.connect();
        wait_until(&database, "its task failed without any other worker", AT_ONCE, || {
            let state = millhand::client::get_task(&mut connection, id).unwrap().state;
            if state == TaskState::Failed { Ok(()) } else { Err(state) }
        });
        assert_clean(&database, &workshop);
    }
}

/// A cancel in a transaction that stays open keeps the row of one task locked:
/// the others of a worker that was killed are settled at once all the same.
#[test]
fn an_open_cancel_holds_up_the_settling_of_its_own_task_only() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = workshop(&database);
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let tasks: Vec<_> = ["a", "b"]
            .iter()
            .map(|gate| {
                let id = database.dispatch(&gate_task(&workshop, "gate", gate));
                workshop.wait_at_gate(&database, gate);
                id
            })
            .collect();
        let mut other = database.connect();
        let mut open = other.transaction().unwrap();
        millhand::cancel(&mut open, tasks[0]).unwrap();
        worker.kill();
        database.wait_for_state(tasks[1], TaskState::Failed);
        assert_eq!(database.task(tasks[0]).state, TaskState::Running);
        open.commit().unwrap();
        database.wait_for_state(tasks[0], TaskState::Canceled);
        assert_clean(&database, &workshop);
    }
}
