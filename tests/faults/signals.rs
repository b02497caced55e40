//! What each signal does, once and twice, to a task that ends in time and to
//! one that ignores everything.

use millhand::TaskState;
use rustix::process::Signal;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES};

/// Starts a worker with a task of this handler running, sends the signals, and
/// asserts that the worker ends in good order and the task in this state.
#[track_caller]
fn check(handler: &str, flags: &[&str], signals: &[Signal], open_gate: bool, state: TaskState) {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.args(flags).env("MILLHAND_CANCEL_GRACE_INTERVAL", "100ms");
        let mut worker = WorkerProcess::start(command);
        let id = database.dispatch(&gate_task(&workshop, handler, "a"));
        workshop.wait_at_gate(&database, "a");
        for signal in signals {
            worker.signal(*signal);
        }
        if open_gate {
            workshop.open_gate("a");
        }
        let status = worker.wait(SOON);
        assert!(status.success(), "{status}:\n{}", worker.stderr());
        let task = database.task(id);
        assert_eq!(task.state, state, "{task:?}\n{}", worker.stderr());
        if state == TaskState::Failed {
            assert_eq!(task.error.as_deref(), Some("aborted during worker shutdown"));
        }
        assert_clean(&database, &workshop);
    }
}

/// Every worker type with a task that obeys and one that does not.
fn each_kind() -> impl Iterator<Item = (&'static str, &'static str)> {
    WORKER_TYPES.into_iter().flat_map(|kind| ["gate", "stubborn"].map(|handler| (kind, handler)))
}

#[test]
fn gentle_signals_let_a_task_end() {
    for handler in ["gate", "stubborn"] {
        for signals in [
            &[Signal::TERM][..],
            &[Signal::INT],
            &[Signal::TERM, Signal::TERM],
            // Handlers are read anew, and all else goes on as it was.
            &[Signal::HUP, Signal::TERM],
            &[Signal::TERM, Signal::HUP],
        ] {
            check(handler, &[], signals, true, TaskState::Completed);
        }
    }
}

#[test]
fn urgent_signals_end_a_task_at_once() {
    for handler in ["gate", "stubborn"] {
        for signals in [
            &[Signal::QUIT][..],
            &[Signal::QUIT, Signal::QUIT],
            &[Signal::TERM, Signal::QUIT],
            &[Signal::HUP, Signal::QUIT],
            &[Signal::INT, Signal::QUIT],
        ] {
            check(handler, &[], signals, false, TaskState::Failed);
        }
    }
}

#[test]
fn patience_ends() {
    for (flags, signal) in [
        (["--stop-after", "200ms"], Signal::TERM),
        (["--task-grace-interval", "200ms"], Signal::INT),
    ] {
        check("stubborn", &flags, &[signal], false, TaskState::Failed);
    }
}

#[test]
fn a_second_interrupt_ends_a_task_at_once() {
    for (worker_type, handler) in each_kind() {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_CANCEL_GRACE_INTERVAL", "100ms");
        let mut worker = WorkerProcess::start(command);
        let id = database.dispatch(&gate_task(&workshop, handler, "a"));
        workshop.wait_at_gate(&database, "a");
        worker.signal(Signal::INT);
        // Two signals of one kind at once would count as one.
        crate::support::wait_until(&database, "it has seen the first", SOON, || {
            let stderr = worker.stderr();
            if stderr.contains("taking nothing new") { Ok(()) } else { Err(stderr) }
        });
        worker.signal(Signal::INT);
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        assert_eq!(database.task(id).error.as_deref(), Some("aborted during worker shutdown"));
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_cancel_is_obeyed_during_a_drain() {
    for (worker_type, handler) in each_kind() {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_CANCEL_GRACE_INTERVAL", "100ms");
        let mut worker = WorkerProcess::start(command);
        let id = database.dispatch(&gate_task(&workshop, handler, "a"));
        workshop.wait_at_gate(&database, "a");
        worker.signal(Signal::TERM);
        crate::support::wait_until(&database, "it drains", SOON, || {
            let stderr = worker.stderr();
            if stderr.contains("taking nothing new") { Ok(()) } else { Err(stderr) }
        });
        millhand::cancel(&mut database.connect(), id).unwrap();
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        assert_eq!(database.task(id).state, TaskState::Canceled);
        assert_clean(&database, &workshop);
    }
}
