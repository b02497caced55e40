//! The command line as people use it: arguments, filters, JSON, colours, pages.

use std::fs;
use std::process::Command;

use millhand::NewTask;
use serde_json::{Value, json};

use crate::cli::{assert_refused, on};
use crate::support::database::Database;
use crate::support::process::{millhand, run, run_with_input};

#[test]
fn arguments_are_json_or_fields_or_stdin() {
    let database = Database::new();
    let args = ["dispatch", "t", "-a", "who=Ada", "-a", "n:=1", "-x", "a", "-s", "b"];
    run(&mut on(&database, &args));
    run_with_input(&mut on(&database, &["dispatch", "t", "--args-file", "-"]), "[1]");
    let tasks = database.tasks();
    assert_eq!((&tasks[0].args, &tasks[1].args), (&json!({"who": "Ada", "n": 1}), &json!([1])));
    assert_eq!((tasks[0].exclusive.join(" "), tasks[0].shared.join(" ")), ("a".into(), "b".into()));
    for (args, message) in [
        (&["dispatch", "t", "-a", ""][..], "--args is empty; expected JSON, such as {}"),
        (
            &["dispatch", "t", "-a", r#"{"a": "\u0000"}"#],
            "--args: a string holds the character \\u0000, which JSON in Postgres has no room for; leave it out",
        ),
        (
            &["dispatch", "-", "-x", "r"],
            "with - each line says its own arguments and resources, such as {\"name\": \"t\", \"args\": {}, \"exclusive\": [\"r\"]}",
        ),
    ] {
        assert_refused(&run(&mut on(&database, args)), 2, message);
    }
}

#[test]
fn lists_are_filtered() {
    let database = Database::new();
    let a = database.dispatch(&NewTask::new("a").exclusive("x"));
    let b = database.dispatch(&NewTask::new("b").shared("x").exclusive("y z"));
    let c = database.dispatch(&NewTask::new("c"));
    database
        .connect()
        .batch_execute("UPDATE millhand.task SET created_at = '2020-02-03' WHERE name = 'c'")
        .unwrap();
    for (filter, expected) in [
        (&["--resource", "x"][..], vec![b, a]),
        (&["-r", "x", "--oldest"], vec![a, b]),
        (&["--since", "1h"], vec![b, a]),
        (&["--since", "2020-02-02"], vec![c, b, a]),
        (&["--since", "2020-02-03T23:00Z"], vec![b, a]),
        (&["--oldest", "-n", "1"], vec![a]),
        (&["--worker", "nobody"], vec![]),
    ] {
        let args = [&["task", "list", "--no-header"], filter].concat();
        let said = run(&mut on(&database, &args));
        let ids: Vec<String> = said
            .stdout
            .lines()
            .map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
            .collect();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        assert_eq!(ids, expected, "{filter:?} {said:?}");
    }
    let said = run(&mut on(&database, &["task", "list", "--name", "b"]));
    let line = said.stdout.lines().nth(1).unwrap();
    assert!(line.contains(" b     \"y z\"      x "), "{line}");
}

#[test]
fn everything_that_prints_data_prints_json_lines_too() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("t")).to_string();
    for args in [
        &["task", "cancel", &id][..],
        &["task", "wait", &id],
        &["task", "logs", &id],
        &["task", "show", &id],
        &["task", "list"],
        &["dispatch", "t"],
        &["dispatch", "t", "--wait", "--timeout", "1ms"],
        &["status"],
        &["status", "--check"],
        &["migrate"],
        &["migrate", "--check"],
    ] {
        // Before the subcommand as after it.
        let (before, after) = ([&["-j"], args].concat(), [args, &["--json"]].concat());
        let args = if args.len() % 2 == 0 { before } else { after };
        let said = run(&mut on(&database, &args));
        assert_eq!(said.stdout.lines().count(), 1, "{args:?} {said:?}");
        let value: Value = serde_json::from_str(&said.stdout).unwrap();
        assert!(value.is_object(), "{said:?}");
    }
}

#[test]
fn a_check_says_in_one_line_what_is_not_well() {
    let database = Database::new();
    let check = |flags: &[&str]| run(&mut on(&database, &[&["status", "--check"], flags].concat()));
    let said = check(&[]);
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(1), "no worker is online; online workers: 0, waiting tasks: 0, running: 0\n")
    );
    database.dispatch(&NewTask::new("t"));
    database
        .connect()
        .batch_execute(
            "INSERT INTO millhand.worker (name, type, process, hostname, pid, ttl)
             VALUES ('w', 'postgres', 'p', 'h', 1, '1 hour')",
        )
        .unwrap();
    let said = check(&["--max-wait", "1h"]);
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(0), "ok: online workers: 1, waiting tasks: 1, running: 0\n")
    );
    let said = check(&["--max-wait", "1ms"]);
    assert!(said.code == Some(1) && said.stdout.starts_with("a task waits for "), "{said:?}");
    database
        .connect()
        .batch_execute("UPDATE millhand.worker SET last_heartbeat = '2020-01-01'")
        .unwrap();
    let said = check(&[]);
    assert!(said.code == Some(1) && said.stdout.contains("workers missing: 1"), "{said:?}");
}

#[test]
fn pages_and_completions_come_from_the_same_definition() {
    let folder = tempfile::tempdir().unwrap();
    let said = run(millhand(["man"]).arg(folder.path()));
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    for (page, word) in [
        ("millhand", "dispatch"),
        ("millhand-dispatch", "exclusive"),
        ("millhand-task-list", "resource"),
        ("millhand-workers-list", "header"),
    ] {
        let text = fs::read_to_string(folder.path().join(format!("{page}.1"))).unwrap();
        assert!(text.contains(word), "{page}");
    }
    assert!(!folder.path().join("millhand-warden.1").exists());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = run(&mut millhand(["completions", shell]));
        assert!(said.code == Some(0) && said.stdout.contains("exclusive"), "{shell}");
        assert!(!said.stdout.contains("warden"), "{shell}");
    }
}

#[test]
fn colours_are_for_terminals_alone() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("t")).to_string();
    run(&mut on(&database, &["task", "cancel", &id]));
    let list = format!("{} task list", env!("CARGO_BIN_EXE_millhand"));
    let on_terminal = |colours: bool| {
        // script(1) makes a terminal.
        let mut command = Command::new("script");
        command.args(["-qec", &list, "/dev/null"]).env("MILLHAND_DATABASE_URL", database.url());
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        if !colours {
            command.env("NO_COLOR", "1");
        }
        run(&mut command).stdout
    };
    assert!(on_terminal(true).contains("\u{1b}["));
    assert!(!on_terminal(false).contains("\u{1b}["));
    assert!(!run(&mut on(&database, &["task", "list"])).stdout.contains("\u{1b}["));
}

#[test]
fn settings_and_handlers_are_checked_without_a_worker() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("millhand.toml");
    let config = |what: &str, text: &str| {
        fs::write(&path, text).unwrap();
        let url = "postgresql://u:secret@db.example/mydb";
        let mut command = millhand(["config", what]);
        command.env("MILLHAND_CONFIG", &path).env("MILLHAND_DATABASE_URL", url);
        run(&mut command)
    };
    let good = "threads = 3\n[handlers.a]\ncommand = ['true']\n";
    let said = config("check", good);
    let ok = format!("ok: {}, 1 handler\n", path.display());
    assert_eq!((said.code, said.stdout), (Some(0), ok));
    let said = config("show", good);
    assert!(said.stdout.contains("threads                3\n"), "{said:?}");
    assert!(said.stdout.contains("db.example:5432/mydb"), "{said:?}");
    assert!(!said.stdout.contains("secret"), "{said:?}");
    let said = config("check", "[handlers.a]\ncommand = ['no-such-program']\n");
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (
            Some(1),
            "handler `a`: `no-such-program` is not in the PATH; install it, or mend the \
             handler's command\n"
        )
    );
    let said = config("check", "threads = 0\n");
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""));
}
