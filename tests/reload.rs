//! SIGHUP has the handlers read anew, and nothing else changes.

use millhand::worker::Shutdown;
use millhand::{Config, NewTask, Registry, TaskState, Worker, client};
use rustix::process::Signal;
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{WorkerProcess, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Says this when its gate is open.
fn gate(word: &str) -> String {
    format!(
        "[handlers.gate]\ncommand = [\"sh\", \"-c\", \": >\\\"$0/at-$1\\\"; while [ ! -e \
         \\\"$0/gate-$1\\\" ]; do sleep 0.01; done; echo {word}\", \"{{folder}}\", \"{{gate}}\"]\n"
    )
}

fn handler(name: &str) -> String {
    format!("[handlers.{name}]\ncommand = [\"echo\", \"{name}\"]\n")
}

/// Waits until the worker has said this so many times.
#[track_caller]
fn wait_for_words(database: &Database, worker: &WorkerProcess, words: &str, n: usize) {
    wait_until(database, &format!("it says `{words}`"), SOON, || {
        let stderr = worker.stderr();
        if stderr.matches(words).count() >= n { Ok(()) } else { Err(stderr) }
    });
}

#[test]
fn sighup_reads_the_handlers_anew() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, &(gate("old") + &handler("gone")));
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let running = database.dispatch(&gate_task(&workshop, "gate", "a"));
        let later = database.dispatch(&NewTask::new("later"));
        workshop.wait_at_gate(&database, "a");
        assert_eq!(database.task(later).state, TaskState::Waiting);

        workshop.configure(&format!("ttl = 20\n{}{}", gate("new"), handler("later")));
        worker.signal(Signal::HUP);
        let task = database.wait_for_state(later, TaskState::Completed);
        assert_eq!((task.attempt, task.result), (1, Some(json!("later"))));
        let said = "the handlers were read anew: added `later`; removed `gone`; changed `gate`";
        wait_for_words(&database, &worker, said, 1);
        let said = "other settings have changed, too, and need a restart: ttl\n";
        wait_for_words(&database, &worker, said, 1);
        // Who would take it is free: it takes what comes after it.
        let gone = database.dispatch(&NewTask::new("gone"));
        for _ in 0..3 {
            let other = database.dispatch(&NewTask::new("later"));
            database.wait_for_state(other, TaskState::Completed);
        }
        assert_eq!(database.task(gone).state, TaskState::Waiting);
        // What runs goes on as it began.
        workshop.open_gate("a");
        let task = database.wait_for_state(running, TaskState::Completed);
        assert_eq!(task.result, Some(json!("old")));
        let next = database.dispatch(&gate_task(&workshop, "gate", "a"));
        let task = database.wait_for_state(next, TaskState::Completed);
        assert_eq!(task.result, Some(json!("new")));

        // What cannot be read changes nothing.
        workshop.configure("[handlers.later]\ncommand = [\"echo\", \"{\"]");
        worker.signal(Signal::HUP);
        wait_for_words(&database, &worker, "the handlers stay as they were: handler `later`", 1);
        workshop.configure(&(handler("later") + "user = \"no-such-user\""));
        worker.signal(Signal::HUP);
        wait_for_words(&database, &worker, "the handlers stay as they were: handler `later`", 2);
        let other = database.dispatch(&NewTask::new("later"));
        database.wait_for_state(other, TaskState::Completed);

        workshop.configure(&handler("gone"));
        worker.signal(Signal::HUP);
        database.wait_for_state(gone, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// Hundreds of tasks have no handler and are parked, so that others are found behind them.
#[test]
fn what_is_parked_for_a_handler_is_found_when_that_comes() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let worker = workshop.worker(worker_type, &["--threads", "4"]);
        let mut connection = database.connect();
        let ids =
            client::dispatch_many(&mut connection, &vec![NewTask::new("later"); 300]).unwrap();
        let behind = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(behind, TaskState::Completed);
        workshop.configure("[handlers.later]\ncommand = [\"true\"]");
        worker.signal(Signal::HUP);
        for id in ids {
            assert_eq!(database.wait_for_state(id, TaskState::Completed).attempt, 1);
        }
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// A program with a worker of its own reads its settings again itself.
#[test]
fn an_embedded_worker_is_given_other_handlers() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let load = || {
        let config = Config::load(Some(&workshop.config_file())).unwrap();
        Config { database_url: Some(database.url()), threads: 1, ..config }
    };
    let worker = Worker::new(load(), Registry::new())
        .commands(true)
        .warden(vec![env!("CARGO_BIN_EXE_millhand").into(), "warden".into()]);
    let control = worker.control();
    let worker = std::thread::spawn(move || worker.run());
    let id = database.dispatch(&NewTask::new("later"));
    database.wait_for_workers(1);
    workshop.configure(&handler("later"));
    control.reload(load());
    database.wait_for_state(id, TaskState::Completed);
    control.stop(Shutdown::Drain);
    worker.join().unwrap().unwrap();
    assert_clean(&database, &workshop);
}
