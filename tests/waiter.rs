//! A command that waits for a task that cannot start before its own has ended.

use millhand::{Error, NewTask, TaskState, Waiter, client};
use rustix::process::Signal;
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES, wait_until};

const HANDLERS: &str = r#"
[handlers.parent]
command = ["sh", "-c", "millhand $0 >&2 && millhand $1 >&2", "{first}", "{second}"]
can_dispatch = true
"#;

fn parent(first: &str, second: &str) -> NewTask {
    NewTask::new("parent")
        .args(json!({ "first": first, "second": second }))
        .exclusive("x")
        .shared("s")
}

#[test]
fn a_task_cannot_wait_for_what_waits_for_it() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let worker = workshop.worker(worker_type, &["--threads", "3"]);
        let wait = "dispatch millhand.noop --wait";
        for (child, resource) in
            [("--exclusive x", "x"), ("--shared x", "x"), ("--exclusive s", "s")]
        {
            let id = database.dispatch(&parent("task list", &format!("{wait} {child}")));
            let task = database.wait_for_state(id, TaskState::Failed);
            let error = task.error.unwrap();
            for part in [
                "exit code 1: millhand: ",
                &format!("task {id} cannot wait for task "),
                &format!(
                    "cannot start before task {id} has ended: it needs `{resource}` after task {id};"
                ),
                "nothing is dispatched",
            ] {
                assert!(error.contains(part), "`{error}` does not say `{part}`");
            }
            assert_eq!(database.tasks().last().unwrap().id, id, "nothing was dispatched");
        }
        // What shares with it, or has nothing to do with it, can be waited for; and others may
        // wait for it.
        let id = database
            .dispatch(&parent(&format!("{wait} --shared s"), &format!("{wait} --exclusive y")));
        database.wait_for_state(id, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// What a task waits for is found through others, parked or not, and `task wait` looks, too.
#[test]
fn what_waits_by_way_of_others_is_found() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let worker = workshop.worker("postgres", &["--threads", "2"]);
    let own = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("x"));
    workshop.wait_at_gate(&database, "a");
    let mut connection = database.connect();
    let noop = || NewTask::new("millhand.noop");
    let others = vec![noop().exclusive("x"); 300];
    client::dispatch_many(&mut connection, &others).unwrap();
    let middle = database.dispatch(&noop().exclusive("x").shared("y"));
    let second = database.dispatch(&noop().exclusive("y").exclusive("z").shared("v"));
    let last = database.dispatch(&noop().shared("z"));
    let free = database.dispatch(&noop().exclusive("w"));
    wait_until(&database, "it is parked", SOON, || {
        let parked: bool = connection
            .query_one("SELECT parked FROM millhand.task WHERE id = $1", &[&middle.0])
            .unwrap()
            .get(0);
        if parked { Ok(()) } else { Err("it is not") }
    });
    let waiter = Waiter { id: own, fence: database.task(own).fence.unwrap() };
    let said =
        |connection: &mut postgres::Client, waiter: Waiter, ids: &[millhand::TaskId]| match waiter
            .check(connection, ids)
        {
            Ok(()) => String::new(),
            Err(Error::Conflict(said)) => said,
            Err(error) => panic!("{error}"),
        };
    for (id, resource, blocker) in [(middle, "x", own), (second, "y", middle), (last, "z", second)]
    {
        let said = said(&mut connection, waiter, &[free, id]);
        let part = format!(
            "task {own} cannot wait for task {id}, which cannot start before task {own} has ended: \
             it needs `{resource}` after task {blocker}"
        );
        assert!(said.starts_with(&part), "{said}");
    }
    assert_eq!(said(&mut connection, waiter, &[own]), format!("task {own} cannot wait for itself"));
    // That it shares with one that waits is no reason to wait.
    let sharer = database.dispatch(&noop().shared("v"));
    assert_eq!(said(&mut connection, waiter, &[free, sharer]), "");
    // Another start, or another database, where the numbers mean something else.
    let other = Waiter { fence: waiter.fence + 1_000_000, ..waiter };
    assert_eq!(said(&mut connection, other, &[last]), "");
    let mut wait = workshop.millhand(["task", "wait", &last.to_string()]);
    wait.env("MILLHAND_TASK_ID", own.to_string()).env("MILLHAND_FENCE", waiter.fence.to_string());
    let output = crate::support::process::run(&mut wait);
    assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{output:?}");
    assert!(output.stderr.contains("cannot start before"), "{output:?}");
    workshop.open_gate("a");
    database.wait_for_all_final();
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}
