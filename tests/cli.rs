//! The command line: help, what it prints, refused input, exit codes.

use std::fs;
use std::process::{Command, Stdio};

use millhand::{NewTask, TaskState};
use serde_json::{Value, json};

use crate::support::database::Database;
use crate::support::process::{Said, millhand, run, run_with_input};

const SUBCOMMANDS: [&[&str]; 23] = [
    &[],
    &["worker"],
    &["dispatch"],
    &["task"],
    &["task", "list"],
    &["task", "show"],
    &["task", "cancel"],
    &["task", "wait"],
    &["task", "logs"],
    &["status"],
    &["workers"],
    &["workers", "list"],
    &["migrate"],
    &["grants"],
    &["config"],
    &["config", "check"],
    &["config", "show"],
    &["dev"],
    &["demo"],
    &["bench"],
    &["completions"],
    &["man"],
    &["help"],
];

pub(crate) fn on(database: &Database, args: &[&str]) -> Command {
    let mut command = millhand(args);
    command.env("MILLHAND_DATABASE_URL", database.url());
    command
}

/// Asserts that a command ends with this code, nothing on stdout, and this one
/// line on stderr.
#[track_caller]
pub(crate) fn assert_refused(said: &Said, code: i32, message: &str) {
    assert_eq!(said.code, Some(code), "{said:?}");
    assert_eq!(said.stdout, "", "{said:?}");
    assert_eq!(said.stderr, format!("millhand: {message}\n"));
}

#[test]
fn help_fits_into_80_columns() {
    for subcommand in SUBCOMMANDS {
        for flag in ["-h", "--help"] {
            let said = run(millhand(subcommand).arg(flag).env("COLUMNS", "200"));
            assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
            for line in said.stdout.lines() {
                assert!(line.chars().count() <= 80, "{subcommand:?} {flag}: {line}");
                // Values from the tester's environment are not shown.
                assert!(!line.contains("[env"), "{line}");
            }
        }
    }
}

#[test]
fn help_is_a_subcommand_too() {
    for (args, flag) in
        [(&["help"][..], &["--help"][..]), (&["help", "task", "list"], &["task", "list", "--help"])]
    {
        let (said, wanted) = (run(&mut millhand(args)), run(&mut millhand(flag)));
        assert_eq!((said.code, said.stdout), (Some(0), wanted.stdout));
    }
    let said = run(&mut millhand(["help", "handler"]));
    assert_refused(&said, 2, "there is no help on `handler`; did you mean `handlers`?");
}

/// It is said once, and shown in three places.
#[test]
fn the_contract_of_a_command_is_in_the_help_and_in_the_readme() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let contract = fs::read_to_string(root.join("src/worker/command/contract.md")).unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.contains(&contract), "README has another table than {contract}");
    let said = run(&mut millhand(["help", "handlers"]));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.lines().all(|line| line.chars().count() <= 80), "{}", said.stdout);
    // Wrapped, but all of it.
    let mut shown: Vec<&str> = said.stdout.split_whitespace().collect();
    shown.sort_unstable();
    for word in contract.lines().skip(2).flat_map(str::split_whitespace) {
        let word = word.replace('`', "");
        assert!(word == "|" || shown.binary_search(&word.as_str()).is_ok(), "{word}");
    }
}

#[test]
fn bad_flags_are_usage_errors() {
    for args in [
        &[][..],
        &["frobnicate"],
        &["dispatch"],
        &["dispatch", "t", "--frobnicate"],
        &["dispatch", "t", "--args", "{}", "--args-file", "/dev/null"],
        &["task", "show"],
        &["task", "show", "x1"],
        &["task", "list", "--state", "done"],
        &["task", "wait", "1", "--timeout", "soon"],
        &["worker", "--threads", "many"],
        &["worker", "--type", "carrier-pigeon"],
        &["worker", "--json"],
        &["--database-url", "postgresql:///", "dev"],
        &["-v", "-q", "status"],
        &["status", "--max-wait", "1m"],
        &["dispatch", "t", "--timeout", "1m"],
        &["task", "list", "--since", "tomorrow"],
        &["completions", "cobol"],
    ] {
        let said = run(&mut millhand(args));
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{args:?} {said:?}");
        assert!(!said.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_dispatch_prints_the_id_alone() {
    let database = Database::new();
    let args = [
        "dispatch",
        "t",
        "--args",
        r#"{"x": 1}"#,
        "--exclusive",
        "a",
        "--exclusive",
        "b",
        "--shared",
        "c",
    ];
    let said = run(&mut on(&database, &args));
    let task = &database.tasks()[0];
    assert_eq!(
        (said.code, said.stdout, said.stderr),
        (Some(0), format!("{}\n", task.id), String::new())
    );
    assert_eq!((task.name.as_str(), &task.args), ("t", &json!({"x": 1})));
    assert_eq!(
        (task.exclusive.join(" "), task.shared.join(" ")),
        ("a b".to_owned(), "c".to_owned())
    );

    let said = run(&mut on(&database, &["dispatch", "t", "--json"]));
    assert_eq!(said.stdout, format!("{{\"id\":{}}}\n", database.tasks()[1].id));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("args.json");
    fs::write(&path, "[1, 2]").unwrap();
    run(on(&database, &["dispatch", "t", "--args-file"]).arg(&path));
    assert_eq!(database.tasks()[2].args, json!([1, 2]));
}

#[test]
fn lines_on_stdin_become_tasks_in_their_order() {
    let database = Database::new();
    let mut input = String::new();
    for number in 0..2500 {
        input.push_str(
            &json!({"name": format!("t{number}"), "exclusive": [format!("r{}", 2500 - number)]})
                .to_string(),
        );
        input.push_str(if number % 100 == 0 { "\n\n" } else { "\n" });
    }
    let said = run_with_input(&mut on(&database, &["dispatch", "-"]), &input);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let tasks = database.tasks();
    let ids: Vec<String> = tasks.iter().map(|task| task.id.to_string()).collect();
    assert_eq!(said.stdout.lines().collect::<Vec<_>>(), ids);
    assert!(tasks.iter().enumerate().all(|(number, task)| task.name == format!("t{number}")));
    assert!(tasks.is_sorted_by_key(|task| task.position));

    let said = run_with_input(&mut on(&database, &["dispatch", "-"]), "");
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn a_bad_line_on_stdin_is_named_and_nothing_is_dispatched() {
    let database = Database::new();
    let good = "{\"name\":\"t\"}\n";
    for (line, message) in [
        ("{\"name\":\"t\"", "line 1501: EOF while parsing an object (column 11)"),
        ("{\"name\":\"\"}", "line 1501: a task needs a name"),
        ("{\"name\":\"t\",\"shared\":[\"\"]}", "line 1501: task `t` names an empty resource"),
        (
            "{\"name\":\"t\",\"exclusiv\":[]}",
            "line 1501: unknown field `exclusiv`, expected one of `name`, `args`, `exclusive`, `shared` (column 22)",
        ),
    ] {
        let input = format!("{}{line}\n{good}", good.repeat(1500));
        let said = run_with_input(&mut on(&database, &["dispatch", "-"]), &input);
        assert_refused(&said, 2, &format!("{message}; nothing is dispatched"));
        assert!(database.tasks().is_empty());
    }
}

#[test]
fn refused_tasks_are_explained_in_one_line() {
    let database = Database::new();
    for (args, message) in [
        (&["dispatch", ""][..], "a task needs a name"),
        (&["dispatch", "t", "--exclusive", ""], "task `t` names an empty resource"),
        (
            &["dispatch", "t", "--args", "{"],
            "--args is not valid JSON: EOF while parsing an object at line 1 column 1",
        ),
        (
            &["dispatch", "t", "--args-file", "/nonexistent"],
            "could not read /nonexistent: No such file or directory (os error 2)",
        ),
    ] {
        assert_refused(&run(&mut on(&database, args)), 2, message);
    }
    let long = "x".repeat(10_000);
    let said = run(&mut on(&database, &["dispatch", "t", "--shared", &long]));
    assert_refused(
        &said,
        2,
        "task `t` names a resource of 10000 characters (`xxxxxxxxxxxxxxxxxxxx...`), at most 1000 are allowed",
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("args.json");
    fs::write(&path, json!("x".repeat(10 << 20)).to_string()).unwrap();
    let said = run(on(&database, &["dispatch", "t", "--args-file"]).arg(&path));
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.starts_with("millhand: the arguments of task `t` take ")
            && said.stderr.len() < 300,
        "{said:?}"
    );

    let many =
        json!({"name": "t", "shared": (0..10_000).map(|n| n.to_string()).collect::<Vec<_>>()});
    let said = run_with_input(&mut on(&database, &["dispatch", "-"]), &many.to_string());
    assert_refused(
        &said,
        2,
        "line 1: task `t` names 10000 resources, at most 256 are allowed; name a larger thing that contains them; nothing is dispatched",
    );
    assert!(database.tasks().is_empty());
}

#[test]
fn what_is_not_found_or_final_exits_with_1() {
    let database = Database::new();
    for args in [
        &["task", "show", "7"][..],
        &["task", "cancel", "7"],
        &["task", "wait", "7"],
        &["task", "logs", "7"],
    ] {
        assert_refused(&run(&mut on(&database, args)), 1, "there is no task 7");
    }
    let (a, b) = (database.dispatch(&NewTask::new("t")), database.dispatch(&NewTask::new("t")));
    let said = run(&mut on(&database, &["task", "cancel", &a.to_string()]));
    assert_eq!((said.code, said.stdout), (Some(0), format!("{a} canceled\n")));
    // One that cannot be canceled does not keep the others.
    let said = run(&mut on(&database, &["task", "cancel", &a.to_string(), &b.to_string()]));
    assert_eq!(
        (said.code, said.stdout, said.stderr),
        (
            Some(1),
            format!("{b} canceled\n"),
            format!("millhand: task {a} is `canceled` already; nothing to cancel\n")
        )
    );
    let said = run(&mut on(&database, &["task", "wait", &b.to_string()]));
    assert_eq!((said.code, said.stdout), (Some(1), format!("{b} canceled\n")));
}

#[test]
fn waiting_ends_at_the_timeout() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("t"));
    let said = run(&mut on(&database, &["task", "wait", &id.to_string(), "--timeout", "50ms"]));
    assert_eq!(
        (said.code, said.stdout, said.stderr),
        (
            Some(124),
            format!("{id} waiting\n"),
            format!("millhand: stopped waiting after 50ms; task {id} is `waiting`\n")
        )
    );
}

#[test]
fn an_interrupt_ends_the_wait_and_not_the_task() {
    let database = Database::new();
    let mut child = on(&database, &["dispatch", "t", "--wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It waits once it looks at its task again and again.
    let mut connection = database.connect();
    crate::support::wait_until(&database, "it waits", crate::support::SOON, || {
        let query: Option<String> = connection
            .query_one(
                "SELECT max(query) FROM pg_stat_activity
                  WHERE datname = current_database() AND application_name = 'millhand dispatch'",
                &[],
            )
            .unwrap()
            .get(0);
        match query {
            Some(query) if query.contains("ANY ($1::bigint[])") => Ok(()),
            other => Err(other),
        }
    });
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
    let task = &database.tasks()[0];
    let id = task.id;
    assert_eq!(
        stderr,
        format!(
            "millhand: stopped waiting; task {id} stays; `millhand task cancel {id}` ends it\n"
        )
    );
    assert_eq!(task.state, TaskState::Waiting);
}

#[test]
fn listings_are_tables_for_people_and_json_lines_for_programs() {
    let database = Database::new();
    let a = database.dispatch(&NewTask::new("first").exclusive("x").shared("y"));
    let b = database.dispatch(&NewTask::new("second"));
    let said = run(&mut on(&database, &["task", "list"]));
    let lines: Vec<&str> = said.stdout.lines().collect();
    let words = |line: &str| line.split_whitespace().take(4).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[0]), ["ID", "STATE", "NAME", "EXCLUSIVE"]);
    assert_eq!(words(lines[1]), [&b.to_string(), "waiting", "second", "-"]);
    assert_eq!(words(lines[2]), [&a.to_string(), "waiting", "first", "x"]);

    let said = run(&mut on(&database, &["task", "list", "--json", "--name", "first"]));
    let lines: Vec<Value> =
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1);
    assert_eq!((&lines[0]["id"], &lines[0]["exclusive"]), (&json!(a), &json!(["x"])));

    for (args, n) in [
        (&["task", "list", "--json", "--limit", "1"][..], 1),
        (&["task", "list", "--json", "--state", "running"], 0),
        (&["task", "list", "--json", "--state", "running", "--state", "waiting"], 2),
        (&["workers", "--json"], 0),
        (&["status", "--json"], 1),
    ] {
        let said = run(&mut on(&database, args));
        assert_eq!((said.code, said.stdout.lines().count()), (Some(0), n), "{args:?} {said:?}");
    }
    let said = run(&mut on(&database, &["status", "--json"]));
    let status: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&status["tasks"]["waiting"], &status["workers_online"]), (&json!(2), &json!(0)));
    let said = run(&mut on(&database, &["task", "show", &a.to_string(), "--json"]));
    let task: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&task["name"], &task["shared"]), (&json!("first"), &json!(["y"])));
}

#[test]
fn a_name_cannot_command_the_terminal() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("a\u{1b}[2Jb\nc\u{202e}").exclusive("r\u{7}"));
    for args in [&["task", "list"][..], &["task", "show", &id.to_string()]] {
        let said = run(&mut on(&database, args));
        assert!(said.stdout.contains("a\\u{1b}[2Jb\\nc\\u{202e}"), "{said:?}");
        assert!(
            said.stdout.chars().all(|character| !character.is_control() || character == '\n'),
            "{said:?}"
        );
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("t"));
    for args in [
        &["task", "list"][..],
        &["task", "list", "--json"],
        &["status"],
        &["task", "show", &id.to_string()],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = on(&database, args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn no_database_and_bad_urls_say_what_to_do() {
    let said = run(&mut millhand(["status"]));
    assert_refused(
        &said,
        2,
        "no database is named; set MILLHAND_DATABASE_URL, or `database_url` in millhand.toml, or try `millhand dev -- COMMAND`",
    );
    let said = run(millhand(["status"]).env("MILLHAND_DATABASE_URL", "nonsense://u:secret@h/d"));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(!said.stderr.contains("secret"), "{said:?}");
}

#[test]
fn an_unreachable_server_exits_with_75_and_keeps_the_password() {
    for url in ["postgresql://u:secret@127.0.0.1:1/d", "postgresql://u:secret@/d?host=/nonexistent"]
    {
        let said = run(&mut millhand(["status", "--database-url", url]));
        assert_eq!((said.code, said.stdout.as_str()), (Some(75), ""), "{said:?}");
        assert!(said.stderr.starts_with("millhand: could not connect to Postgres at "), "{said:?}");
        assert!(!said.stderr.contains("secret") && said.stderr.lines().count() == 1, "{said:?}");
    }
}

#[test]
fn a_wrong_password_is_refused_and_never_printed() {
    // A server of its own: everybody must give a password here.
    let server = crate::support::database::start_server();
    let mut admin = millhand::db::connect(&server.url(), "test").unwrap();
    admin.batch_execute("CREATE ROLE guarded LOGIN PASSWORD 'right'").unwrap();
    let hba: String = admin.query_one("SHOW hba_file", &[]).unwrap().get(0);
    let rules = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("local all guarded scram-sha-256\n{rules}")).unwrap();
    admin.execute("SELECT pg_reload_conf()", &[]).unwrap();
    let url = server.url().replace("//postgres@", "//guarded:hunter2@");
    crate::support::wait_until(
        &Database::of(&server),
        "the new rule holds",
        crate::support::SOON,
        || {
            let said = run(millhand(["status"]).env("MILLHAND_DATABASE_URL", &url));
            assert!(
                !said.stderr.contains("hunter2") && !said.stdout.contains("hunter2"),
                "{said:?}"
            );
            if said.code == Some(75) && said.stderr.contains("password authentication failed") {
                assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
                return Ok(());
            }
            Err(said)
        },
    );
}

#[test]
fn a_database_with_another_schema_is_refused() {
    let database = Database::empty();
    let said = run(&mut on(&database, &["status"]));
    let message = format!(
        "there are no millhand tables in the database `{}` yet; run `millhand migrate`",
        database.name()
    );
    assert_refused(&said, 2, &message);

    let database = Database::new();
    database
        .connect()
        .batch_execute("INSERT INTO millhand.migration (version, name) VALUES (9999, 'future')")
        .unwrap();
    for args in [
        &["status"][..],
        &["migrate"],
        &["migrate", "--check"],
        &["dispatch", "t"],
        &["task", "list"],
        &["worker", "--burst"],
    ] {
        let said = run(&mut on(&database, args));
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
        assert!(said.stderr.contains("9999, newer than this program knows"), "{said:?}");
    }
}

#[test]
fn settings_that_are_wrong_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("millhand.toml");
    let with_config = |text: &str| {
        fs::write(&path, text).unwrap();
        run(millhand(["config", "check", "--config"]).arg(&path))
    };
    let place = path.display();
    let said = with_config("databas_url = 'x'");
    assert_refused(
        &said,
        2,
        &format!("{place}: unknown key `databas_url`; did you mean `database_url`?"),
    );
    let beside = |what: &str| format!("{place}: {what}");
    let handler = |what: &str| format!("{place}: handler `x`: {what}");
    for (text, message) in [
        ("threads = 0", "threads is 0, expected 1 to 1000".to_owned()),
        ("threads = -1", beside("threads is -1, expected a number from 1 to 1000")),
        ("threads = 'many'", beside("threads is \"many\", expected a number from 1 to 1000")),
        ("ttl = 0.5", "ttl must be at least 1s".to_owned()),
        (
            "ttl = '5 parsecs'",
            beside("ttl is \"5 parsecs\", expected a time, such as 30s, or a number of seconds"),
        ),
        (
            "worker_type = 'x'",
            beside("worker_type is \"x\", expected one of `postgres`, `redis`, `pulpcore`"),
        ),
        ("redis_url = ['secret']", beside("redis_url is not readable, expected a URL")),
        ("handlers = 1", beside("handlers are tables, such as [handlers.hello]")),
        (
            "handlers.x = ['true']",
            handler("expected a table, such as [handlers.x] with a `command`"),
        ),
        (
            "[handlers.x]\ncomand = ['true']",
            handler("unknown key `comand`; did you mean `command`?"),
        ),
        (
            "[handlers.x]\ncommand = 'echo hi'",
            handler(
                "`command` is \"echo hi\", expected a list of strings, such as [\"echo\", \"hi\"]",
            ),
        ),
        (
            "[handlers.x]\ncommand = ['true']\nenvironment = ['secret']",
            handler(
                "`environment` is not readable, expected a table of strings, such as { LANG = \"C\" }",
            ),
        ),
        ("threads = 1\nttl = ", format!("{place}:2:7: ")),
        ("[handlers.x]", "handler `x`: `command` names no program; ".to_owned()),
        ("[handlers.x]\ncommand = []", "handler `x`: `command` names no program; ".to_owned()),
        (
            "[handlers.x]\ncommand = ['echo', '{file']",
            "handler `x`: in the argument `{file`, `{` is not closed; write `{{` for a brace"
                .to_owned(),
        ),
        (
            "[handlers.x]\ncommand = ['echo', '{b.c}']",
            "handler `x`: in the argument `{b.c}`, `{b.c}` names no field, ".to_owned(),
        ),
        (
            "name_template = 'mill-{threads}'",
            "in the name template `mill-{threads}`, `{threads}` is not known; it may have {pid}, \
             {hostname}, {fqdn} and {thread}"
                .to_owned(),
        ),
    ] {
        let said = with_config(text);
        assert_eq!(
            (said.code, said.stdout.as_str(), said.stderr.lines().count()),
            (Some(2), "", 1),
            "{text}: {said:?}"
        );
        let said = said.stderr.trim_start_matches("millhand: ");
        assert!(said.starts_with(&message), "{text}: {said}, not {message}");
    }
    let said = run(&mut millhand(["status", "--config", "/nonexistent/millhand.toml"]));
    assert_refused(
        &said,
        2,
        "could not read config file /nonexistent/millhand.toml: No such file or directory (os error 2)",
    );
    let said = run(millhand(["status"]).env("MILLHAND_THREADS", "0"));
    assert_eq!(said.code, Some(2), "{said:?}");
    let said = run(millhand(["status"]).env("MILLHAND_TTL", "soon"));
    assert!(said.code == Some(2) && said.stderr.contains("MILLHAND_TTL is \"soon\""), "{said:?}");
}

#[test]
fn a_plain_number_is_a_time_in_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("millhand.toml");
    fs::write(&path, "ttl = 5\npoll_interval = 0.5\nstop_after = '1m'").unwrap();
    let config = millhand::Config::load(Some(&path)).unwrap();
    let times = (config.ttl.as_millis(), config.poll_interval.as_millis());
    assert_eq!((times, config.stop_after.map(|time| time.as_secs())), ((5000, 500), Some(60)));
    let database = Database::new();
    let id = database.dispatch(&NewTask::new("t")).to_string();
    let said = run(&mut on(&database, &["task", "wait", &id, "--timeout", "0.05"]));
    assert!(said.code == Some(124) && said.stderr.contains("after 50ms"), "{said:?}");
    let said = run(on(&database, &["worker", "--burst"]).env("MILLHAND_TTL", "20"));
    assert_eq!(said.code, Some(0), "{said:?}");
}

#[test]
fn a_variable_that_is_no_setting_is_named() {
    let database = Database::new();
    let said = run(on(&database, &["status"])
        .env("MILLHAND_THREAD", "4")
        .env("MILLHAND_TASK_ID", "7")
        .env("MILLHAND_CONFIG", "/dev/null"));
    assert_eq!((said.code, said.stderr.lines().count()), (Some(0), 1), "{said:?}");
    let message = "MILLHAND_THREAD is no setting, and is ignored; did you mean MILLHAND_THREADS?";
    assert!(said.stderr.contains(message), "{said:?}");
}

#[test]
fn a_number_that_would_change_is_refused_and_named() {
    let database = Database::new();
    let large = "123456789012345678901234567890";
    let said = run(&mut on(&database, &["dispatch", "t", "--args", large]));
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    assert!(said.stderr.contains(large) && said.stderr.contains("through SQL"), "{said:?}");
    let line = format!("{{\"name\": \"t\", \"args\": {large}}}\n");
    let said = run_with_input(&mut on(&database, &["dispatch", "-"]), &line);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
    assert!(said.stderr.contains("line 1: ") && said.stderr.contains(large), "{said:?}");
    assert!(database.tasks().is_empty());
}
