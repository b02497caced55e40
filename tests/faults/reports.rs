//! What tasks say while they run is there: meanwhile, and when their worker has died.

use std::process::Stdio;

use millhand::client::{self, TaskLog};
use millhand::worker::Shutdown;
use millhand::{Config, Context, NewTask, Registry, TaskId, TaskState, Worker};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{Workshop, children_of, run};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// `say` writes to stderr, then waits at its gate, writes and waits again.
const HANDLERS: &str = r#"
[handlers.say]
command = ["sh", "-c", "echo first $MILLHAND_TASK_ID >&2; : >\"$0/at-1\"; while [ ! -e \"$0/gate-1\" ]; do sleep 0.01; done; echo second é >&2; : >\"$0/at-2\"; while [ ! -e \"$0/gate-2\" ]; do sleep 0.01; done; printf third >&2", "{folder}"]
[handlers.short]
command = ["sh", "-c", "echo said >&2; echo '{{\"percent\": 50}}' >&3; echo '{{\"percent\": 100}}' >&3"]
[handlers.much]
command = ["sh", "-c", "seq 1 50000 >&2; : >\"$0/at-1\"; while [ ! -e \"$0/gate-1\" ]; do sleep 0.01; done", "{folder}"]
"#;

fn say(workshop: &Workshop, handler: &str) -> NewTask {
    NewTask::new(handler).args(json!({ "folder": workshop.path().display().to_string() }))
}

fn log(database: &Database, id: TaskId) -> TaskLog {
    client::task_log(&mut database.connect(), id).unwrap()
}

#[track_caller]
fn wait_for_log(database: &Database, id: TaskId, expected: &str) {
    wait_until(database, "the log is there", SOON, || {
        let text = log(database, id).text;
        if text == expected { Ok(()) } else { Err(text) }
    });
}

#[test]
fn a_log_can_be_followed_while_its_task_runs() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let worker = workshop.worker(worker_type, &[]);
        let id = database.dispatch(&say(&workshop, "say"));
        let follower = workshop
            .millhand(["task", "logs", "--follow", &id.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for_log(&database, id, &format!("first {id}\n"));
        assert_eq!(database.task(id).state, TaskState::Running);
        workshop.open_gate("1");
        let expected = format!("first {id}\nsecond é\n");
        wait_for_log(&database, id, &expected);
        workshop.open_gate("2");
        let said = follower.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(said.stdout).unwrap(), format!("{expected}third"));
        let stderr = String::from_utf8(said.stderr).unwrap();
        assert_eq!(stderr, format!("millhand: task {id} completed\n"));
        assert_eq!(log(&database, id).size, expected.len() as u64 + 5);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn of_a_long_log_the_end_is_kept_and_its_length_is_known() {
    let database = Database::new();
    let workshop = Workshop::new(&database, HANDLERS);
    let worker = workshop.worker("postgres", &[]);
    let id = database.dispatch(&say(&workshop, "much"));
    let size: usize = (1..=50_000).map(|n: usize| n.to_string().len() + 1).sum();
    wait_until(&database, "all of it is stored", SOON, || {
        let log = log(&database, id);
        if log.size == size as u64 { Ok(()) } else { Err(log.size) }
    });
    let log = log(&database, id);
    assert!(log.text.ends_with("49999\n50000\n") && log.text.len() == 64 << 10);
    let said = run(&mut workshop.millhand(["task", "logs", &id.to_string()]));
    assert_eq!(said.stdout, log.text);
    workshop.open_gate("1");
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

#[test]
fn the_log_of_a_worker_that_was_killed_is_there() {
    for worker_type in WORKER_TYPES {
        for with_warden in [false, true] {
            let database = Database::new();
            let workshop = Workshop::new(&database, HANDLERS);
            let mut command = workshop.millhand(["worker", "--type", worker_type]);
            command.env("MILLHAND_TTL", "3s");
            let worker = crate::support::process::WorkerProcess::start(command);
            let id = database.dispatch(&say(&workshop, "say"));
            workshop.wait_at_gate(&database, "1");
            workshop.open_gate("1");
            workshop.wait_at_gate(&database, "2");
            let children = children_of(worker.pid());
            // The warden first, lest it see what it should not.
            let (wardens, _commands): (Vec<Pid>, Vec<Pid>) =
                children.into_iter().partition(|pid| is_warden(*pid));
            assert_eq!(wardens.len(), 1);
            worker.signal(Signal::STOP);
            if with_warden {
                kill_process(wardens[0], Signal::KILL).unwrap();
            }
            worker.kill();
            let other = with_warden.then(|| {
                let mut command = workshop.millhand(["worker", "--type", worker_type]);
                crate::support::process::WorkerProcess::start({
                    command.env("MILLHAND_TTL", "3s");
                    command
                })
            });
            database.wait_for_state(id, TaskState::Failed);
            assert_eq!(log(&database, id).text, format!("first {id}\nsecond é\n"));
            if let Some(other) = other {
                other.stop(Signal::TERM);
            }
            assert_clean(&database, &workshop);
        }
    }
}

fn is_warden(pid: Pid) -> bool {
    let path = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
    let words = std::fs::read(path).unwrap_or_default();
    words.split(|byte| *byte == 0).any(|word| word == b"warden")
}

#[test]
fn the_log_of_a_task_that_its_worker_lost_is_there() {
    for worker_type in ["postgres", "pulpcore"] {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let worker = workshop.worker(worker_type, &[]);
        let id = database.dispatch(&say(&workshop, "say"));
        workshop.wait_at_gate(&database, "1");
        database
            .connect()
            .batch_execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
            .unwrap();
        database.wait_for_state(id, TaskState::Failed);
        wait_for_log(&database, id, &format!("first {id}\n"));
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn short_tasks_cost_no_statement_for_what_they_say() {
    const N: i64 = 50;
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let tasks: Vec<NewTask> = (0..N).map(|_| NewTask::new("short")).collect();
        let ids = millhand::dispatch_many(&mut database.connect(), &tasks).unwrap();
        let mut worker = workshop.worker(worker_type, &["--burst", "--threads", "4"]);
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        for id in ids {
            let task = database.task(id);
            assert_eq!(task.progress, Some(json!({ "percent": 100 })));
            assert_eq!(log(&database, id).text, "said\n");
        }
        // A start and an end, and with pulpcore a mark. Sessions that have ended are counted.
        let n_needed = if worker_type == "pulpcore" { 3 * N } else { 2 * N };
        let n_updates: i64 = database
            .connect()
            .query_one(
                "SELECT n_tup_upd FROM pg_stat_user_tables
                  WHERE schemaname = 'millhand' AND relname = 'task'",
                &[],
            )
            .unwrap()
            .get(0);
        // On a busy machine some are not that short.
        assert!((n_needed..n_needed + N / 2).contains(&n_updates), "{n_updates} updates");
    }
}

#[test]
fn the_newest_progress_of_a_quiet_function_is_stored() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let config = Config {
            database_url: Some(database.url()),
            redis_url: Some(workshop.redis.url.clone()),
            redis_prefix: workshop.redis.prefix.clone(),
            worker_type: match worker_type {
                "postgres" => millhand::config::WorkerType::Postgres,
                "redis" => millhand::config::WorkerType::Redis,
                _ => millhand::config::WorkerType::Pulpcore,
            },
            threads: 1,
            ..Config::default()
        };
        let (gate, opened) = std::sync::mpsc::channel::<()>();
        let opened = std::sync::Mutex::new(opened);
        let mut registry = Registry::new();
        registry.register("quiet", move |context: &Context<'_>, (): ()| {
            for percent in [0, 10, 50] {
                context.progress(&json!({ "percent": percent }));
            }
            // It asks nothing and says nothing.
            opened.lock().unwrap().recv().map_err(|error| error.to_string())?;
            context.progress(&json!({ "percent": 100, "nul": "\u{0}" }));
            Ok::<_, String>(())
        });
        let worker = Worker::new(config, registry);
        let control = worker.control();
        let worker = std::thread::spawn(move || worker.run());
        let id = database.dispatch(&NewTask::new("quiet").args(json!(null)));
        wait_until(&database, "the newest is stored", SOON, || {
            let progress = database.task(id).progress;
            if progress == Some(json!({ "percent": 50 })) { Ok(()) } else { Err(progress) }
        });
        gate.send(()).unwrap();
        let task = database.wait_for_state(id, TaskState::Completed);
        assert_eq!(task.progress, Some(json!({ "percent": 100, "nul": "\u{fffd}" })));
        control.stop(Shutdown::Drain);
        worker.join().unwrap().unwrap();
        assert_clean(&database, &workshop);
    }
}
