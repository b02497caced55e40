//! The SQL door, which all dispatches go through: ids, positions in commit
//! order, locks, refused input.

use std::thread;

use millhand::{Error, NewTask, TaskState, client};
use postgres::Client;
use serde_json::json;

use crate::support::database::Database;
use crate::support::{SOON, wait_until};

fn position(connection: &mut Client, id: i64) -> i64 {
    connection.query_one("SELECT position FROM millhand.task WHERE id = $1", &[&id]).unwrap().get(0)
}

/// The message of a statement that is refused.
#[track_caller]
fn refusal(connection: &mut Client, sql: &str) -> String {
    let error = connection.query(sql, &[]).unwrap_err();
    error.as_db_error().unwrap().message().to_owned()
}

/// Waits until some session of this database waits for an advisory lock.
fn wait_for_waiter(database: &Database) {
    let mut connection = database.connect();
    wait_until(database, "somebody waits for a dispatch lock", SOON, || {
        let waits: bool = connection
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                                   AND wait_event_type = 'Lock' AND wait_event = 'advisory')",
                &[],
            )
            .unwrap()
            .get(0);
        if waits { Ok(()) } else { Err("nobody") }
    });
}

#[test]
fn sql_dispatches_with_defaults_and_returns_the_id() {
    let database = Database::new();
    let mut connection = database.connect();
    let id: i64 = connection.query_one("SELECT millhand.dispatch('a')", &[]).unwrap().get(0);
    let task = database.task(millhand::TaskId(id));
    assert_eq!((task.name.as_str(), task.state, task.args), ("a", TaskState::Waiting, json!({})));
    assert_eq!((task.exclusive.len(), task.shared.len(), task.attempt), (0, 0, 0));
    assert!(task.position.is_some() && task.started_at.is_none() && task.finished_at.is_none());

    let sql = "SELECT millhand.dispatch('b', '{\"x\": 1}', ARRAY['r', 'q', 'r'], shared => ARRAY['s', 'q', 's'])";
    let id: i64 = connection.query_one(sql, &[]).unwrap().get(0);
    let task = database.task(millhand::TaskId(id));
    // A name in both lists counts as exclusive; each name once, as
    // they were given.
    assert_eq!(
        (task.exclusive, task.shared, task.args),
        (vec!["r".to_owned(), "q".to_owned()], vec!["s".to_owned()], json!({"x": 1}))
    );

    let sql = "SELECT millhand.dispatch('c', NULL, NULL, NULL)";
    let id: i64 = connection.query_one(sql, &[]).unwrap().get(0);
    assert_eq!(database.task(millhand::TaskId(id)).args, json!({}));
}

#[test]
fn a_bulk_keeps_its_order() {
    let database = Database::new();
    let mut connection = database.connect();
    let tasks: Vec<NewTask> = (0..1500)
        .map(|number| {
            NewTask::new(format!("t{number}")).exclusive(format!("r{}", number % 7)).shared("s")
        })
        .collect();
    let ids = client::dispatch_many(&mut connection, &tasks).unwrap();
    assert_eq!(ids.len(), tasks.len());
    assert!(ids.is_sorted());
    let mut last = 0;
    for (id, task) in ids.iter().zip(database.tasks()) {
        assert_eq!(task.id, *id);
        assert!(task.position.unwrap() > last);
        last = task.position.unwrap();
    }
    assert_eq!(database.task(ids[1234]).name, "t1234");
    assert_eq!(client::dispatch_many(&mut connection, &[]).unwrap(), []);
}

#[test]
fn a_bulk_is_created_as_a_whole_or_not_at_all() {
    let database = Database::new();
    let mut connection = database.connect();
    let tasks = [NewTask::new("a"), NewTask::new("")];
    let error = client::dispatch_many(&mut connection, &tasks).unwrap_err();
    assert_eq!(error.to_string(), "a task needs a name");
    assert!(database.tasks().is_empty());
}

#[test]
fn a_rollback_leaves_no_task_and_wakes_nobody() {
    let database = Database::new();
    let mut listener = database.connect();
    listener
        .batch_execute(
            "LISTEN millhand_wakeup; SELECT pg_advisory_lock_shared(millhand.bell_lock())",
        )
        .unwrap();
    let mut connection = database.connect();
    let mut transaction = connection.transaction().unwrap();
    client::dispatch(&mut transaction, &NewTask::new("a").exclusive("r")).unwrap();
    transaction.rollback().unwrap();
    assert!(database.tasks().is_empty());
    // A commit does wake, and its message is the first to arrive.
    connection.batch_execute("NOTIFY millhand_wakeup, 'mark'").unwrap();
    let id = client::dispatch(&mut connection, &NewTask::new("b")).unwrap();
    let mut heard = Vec::new();
    wait_until(&database, "both notifications", SOON, || {
        listener.execute("SELECT 1", &[]).unwrap();
        let mut notifications = listener.notifications();
        let mut iterator = notifications.iter();
        while let Ok(Some(notification)) = fallible_next(&mut iterator) {
            heard.push(notification.payload().to_owned());
        }
        if heard.len() >= 2 { Ok(()) } else { Err(heard.clone()) }
    });
    assert_eq!(heard, ["mark", ""]);
    assert_eq!(database.tasks()[0].id, id);
}

fn fallible_next<I: postgres::fallible_iterator::FallibleIterator>(
    iterator: &mut I,
) -> Result<Option<I::Item>, I::Error> {
    iterator.next()
}

#[test]
fn conflicting_dispatches_take_positions_in_commit_order() {
    let database = Database::new();
    for (first, second) in [
        (NewTask::new("first").exclusive("r"), NewTask::new("second").exclusive("r")),
        (NewTask::new("first").shared("r"), NewTask::new("second").exclusive("r")),
        (NewTask::new("first").exclusive("r"), NewTask::new("second").shared("r")),
        (
            NewTask::new("first").exclusive("a").shared("r"),
            NewTask::new("second").shared("b").exclusive("r"),
        ),
    ] {
        let mut connection = database.connect();
        let mut open = connection.transaction().unwrap();
        let first_id = client::dispatch(&mut open, &first).unwrap();
        let second_id = thread::scope(|scope| {
            let later = scope.spawn(|| client::dispatch(&mut database.connect(), &second).unwrap());
            // It waits: its commit cannot come before ours.
            wait_for_waiter(&database);
            assert!(!later.is_finished());
            open.commit().unwrap();
            later.join().unwrap()
        });
        let mut connection = database.connect();
        assert!(position(&mut connection, first_id.0) < position(&mut connection, second_id.0));
    }
}

#[test]
fn a_dispatch_that_waited_for_a_rollback_goes_on() {
    let database = Database::new();
    let mut connection = database.connect();
    let mut open = connection.transaction().unwrap();
    client::dispatch(&mut open, &NewTask::new("first").exclusive("r")).unwrap();
    let id = thread::scope(|scope| {
        let later = scope.spawn(|| database.dispatch(&NewTask::new("second").exclusive("r")));
        wait_for_waiter(&database);
        open.rollback().unwrap();
        later.join().unwrap()
    });
    assert_eq!(database.tasks().iter().map(|task| task.id).collect::<Vec<_>>(), [id]);
}

/// With lock_timeout, a dispatch that had to wait would fail.
#[test]
fn dispatches_without_a_conflict_do_not_wait_for_each_other() {
    let database = Database::new();
    for (first, second) in [("+r", "+r"), ("a", "b"), ("a +r", "b +r"), ("", "r"), ("r", "")] {
        let task =
            |resources| crate::support::scenario::with_resources(NewTask::new("t"), resources);
        let mut connection = database.connect();
        let mut open = connection.transaction().unwrap();
        client::dispatch(&mut open, &task(first)).unwrap();
        let mut other = database.connect();
        other.batch_execute("SET lock_timeout = '2s'").unwrap();
        client::dispatch(&mut other, &task(second)).unwrap();
        open.rollback().unwrap();
    }
}

#[test]
fn a_dispatch_does_not_wait_for_a_running_task() {
    let database = Database::new();
    // What a worker holds while it runs a task on `r`.
    let mut worker = database.connect();
    worker.batch_execute("SELECT pg_advisory_lock(millhand.resource_lock('r'))").unwrap();
    let mut connection = database.connect();
    connection.batch_execute("SET lock_timeout = '2s'").unwrap();
    client::dispatch(&mut connection, &NewTask::new("t").exclusive("r")).unwrap();
}

#[test]
fn one_bulk_over_thousands_of_resources_fits_into_the_lock_table() {
    let database = Database::new();
    let tasks: Vec<NewTask> = (0..1000)
        .map(|number| {
            (0..5).fold(NewTask::new("t"), |task, index| {
                task.exclusive(format!("r{}", number * 5 + index))
            })
        })
        .collect();
    let ids = client::dispatch_many(&mut database.connect(), &tasks).unwrap();
    assert_eq!(ids.len(), 1000);
}

#[test]
fn bulks_in_opposite_order_do_not_deadlock() {
    let database = Database::new();
    let tasks: Vec<NewTask> =
        (0..200).map(|number| NewTask::new("t").exclusive(format!("r{number}"))).collect();
    let backwards: Vec<NewTask> = tasks.iter().rev().cloned().collect();
    thread::scope(|scope| {
        for tasks in [&tasks, &backwards, &tasks, &backwards] {
            scope.spawn(|| {
                let mut connection = database.connect();
                for _ in 0..20 {
                    client::dispatch_many(&mut connection, tasks).unwrap();
                }
            });
        }
    });
    assert_eq!(database.tasks().len(), 4 * 20 * 200);
}

#[test]
fn what_no_worker_could_run_is_refused_with_one_line() {
    let database = Database::new();
    let mut connection = database.connect();
    for (arguments, message) in [
        ("''", "a task needs a name"),
        ("NULL", "a task needs a name"),
        ("'t', '{}', ARRAY['']", "task `t` names an empty resource"),
        ("'t', '{}', '{}', ARRAY['a', NULL]", "task `t` names an empty resource"),
        (
            "'t', '{}', '{}', ARRAY[['a']]",
            "task `t` names its resources in lists of lists; one list is expected",
        ),
        (
            "'t', '{}', ARRAY[repeat('x', 1001)]",
            "task `t` names a resource of 1001 characters (`xxxxxxxxxxxxxxxxxxxx...`), at most 1000 are allowed",
        ),
        (
            "'t', '{}', (SELECT array_agg('r' || n) FROM generate_series(1, 200) n), \
             (SELECT array_agg('s' || n) FROM generate_series(1, 57) n)",
            "task `t` names 257 resources, at most 256 are allowed; name a larger thing that contains them",
        ),
    ] {
        assert_eq!(
            refusal(&mut connection, &format!("SELECT millhand.dispatch({arguments})")),
            message
        );
    }
    let message = refusal(
        &mut connection,
        "SELECT millhand.dispatch('t', to_jsonb(repeat(md5('x'), 32768) || 'x'))",
    );
    assert!(
        message.starts_with("the arguments of task `t` take ")
            && message.ends_with("at most 1048576 (1 MiB) are allowed; store large data elsewhere and pass where it is"),
        "{message}"
    );
    for (tasks, message) in [
        ("{}", "expected a JSON array of tasks"),
        (
            r#"[{"name": "t", "exclusiv": []}]"#,
            "unknown key `exclusiv` in a task; known are name, args, exclusive and shared",
        ),
        (r#"[{"args": {}}]"#, "a task needs a name"),
        (r#"[{"name": "t", "shared": [""]}]"#, "task `t` names an empty resource"),
    ] {
        assert_eq!(
            refusal(&mut connection, &format!("SELECT millhand.dispatch_many('{tasks}')")),
            message
        );
    }
    assert!(database.tasks().is_empty());
}

#[test]
fn the_largest_that_is_allowed_is_taken() {
    let database = Database::new();
    let mut connection = database.connect();
    connection
        .execute(
            "SELECT millhand.dispatch(repeat('n', 5000), to_jsonb(repeat('x', 1000000)),
                    (SELECT array_agg(lpad(n::text, 1000, 'é')) FROM generate_series(1, 200) n),
                    (SELECT array_agg('s' || n) FROM generate_series(1, 56) n))",
            &[],
        )
        .unwrap();
    assert_eq!(database.tasks()[0].exclusive.len(), 200);
}

/// Arrays that are not plain lists: their names must be locked, or refused.
#[test]
fn odd_arrays_of_resources_keep_the_order() {
    let database = Database::new();
    for array in ["ARRAY[['r']]", "'[5:5]={r}'::text[]", "ARRAY[['r', 'q']]"] {
        let mut connection = database.connect();
        let mut open = connection.transaction().unwrap();
        if open.execute(&format!("SELECT millhand.dispatch('t', '{{}}', {array})"), &[]).is_err() {
            continue;
        }
        thread::scope(|scope| {
            let later = scope.spawn(|| database.dispatch(&NewTask::new("second").exclusive("r")));
            wait_until(&database, &format!("a dispatch waits for {array}"), SOON, || {
                assert!(!later.is_finished(), "a dispatch did not wait for {array}");
                let waits: bool = database
                    .connect()
                    .query_one("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)", &[])
                    .unwrap()
                    .get(0);
                if waits { Ok(()) } else { Err("nobody waits") }
            });
            open.rollback().unwrap();
            later.join().unwrap();
        });
    }
}

#[test]
fn null_is_as_good_as_no_resources() {
    let database = Database::new();
    let mut connection = database.connect();
    for lists in ["NULL, NULL", "NULL, '{a}'", "'{a}', NULL", "NULL, '{a,b,c}'"] {
        let sql = format!("SELECT millhand.dispatch('t', NULL, {lists})");
        connection.query_one(&sql, &[]).unwrap();
    }
}

#[test]
fn a_cancel_is_part_of_its_transaction() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("t"));
    let mut connection = database.connect();
    let mut transaction = connection.transaction().unwrap();
    assert_eq!(client::cancel(&mut transaction, id).unwrap(), TaskState::Canceled);
    transaction.rollback().unwrap();
    assert_eq!(database.task(id).state, TaskState::Waiting);
    assert_eq!(client::cancel(&mut connection, id).unwrap(), TaskState::Canceled);
    let task = database.task(id);
    assert!(task.finished_at.is_some() && task.started_at.is_none());
    assert_eq!(client::cancel(&mut connection, id).unwrap(), TaskState::Canceled);
    let error = client::cancel(&mut connection, millhand::TaskId(1)).unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error:?}");
}

#[test]
fn the_doors_work_whatever_the_callers_schemas_hold() {
    let database = Database::new();
    let mut connection = database.connect();
    let mut traps = String::from("CREATE SCHEMA ev;");
    for (name, types, returns) in [
        ("cardinality", "text[]", "integer"),
        ("array_ndims", "text[]", "integer"),
        ("array_lower", "text[], integer", "integer"),
        ("length", "text", "integer"),
        ("unnest", "text[]", "SETOF text"),
        ("pg_column_size", "jsonb", "integer"),
        ("nextval", "text", "bigint"),
        ("pg_advisory_xact_lock", "bigint", "void"),
        ("pg_advisory_xact_lock_shared", "bigint", "void"),
        ("pg_try_advisory_lock", "bigint", "boolean"),
        ("hashtextextended", "text, integer", "bigint"),
        ("hashint8extended", "bigint, integer", "bigint"),
        ("jsonb_array_elements", "jsonb", "SETOF jsonb"),
        ("jsonb_typeof", "jsonb", "text"),
        ("clock_timestamp", "", "timestamptz"),
        ("pg_notify", "text, text", "void"),
        ("pg_current_xact_id", "", "xid8"),
        ("array_to_string", "text[], text", "text"),
    ] {
        traps.push_str(&format!(
            "CREATE FUNCTION ev.{name}({types}) RETURNS {returns} LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'trapped in {name}'; END $$;"
        ));
    }
    connection.batch_execute(&traps).unwrap();
    connection.batch_execute("SET search_path = ev, pg_catalog").unwrap();
    for names in ["'{a}', '{b}'", "'{a,b,c}', '{d,a}'"] {
        let sql = format!("SELECT millhand.dispatch('t', '{{}}', {names})");
        let id: i64 = connection.query_one(&sql, &[]).unwrap().get(0);
        let state: String =
            connection.query_one("SELECT millhand.cancel($1)", &[&id]).unwrap().get(0);
        assert_eq!(state, "canceled");
    }
    let tasks = r#"[{"name": "a", "shared": ["x", "y", "z"]}, {"name": "b", "exclusive": ["x"]}]"#;
    let sql = "SELECT * FROM millhand.dispatch_many($1::text::jsonb)";
    assert_eq!(connection.query(sql, &[&tasks]).unwrap().len(), 2);
}
