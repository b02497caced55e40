//! How tasks end, and what whoever waits for them is told.

use std::os::unix::fs::PermissionsExt;

use millhand::{NewTask, TaskState, client};
use rustix::process::Signal;
use serde_json::json;

use crate::support::process::{GATE_HANDLERS, Workshop, gate_task, run};
use crate::support::{SOON, WORKER_TYPES, clean::assert_clean, database::Database, wait_until};

const HANDLERS: &str = r#"
[handlers.echo]
command = ["printf", "%s", "{text}"]
[handlers.both]
command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
[handlers.killed]
command = ["sh", "-c", "kill -9 $$"]
[handlers.stdin]
command = ["cat"]
[handlers.environment]
command = ["sh", "-c", "echo \"$MILLHAND_TASK_ID $MILLHAND_TASK_NAME ${{MILLHAND_DATABASE_URL-unset}}\""]
[handlers.binary]
command = ["printf", "a\\377b"]
[handlers.deaf]
command = ["sh", "-c", "exec <&- >&- 2>&-; sleep 0.05"]
[handlers.reporter]
command = ["sh", "-c", "echo '{{\"percent\": 10}}' >&3; sleep 0.1; echo '{{\"percent\": 50}}' >&3; while [ ! -e \"$0/gate-$1\" ]; do sleep 0.01; done; for n in 97 98 99 100; do echo \"{{\\\"percent\\\": $n}}\" >&3; done", "{folder}", "{gate}"]
[handlers.missing]
command = ["/nonexistent/program"]
[handlers.plain]
command = ["/etc/passwd"]
[handlers.flood]
command = ["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"]
[handlers.chatter]
command = ["sh", "-c", "seq 100000 >&2"]
[handlers.leaver]
command = ["sh", "-c", "sleep 1000 & echo left"]
"#;

/// Runs one task by a burst of a worker and returns its row.
fn run_task(task: &NewTask) -> millhand::Task {
    let mut ended = None;
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let id = database.dispatch(task);
        let mut worker = workshop.worker(worker_type, &["--burst"]);
        let status = worker.wait(crate::support::SOON);
        let task = database.task(id);
        let code = i32::from(task.state == TaskState::Failed);
        assert_eq!(status.code(), Some(code), "{status}:\n{}", worker.stderr());
        assert_clean(&database, &workshop);
        ended = Some(task);
    }
    ended.unwrap()
}

#[track_caller]
fn assert_failed(task: &NewTask, message: &str) {
    let task = run_task(task);
    assert_eq!(task.state, TaskState::Failed, "{task:?}");
    let error = task.error.unwrap();
    assert!(error.contains(message), "`{error}` does not say `{message}`");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[track_caller]
fn assert_completed(task: &NewTask, result: serde_json::Value) {
    let task = run_task(task);
    assert_eq!((task.state, task.result), (TaskState::Completed, Some(result)), "{:?}", task.error);
}

#[test]
fn stdout_is_the_result() {
    let echo = |text: &str| NewTask::new("echo").args(json!({ "text": text }));
    assert_completed(&echo("[1, 2]"), json!([1, 2]));
    assert_completed(&echo("some words"), json!("some words"));
    // No shell reads it, and it stays one argument.
    assert_completed(&echo("$(id) a  b; 'c' \"d\" {text}"), json!("$(id) a  b; 'c' \"d\" {text}"));
    assert_completed(&NewTask::new("stdin").args(json!({ "a": [1] })), json!({ "a": [1] }));
}

#[test]
fn output_that_is_not_utf_8_is_kept_readable() {
    assert_completed(&NewTask::new("binary"), json!("a\u{fffd}b"));
}

#[test]
fn the_environment_names_the_task_and_no_database() {
    let task = run_task(&NewTask::new("environment"));
    assert_eq!(task.result, Some(json!(format!("{} environment unset", task.id))));
}

#[test]
fn a_failure_says_how() {
    assert_failed(&NewTask::new("both"), "exit code 3");
    assert_failed(&NewTask::new("killed"), "killed by SIGKILL (often because memory ran out)");
    assert_failed(&NewTask::new("millhand.fail").args(json!({ "message": "told to" })), "told to");
    assert_failed(&NewTask::new("echo"), "no field `text`");
    let nothing = NewTask::new("echo").args(json!({ "text": null }));
    assert_failed(&nothing, "the field `text` of the arguments is null");
}

#[test]
fn a_command_that_cannot_be_run_is_not_offered_until_it_can() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        let handlers =
            format!("[handlers.late]\ncommand = [\"{}\"]\n{HANDLERS}", program.display());
        let workshop = Workshop::new(&database, &handlers);
        let worker = workshop.worker(worker_type, &[]);
        let ids = ["missing", "plain", "late"].map(|name| database.dispatch(&NewTask::new(name)));
        let stderr = wait_until(&database, "it says what is not offered", SOON, || {
            let stderr = worker.stderr();
            if stderr.matches("is not offered").count() >= 3 { Ok(stderr) } else { Err(stderr) }
        });
        for part in ["`/nonexistent/program` does not exist", "`/etc/passwd` cannot be run"] {
            assert!(stderr.contains(part), "{stderr}");
        }
        std::fs::write(&program, "#!/bin/sh\necho 1\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let task = database.wait_for_state(ids[2], TaskState::Completed);
        assert_eq!((task.attempt, task.result), (1, Some(json!(1))));
        for id in &ids[..2] {
            assert_eq!(database.task(*id).state, TaskState::Waiting);
            client::cancel(&mut database.connect(), *id).unwrap();
        }
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn the_newest_progress_is_stored_soon_and_at_the_end() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, &format!("{GATE_HANDLERS}{HANDLERS}"));
        let worker = workshop.worker(worker_type, &[]);
        let gate = gate_task(&workshop, "reporter", "a");
        let id = database.dispatch(&gate);
        // Reported right after another one, and then nothing for long.
        wait_until(&database, "the second report", SOON, || {
            let progress = database.task(id).progress;
            if progress == Some(json!({ "percent": 50 })) { Ok(()) } else { Err(progress) }
        });
        workshop.open_gate("a");
        let task = database.wait_for_state(id, TaskState::Completed);
        assert_eq!(task.progress, Some(json!({ "percent": 100 })));
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_child_that_closes_its_pipes_is_waited_for() {
    assert_eq!(run_task(&NewTask::new("deaf")).state, TaskState::Completed);
}

#[test]
fn a_result_that_is_too_long_fails_the_task() {
    assert_failed(&NewTask::new("flood"), "1 MiB");
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    assert_completed(&NewTask::new("leaver"), json!("left"));
}

#[test]
fn the_log_is_the_end_of_stderr() {
    let database = Database::new();
    let workshop = Workshop::new(&database, HANDLERS);
    let (short, long) =
        (database.dispatch(&NewTask::new("both")), database.dispatch(&NewTask::new("chatter")));
    workshop.worker("postgres", &["--burst"]).wait(crate::support::SOON);
    let said = run(&mut workshop.millhand(["task", "logs", &short.to_string()]));
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "err\n"));
    let said = run(&mut workshop.millhand(["task", "logs", &long.to_string()]));
    assert!(said.stdout.ends_with("99999\n100000\n"));
    assert!(said.stdout.len() <= (64 << 10) + 100, "{}", said.stdout.len());
}

#[test]
fn whoever_waits_gets_the_tasks_fate() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, HANDLERS);
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let said = run(&mut workshop.millhand(["dispatch", "stdin", "--args", "[1]", "--wait"]));
        let id = database.tasks()[0].id;
        assert_eq!(
            (said.code, said.stdout, said.stderr),
            (Some(0), format!("{id}\n[1]\n"), String::new())
        );

        let said = run(&mut workshop.millhand([
            "dispatch",
            "millhand.fail",
            "--args",
            r#"{"message": "told to"}"#,
            "--wait",
        ]));
        let id = database.tasks()[1].id;
        assert_eq!((said.code, said.stdout), (Some(1), format!("{id}\n")));
        assert_eq!(said.stderr, format!("millhand: task {id} failed: told to\n"));

        let ids: Vec<String> =
            (0..3).map(|_| database.dispatch(&NewTask::new("millhand.noop")).to_string()).collect();
        let said = run(workshop.millhand(["task", "wait"]).args(&ids));
        let expected: String = ids.iter().map(|id| format!("{id} completed\n")).collect();
        assert_eq!((said.code, said.stdout), (Some(0), expected));
        worker.stop(rustix::process::Signal::TERM);
        assert_clean(&database, &workshop);
    }
}
