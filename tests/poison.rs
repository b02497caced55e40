//! One task's data harms nothing but that task: whatever the table holds is read,
//! shown and handed on, or ends that task alone.

use millhand::{NewTask, TaskId, TaskState};
use postgres::Client;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, Workshop, gate_task, run};
use crate::support::{SOON, WORKER_TYPES};

const HANDLERS: &str = r#"
[handlers.stdin]
command = ["sh", "-c", "cat >&2"]
[handlers.field]
command = ["sh", "-c", "printf %s \"$0\" >&2", "{n}"]
"#;

/// Dispatches through SQL, as no `NewTask` could.
fn dispatch(connection: &mut Client, name: &str, args: &str) -> TaskId {
    let sql = "SELECT millhand.dispatch($1::text, $2::text::jsonb)";
    TaskId(connection.query_one(sql, &[&name, &args]).unwrap().get(0))
}

fn log(workshop: &Workshop, id: TaskId) -> String {
    let said = run(&mut workshop.millhand(["task", "logs", &id.to_string()]));
    assert_eq!(said.code, Some(0), "{said:?}");
    said.stdout
}

#[test]
fn arguments_reach_a_command_as_they_stand_in_the_table() {
    let deep = format!("{}{}", "[".repeat(3000), "]".repeat(3000));
    let huge = format!("1{}", "0".repeat(400));
    let precise = "0.1234567890123456789012345678901234567890";
    let large = "123456789012345678901234567890";
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let mut connection = database.connect();
        let numbers = [huge.as_str(), precise, large, "-9223372036854775809", "1.0"];
        let mut expected = Vec::new();
        for number in numbers {
            let args = format!("{{\"n\": {number}}}");
            expected.push((dispatch(&mut connection, "stdin", &args), args.clone()));
            expected.push((dispatch(&mut connection, "field", &args), number.to_owned()));
        }
        let args = format!("{{\"n\": {deep}}}");
        expected.push((dispatch(&mut connection, "field", &args), deep.clone()));
        expected.push((dispatch(&mut connection, "stdin", &args), args));
        let mut worker = workshop.worker(worker_type, &["--burst", "--threads", "4"]);
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        for (id, text) in expected {
            assert_eq!(database.task(id).state, TaskState::Completed, "{:?}", database.task(id));
            assert_eq!(log(&workshop, id), text);
        }
        assert_clean(&database, &workshop);
    }
}

#[test]
fn what_a_function_cannot_be_given_ends_that_task_alone() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut connection = database.connect();
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let running = database.dispatch(&gate_task(&workshop, "gate", "a"));
        workshop.wait_at_gate(&database, "a");
        // All at once, so that they share turns where turns are shared.
        let mut transaction = connection.transaction().unwrap();
        let sql = "SELECT millhand.dispatch($1::text, $2::text::jsonb)";
        let mut ids = Vec::new();
        let too_long = format!("[{}1e131071]", "1e131071,".repeat(200));
        let beyond_text = format!("[{}1e131071]", "1e131071,".repeat(20_000));
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for args in ["{\"n\": 1e400}", &deep, &too_long, &beyond_text] {
            for (name, args) in [("millhand.clock", args), ("millhand.clock", "{}")] {
                ids.push(TaskId(transaction.query_one(sql, &[&name, &args]).unwrap().get(0)));
            }
        }
        transaction.commit().unwrap();
        for pair in ids.chunks(2) {
            let poison = database.wait_for_state(pair[0], TaskState::Failed);
            let error = poison.error.unwrap();
            assert!(error.starts_with("the arguments cannot be read: "), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
            database.wait_for_state(pair[1], TaskState::Completed);
        }
        workshop.open_gate("a");
        assert_eq!(database.wait_for_state(running, TaskState::Completed).attempt, 1);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn every_row_is_shown() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let mut connection = database.connect();
    let huge = format!("1{}", "0".repeat(400));
    let ids: Vec<String> =
        (0..5).map(|_| dispatch(&mut connection, "t", "{\"n\": 1e400}").to_string()).collect();
    for (id, change) in ids.iter().zip([
        "progress = '1e400', result = '[1e400]'",
        "created_at = 'infinity'",
        "created_at = '-infinity', started_at = '200000-01-01', worker = E'w\\x1b[31m'",
        "name = E'\\x1b]0;title\\x07\\n\\u202e', exclusive = ARRAY[E'\\x1b[2J']",
        "args = 'null'",
    ]) {
        connection
            .execute(&format!("UPDATE millhand.task SET {change} WHERE id = {id}"), &[])
            .unwrap();
    }
    for (args, n_lines) in [(&["task", "list"][..], 6), (&["task", "list", "--json"], 5)] {
        let said = run(&mut workshop.millhand(args));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
        assert_eq!(said.stdout.lines().count(), n_lines, "{said:?}");
        assert!(!said.stdout.contains(['\x1b', '\x07', '\u{202e}']), "{said:?}");
    }
    for id in &ids {
        for args in [&["task", "show", id][..], &["task", "show", "--json", id]] {
            let said = run(&mut workshop.millhand(args));
            assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
            assert!(!said.stdout.contains(['\x1b', '\x07', '\u{202e}']), "{said:?}");
        }
        let said = run(&mut workshop.millhand(["task", "wait", "--timeout", "1ms", id]));
        assert_eq!(
            (said.code, said.stdout),
            (Some(124), format!("{id} waiting\n")),
            "{}",
            said.stderr
        );
    }
    let said = run(&mut workshop.millhand(["task", "show", "--json", &ids[0]]));
    let shown: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(shown["args"], json!(format!("{{\"n\": {huge}}}")));
    assert_eq!(shown["progress"], json!(huge));
    let said = run(&mut workshop.millhand(["status"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    connection
        .batch_execute(
            "INSERT INTO millhand.worker (name, type, process, hostname, pid, ttl, last_heartbeat)
             VALUES (E'\\x1b[31m', 'postgres', 'p', 'h', 1, '1 s', 'infinity'),
                    ('w', 'postgres', 'p', 'h', 1, '1 s', '-infinity')",
        )
        .unwrap();
    for args in [&["workers"][..], &["workers", "--json"], &["status"]] {
        let said = run(&mut workshop.millhand(args));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
        assert!(!said.stdout.contains('\x1b'), "{said:?}");
    }
}

/// A hand can write lists that no dispatch would.
#[test]
fn what_is_no_list_of_resources_stops_no_worker() {
    for worker_type in WORKER_TYPES {
        for odd in ["'{NULL,a}'", "ARRAY[['a', 'b'], ['c', NULL]]"] {
            let database = Database::new();
            let workshop = Workshop::new(&database, "");
            let ids: Vec<TaskId> = (0..3)
                .map(|_| database.dispatch(&NewTask::new("millhand.noop").exclusive("a")))
                .collect();
            let sql = format!("UPDATE millhand.task SET exclusive = {odd} WHERE id = $1");
            database.connect().execute(&sql, &[&ids[1].0]).unwrap();
            let mut worker = workshop.worker(worker_type, &["--burst", "--threads", "2"]);
            assert!(worker.wait(SOON).success(), "{}", worker.stderr());
            for id in ids {
                assert_eq!(database.task(id).state, TaskState::Completed);
            }
        }
    }
}

#[test]
fn results_are_stored_as_they_were_written_or_as_text() {
    const HANDLERS: &str = r#"
[handlers.say]
command = ["printf", "%s", "{text}"]
"#;
    let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
    let huge = format!("1{}", "0".repeat(400));
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let mut expected = Vec::new();
        for (said, stored) in [
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("[0.1234567890123456789012345]", "[0.1234567890123456789012345]"),
            ("1e400", huge.as_str()),
            // Refused by Postgres, and kept as text.
            ("1e200000", "\"1e200000\""),
            (r#"{"a": "\ud800"}"#, r#""{\"a\": \"\\ud800\"}""#),
            (r#"["\u0000"]"#, "[\"\u{fffd}\"]"),
        ] {
            let id = database.dispatch(&NewTask::new("say").args(json!({ "text": said })));
            expected.push((id, stored));
        }
        // A single argument of a command takes 128 KiB at most.
        let id = database.dispatch(&NewTask::new("say").args(json!({ "text": deep })));
        let mut worker = workshop.worker(worker_type, &["--burst", "--threads", "4"]);
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        let mut connection = database.connect();
        for (id, stored) in expected {
            let sql = "SELECT result::text, state FROM millhand.task WHERE id = $1";
            let row = connection.query_one(sql, &[&id.0]).unwrap();
            let found: (Option<String>, String) = (row.get(0), row.get(1));
            assert_eq!(found, (Some(stored.to_owned()), "completed".to_owned()));
        }
        assert_eq!(database.task(id).state, TaskState::Completed);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_result_that_is_refused_costs_neither_the_reason_nor_the_log() {
    const HANDLERS: &str = r#"
[handlers.result]
command = ["sh", "-c", "echo said >&2; echo poison"]
[handlers.failure]
command = ["sh", "-c", "echo poison >&2; exit 3"]
"#;
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        database
            .connect()
            .batch_execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     RAISE EXCEPTION 'not this one' USING ERRCODE = 'untranslatable_character';
                 END $$;
                 CREATE TRIGGER poison BEFORE UPDATE ON millhand.task FOR EACH ROW
                     WHEN (NEW.result::text LIKE '%poison%' OR NEW.log LIKE 'poison%')
                     EXECUTE FUNCTION refuse()",
            )
            .unwrap();
        let tasks: Vec<NewTask> = (0..4)
            .flat_map(|_| ["result", "millhand.noop", "failure", "millhand.noop"])
            .map(NewTask::new)
            .collect();
        let ids = millhand::dispatch_many(&mut database.connect(), &tasks).unwrap();
        let mut worker = workshop.worker(worker_type, &["--burst", "--threads", "4"]);
        assert_eq!(worker.wait(SOON).code(), Some(1), "{}", worker.stderr());
        for (id, task) in ids.into_iter().zip(&tasks) {
            let ended = database.task(id);
            match task.name.as_str() {
                "result" => {
                    let error = "the result could not be stored: not this one";
                    assert_eq!(ended.error.as_deref(), Some(error), "{ended:?}");
                    assert_eq!(log(&workshop, id), "said\n");
                }
                "failure" => {
                    assert_eq!(ended.error.as_deref(), Some("exit code 3: poison"), "{ended:?}");
                }
                _ => assert_eq!(ended.state, TaskState::Completed, "{ended:?}"),
            }
        }
        assert_clean(&database, &workshop);
    }
}
