//! What a command gets, by what `[handlers.NAME]` says of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use millhand::{Config, NewTask, Registry, Task, TaskState, Worker, client};
use rustix::process::{Pid, Signal};

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{
    GATE_HANDLERS, WorkerProcess, Workshop, children_of, gate_task, run, signal_all,
};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Runs one task of this name by a burst of a worker with these variables.
fn run_task(handlers: &str, name: &str, variables: &[(&str, &str)]) -> (Task, Workshop, Database) {
    let database = Database::new();
    let workshop = Workshop::new(&database, handlers);
    let id = database.dispatch(&NewTask::new(name));
    let said = run(workshop.millhand(["worker", "--burst"]).envs(variables.iter().copied()));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_clean(&database, &workshop);
    (database.task(id), workshop, database)
}

fn result(task: Task) -> String {
    let shown = format!("{task:?}");
    let Some(serde_json::Value::String(text)) = task.result else { panic!("no text: {shown}") };
    text
}

#[test]
fn a_command_gets_the_workers_variables_but_not_its_settings() {
    let secrets = [
        ("PGPASSWORD", "secret"),
        ("MILLHAND_THREADS", "1"),
        ("MILLHAND_REDIS_URL", "redis://:secret@localhost"),
        ("WATCHDOG_PID", "1"),
        ("CREDENTIALS_DIRECTORY", "/secret"),
        ("COLOUR", "green"),
        ("LC_TIME", "C"),
    ];
    let names = |text: &str| {
        let names = text.lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned()));
        names.collect::<Vec<_>>()
    };
    let (task, ..) = run_task("[handlers.env]\ncommand = [\"env\"]", "env", &secrets);
    let text = result(task);
    assert!(text.contains("COLOUR=green") && !text.contains("secret"), "{text}");
    let ours: Vec<String> =
        names(&text).into_iter().filter(|name| name.starts_with("MILLHAND_")).collect();
    let task_variables = [
        "MILLHAND_ATTEMPT",
        "MILLHAND_FENCE",
        "MILLHAND_TASK_ID",
        "MILLHAND_TASK_NAME",
        "MILLHAND_WORKER",
    ];
    assert_eq!(ours, task_variables, "{text}");
    for name in ["WATCHDOG_PID", "CREDENTIALS_DIRECTORY"] {
        assert!(!names(&text).contains(&name.to_owned()), "{text}");
    }

    let clean = "[handlers.env]\ncommand = [\"env\"]\nclean_environment = true\n\
                 environment = { COLOUR = \"red\", MILLHAND_TASK_ID = \"0\" }";
    let (task, ..) = run_task(clean, "env", &secrets);
    let id = task.id;
    let text = result(task);
    assert!(text.contains("COLOUR=red\n") && text.contains("LC_TIME=C\n"), "{text}");
    assert!(text.contains(&format!("MILLHAND_TASK_ID={id}\n")), "{text}");
    assert!(!names(&text).contains(&"TEST_MARKER".to_owned()), "{text}");
}

#[test]
fn a_command_runs_in_a_fresh_directory_or_in_its_own() {
    let fresh = "[handlers.pwd]\ncommand = [\"sh\", \"-c\", \"pwd -P; ls -A\"]";
    let (task, workshop, _database) = run_task(fresh, "pwd", &[]);
    let (work, folder) = (workshop.work(), result(task));
    assert!(folder.starts_with(work.to_str().unwrap()) && folder.lines().count() == 1, "{folder}");
    assert_eq!(fs::read_dir(work).unwrap().count(), 0, "it stays");

    // Relative to the config file's folder, not offered until it is there, and kept.
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let handlers =
            "[handlers.own]\ncommand = [\"sh\", \"-c\", \"pwd -P; : >kept\"]\ndirectory = \"data\"";
        let workshop = Workshop::new(&database, handlers);
        let worker = workshop.worker(worker_type, &[]);
        let id = database.dispatch(&NewTask::new("own"));
        let said =
            format!("its directory {} does not exist", workshop.path().join("data").display());
        wait_until(&database, "it says what is missing", SOON, || {
            let stderr = worker.stderr();
            if stderr.matches(&said).count() == 1 { Ok(()) } else { Err(stderr) }
        });
        fs::create_dir(workshop.path().join("data")).unwrap();
        let task = database.wait_for_state(id, TaskState::Completed);
        let data = fs::canonicalize(workshop.path().join("data")).unwrap();
        assert_eq!((task.attempt, result(task).as_str()), (1, data.to_str().unwrap()));
        assert!(data.join("kept").exists());
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn files_beside_the_config_file_are_found() {
    let database = Database::new();
    let workshop = Workshop::new(
        &database,
        "[handlers.argument]\ncommand = [\"sh\", \"./job.sh\"]\n\
         [handlers.program]\ncommand = [\"bin/job\"]\n\
         [handlers.bare]\ncommand = [\"echo\", \"job.sh\"]",
    );
    fs::create_dir(workshop.path().join("bin")).unwrap();
    for file in ["job.sh", "bin/job"] {
        let path = workshop.path().join(file);
        fs::write(&path, format!("#!/bin/sh\necho it is {file}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let tasks = ["argument", "program", "bare"].map(|name| database.dispatch(&NewTask::new(name)));
    let said = run(&mut workshop.millhand(["worker", "--burst"]));
    let results = tasks.map(|id| result(database.task(id)));
    // A bare word is what it says.
    assert_eq!(results, ["it is job.sh", "it is bin/job", "job.sh"]);
    assert!(said.stderr.contains("handler `bare`: the argument `job.sh` is not taken"), "{said:?}");
    assert_clean(&database, &workshop);
}

#[test]
fn a_command_can_dispatch_if_it_may() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let script = "command = [\"sh\", \"-c\", \"millhand dispatch millhand.noop\"]\n";
        let workshop = Workshop::new(
            &database,
            &format!(
                "[handlers.may]\n{script}can_dispatch = true\nclean_environment = true\n\
                 [handlers.may_not]\n{script}"
            ),
        );
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let id = database.dispatch(&NewTask::new("may"));
        let task = database.wait_for_state(id, TaskState::Completed);
        let child = task.result.unwrap().as_i64().unwrap();
        database.wait_for_state(millhand::TaskId(child), TaskState::Completed);
        let id = database.dispatch(&NewTask::new("may_not"));
        database.wait_for_state(id, TaskState::Failed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// A program that embeds a worker and reads its settings where a `millhand.toml` lies about.
#[test]
fn an_embedded_worker_runs_no_commands_unless_it_asks_for_them() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "[handlers.stray]\ncommand = [\"true\"]");
    let config = || Config {
        database_url: Some(database.url()),
        ..Config::load(Some(&workshop.config_file())).unwrap()
    };
    let id = database.dispatch(&NewTask::new("stray"));
    // No warden either: it needs no `millhand` in the PATH.
    Worker::new(config(), Registry::new()).burst(true).run().unwrap();
    assert_eq!(database.task(id).state, TaskState::Waiting);
    let warden = vec![env!("CARGO_BIN_EXE_millhand").into(), "warden".into()];
    Worker::new(config(), Registry::new()).commands(true).warden(warden).burst(true).run().unwrap();
    assert_eq!(database.task(id).state, TaskState::Completed);
    assert_clean(&database, &workshop);
}

/// The worker of this workshop can be reached, and its gates used, by every user.
fn open_to_all(workshop: &Workshop) {
    fs::set_permissions(workshop.path(), PermissionsExt::from_mode(0o777)).unwrap();
}

const USERS: &str = r#"
[handlers.who]
command = ["sh", "-c", "id -u; id -g; id -G; echo \"$HOME $USER $LOGNAME\"; : >mine; ls; exit $(stat -c %u .)"]
user = "nobody"
[handlers.leaver]
command = ["sh", "-c", "setsid sleep 1000 & sleep 1000 & echo left"]
user = "nobody"
[handlers.other_gate]
command = ["sh", "-c", "setsid sleep 1000 & trap '' TERM INT HUP; : >\"$0/at-$1\"; while [ ! -e \"$0/gate-$1\" ]; do sleep 0.01; done", "{folder}", "{gate}"]
user = "nobody"
[handlers.other_gate_by_number]
command = ["id", "-un"]
user = 65534
"#;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("only root can run commands as other users; this test is left out");
    }
    is_root
}

#[test]
fn a_worker_that_is_root_runs_a_command_as_its_user() {
    if !is_root() {
        return;
    }
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, USERS);
        open_to_all(&workshop);
        let mut command = workshop.millhand(["worker", "--threads", "2", "--type", worker_type]);
        command.env("MILLHAND_CANCEL_GRACE_INTERVAL", "100ms");
        let worker = WorkerProcess::start(command);
        let id = database.dispatch(&NewTask::new("who"));
        // Its directory is its own, and the exit code says whose.
        let task = database.wait_for_state(id, TaskState::Failed);
        let code = 65534 % 256;
        assert!(task.error.unwrap().starts_with(&format!("exit code {code}")));
        for name in ["leaver", "other_gate_by_number"] {
            let id = database.dispatch(&NewTask::new(name));
            database.wait_for_state(id, TaskState::Completed);
        }
        let id = database.dispatch(&gate_task(&workshop, "other_gate", "a"));
        workshop.wait_at_gate(&database, "a");
        client::cancel(&mut database.connect(), id).unwrap();
        database.wait_for_state(id, TaskState::Canceled);
        // Its warden ends what runs as others, too.
        let id = database.dispatch(&gate_task(&workshop, "other_gate", "b"));
        workshop.wait_at_gate(&database, "b");
        worker.kill();
        database.wait_for_state(id, TaskState::Failed);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn the_user_has_its_own_groups_and_home() {
    if !is_root() {
        return;
    }
    let database = Database::new();
    let handlers = USERS.replace("exit $(stat -c %u .)", "stat -c %u .");
    let workshop = Workshop::new(&database, &handlers);
    open_to_all(&workshop);
    let id = database.dispatch(&NewTask::new("who"));
    run(&mut workshop.millhand(["worker", "--burst"]));
    let expected = "65534\n65534\n65534\n/nonexistent nobody nobody\nmine\n65534";
    assert_eq!(result(database.task(id)), expected);
    assert_clean(&database, &workshop);
}

#[test]
fn a_user_that_cannot_be_is_refused_at_the_start() {
    let database = Database::new();
    let handlers = "[handlers.x]\ncommand = [\"true\"]\nuser = \"no-such-user\"";
    let workshop = Workshop::new(&database, handlers);
    let said = run(&mut workshop.millhand(["worker", "--burst", "-q"]));
    let message = "millhand: handler `x`: there is no user `no-such-user` on this machine; add it, \
                   or name another\n";
    assert_eq!((said.code, said.stderr.as_str()), (Some(2), message));
    if !is_root() {
        return;
    }
    // The program may be where others cannot go.
    let program = workshop.path().join("millhand");
    fs::copy(env!("CARGO_BIN_EXE_millhand"), &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    open_to_all(&workshop);
    workshop.configure("[handlers.x]\ncommand = [\"true\"]\nuser = \"root\"");
    let mut command = std::process::Command::new(&program);
    command
        .args(["worker", "-q"])
        .arg("--config")
        .arg(workshop.config_file())
        .uid(65534)
        .gid(65534);
    let said = run(command.env("MILLHAND_DATABASE_URL", database.url()).current_dir("/"));
    let message = "millhand: handler `x`: only a worker that is root can run commands as `root`; \
                   start it as root, or as that user\n";
    assert_eq!((said.code, said.stderr.as_str()), (Some(2), message));
}

/// The worker, its warden and the command die at once, and another host settles the task:
/// nobody is told of what stays here.
#[test]
fn what_a_dead_worker_left_is_removed_by_the_next_one() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let worker = workshop.worker("postgres", &[]);
    let id = database.dispatch(&gate_task(&workshop, "gate", "a"));
    workshop.wait_at_gate(&database, "a");
    let entries = || fs::read_dir(workshop.work()).unwrap().count();
    assert_eq!(entries(), 2, "that of the task, and the one that is locked");
    let pid = Pid::from_raw(worker.pid().cast_signed()).unwrap();
    let command = workshop.processes().into_iter().filter(|line| line.contains("at-"));
    let command: Vec<Pid> = command
        .filter_map(|line| Pid::from_raw(line.split(' ').next().unwrap().parse().unwrap()))
        .collect();
    signal_all(&[vec![pid], children_of(worker.pid()), command].concat(), Signal::KILL);
    drop(worker);
    let settle = "SELECT millhand.settle_worker(id, 'elsewhere') FROM millhand.worker";
    wait_until(&database, "it is settled elsewhere", SOON, || {
        database.connect().execute(settle, &[]).unwrap();
        let state = database.task(id).state;
        if state == TaskState::Failed { Ok(()) } else { Err(state) }
    });
    assert_eq!(entries(), 2);
    let mut next = workshop.millhand(["worker"]);
    next.env("MILLHAND_TTL", "1s");
    let next = WorkerProcess::start(next);
    wait_until(&database, "only the lock of the next one is there", SOON, || {
        let entries = entries();
        if entries == 1 { Ok(()) } else { Err(entries) }
    });
    assert_eq!(
        database.task(id).error.as_deref().map(|error| error.contains("elsewhere")),
        Some(true)
    );
    next.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}
