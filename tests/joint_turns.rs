//! How workers of type redis take turns together: what they tell each other, and what
//! becomes of an end that is held up.

use millhand::{NewTask, TaskState, client};
use rustix::process::Signal;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, Workshop, gate_task, run};
use crate::support::{SOON, wait_until};

/// Waits for more turns, each of which asks Redis.
fn wait_for_turns(database: &Database, workshop: &Workshop, before: u64) {
    wait_until(database, "turns that are held up", SOON, || {
        let n = n_asked(workshop) - before;
        if n > 2 { Ok(()) } else { Err(n) }
    });
}

/// How often Redis was asked for locks.
fn n_asked(workshop: &Workshop) -> u64 {
    workshop.redis.calls().get("evalsha").copied().unwrap_or(0)
}

#[test]
fn the_command_line_tells_workers_of_tasks_and_cancels() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let worker = workshop.deaf_worker(&["--threads", "2"]);
    database.wait_for_workers(2);
    for _ in 0..20 {
        let said = run(&mut workshop.millhand(["dispatch", "millhand.noop", "--wait"]));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{}", worker.stderr());
    }
    let running = database.dispatch(&gate_task(&workshop, "gate", "never"));
    workshop.redis.waker().wake().unwrap();
    workshop.wait_at_gate(&database, "never");
    let said = run(&mut workshop.millhand(["task", "cancel", &running.to_string()]));
    assert_eq!(said.code, Some(0), "{said:?}");
    database.wait_for_state(running, TaskState::Canceled);
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

/// In each round a task in the one process and its successor in the other; the last
/// of all could only be found by the poll if one end were not told.
#[test]
fn what_one_process_ends_another_starts_without_a_poll() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "[handlers.left]\ncommand = [\"true\"]\n");
    let right = Workshop::with_redis(
        &database,
        workshop.redis.clone(),
        "[handlers.right]\ncommand = [\"true\"]\n",
    );
    let workers = [workshop.deaf_worker(&["--threads", "2"]), right.deaf_worker(&[])];
    database.wait_for_workers(3);
    let mut waker = workshop.redis.waker();
    let mut connection = database.connect();
    for _ in 0..30 {
        let tasks: Vec<NewTask> = ["left", "left", "right", "left", "right", "millhand.noop"]
            .into_iter()
            .enumerate()
            .map(|(number, name)| {
                let task = NewTask::new(name);
                // Two at once, and then what waits for both; the rest in a row.
                if number < 2 {
                    task.exclusive(format!("{number}"))
                } else {
                    task.exclusive("0").exclusive("1")
                }
            })
            .collect();
        client::dispatch_many(&mut connection, &tasks).unwrap();
        waker.wake().unwrap();
        database.wait_for_all_final();
    }
    for worker in workers {
        worker.stop(Signal::TERM);
    }
    assert_clean(&database, &workshop);
    assert_clean(&database, &right);
}

#[test]
fn tasks_that_end_at_once_in_two_processes_free_what_waits_for_both() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let workers =
        [workshop.deaf_worker(&["--threads", "4"]), workshop.deaf_worker(&["--threads", "4"])];
    database.wait_for_workers(8);
    let mut waker = workshop.redis.waker();
    let mut connection = database.connect();
    for _ in 0..200 {
        // Short ones on their own, and one that waits for all of them.
        let mut last = NewTask::new("millhand.noop");
        let mut tasks = Vec::new();
        for number in 0..8 {
            tasks.push(NewTask::new("millhand.noop").exclusive(format!("{number}")));
            last = last.exclusive(format!("{number}"));
        }
        tasks.push(last);
        client::dispatch_many(&mut connection, &tasks).unwrap();
        waker.wake().unwrap();
        database.wait_for_all_final();
    }
    for worker in workers {
        worker.stop(Signal::TERM);
    }
    assert_clean(&database, &workshop);
}

/// Makes each start of a task fail, in a way that waiting does not mend.
fn forbid_starts(database: &Database) {
    database
        .connect()
        .batch_execute(
            "CREATE FUNCTION millhand.refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'no starts today'; END $$;
             CREATE TRIGGER refuse BEFORE UPDATE ON millhand.task FOR EACH ROW
                 WHEN (NEW.state = 'running') EXECUTE FUNCTION millhand.refuse()",
        )
        .unwrap();
}

#[test]
fn what_has_ended_is_stored_though_nothing_more_can_start_and_the_process_ends() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let mut worker = workshop.worker("redis", &[]);
    let first = database.dispatch(&gate_task(&workshop, "gate", "a"));
    workshop.wait_at_gate(&database, "a");
    let second = database.dispatch(&NewTask::new("millhand.noop"));
    forbid_starts(&database);
    workshop.open_gate("a");
    assert_eq!(worker.wait(SOON).code(), Some(70), "{}", worker.stderr());
    assert!(worker.stderr().contains("no starts today"), "{}", worker.stderr());
    assert_eq!(database.task(first).state, TaskState::Completed);
    assert_eq!(database.task(second).state, TaskState::Waiting);
    assert_clean(&database, &workshop);
}

/// A task that ends, while somebody keeps its row locked, and the one that waits for it
/// stand in the same turn again and again: that the second could not start then is no
/// reason to leave it out later. (The worker neither looks nor sweeps by itself.)
#[test]
fn what_waits_for_a_task_whose_end_was_held_up_starts_right_after_it() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let worker = workshop.deaf_worker(&["--threads", "2"]);
    database.wait_for_workers(2);
    let first = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r"));
    let second = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
    workshop.redis.waker().wake().unwrap();
    workshop.wait_at_gate(&database, "a");
    let mut other = database.connect();
    let mut open = other.transaction().unwrap();
    client::cancel(&mut open, first).unwrap();
    workshop.open_gate("a");
    // It is asked for the second one in turns that then start nothing.
    wait_for_turns(&database, &workshop, n_asked(&workshop));
    open.rollback().unwrap();
    database.wait_for_state(first, TaskState::Completed);
    database.wait_for_state(second, TaskState::Completed);
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

/// Somebody keeps the row of a task locked that has ended, and its worker is told to
/// take nothing new: it does not, when the end can be stored at last.
#[test]
fn a_worker_that_drains_while_an_end_is_held_up_takes_nothing_new() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let mut worker = workshop.worker("redis", &[]);
    let first = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r"));
    let second = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
    workshop.wait_at_gate(&database, "a");
    let mut other = database.connect();
    let mut open = other.transaction().unwrap();
    client::cancel(&mut open, first).unwrap();
    let before = n_asked(&workshop);
    workshop.open_gate("a");
    wait_for_turns(&database, &workshop, before);
    worker.signal(Signal::TERM);
    wait_until(&database, "the worker drains", SOON, || {
        let stderr = worker.stderr();
        if stderr.contains("taking nothing new") { Ok(()) } else { Err(stderr) }
    });
    open.rollback().unwrap();
    assert!(worker.wait(SOON).success());
    assert_eq!(database.task(first).state, TaskState::Completed);
    assert_eq!(database.task(second).state, TaskState::Waiting);
    client::cancel(&mut database.connect(), second).unwrap();
    assert_clean(&database, &workshop);
}

/// What the end of a task frees far behind, where this process has no handler for it, is
/// told to those who have one. (Nobody looks by himself.)
#[test]
fn what_is_freed_far_behind_is_told_to_those_who_have_the_handler() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let elsewhere = Workshop::with_redis(
        &database,
        workshop.redis.clone(),
        "[handlers.elsewhere]\ncommand = [\"true\"]\n",
    );
    let first = database.dispatch(&gate_task(&workshop, "gate", "first").exclusive("f"));
    let long = database.dispatch(&gate_task(&workshop, "gate", "long").exclusive("x"));
    // More than a look shows at first, and too few to be parked.
    for _ in 0..60 {
        database.dispatch(&NewTask::new("millhand.noop").exclusive("x"));
    }
    let far = database.dispatch(&NewTask::new("elsewhere").exclusive("f"));
    let workers = [workshop.deaf_worker(&["--threads", "2"]), elsewhere.deaf_worker(&[])];
    database.wait_for_workers(3);
    workshop.wait_at_gate(&database, "first");
    workshop.wait_at_gate(&database, "long");
    workshop.open_gate("first");
    database.wait_for_state(first, TaskState::Completed);
    database.wait_for_state(far, TaskState::Completed);
    workshop.open_gate("long");
    database.wait_for_state(long, TaskState::Completed);
    database.wait_for_all_final();
    for worker in workers {
        worker.stop(Signal::TERM);
    }
    assert_clean(&database, &workshop);
}
