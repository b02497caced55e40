//! Through PgBouncer: what works, and what says that it cannot.

use std::process::Command;
use std::thread;

use millhand::{NewTask, TaskState, client, db};

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::pooler::Pooler;
use crate::support::process::{Said, Workshop, millhand, run, run_with_input};
use crate::support::{SOON, WORKER_TYPES};

fn through(url: &str, args: &[&str]) -> Command {
    let mut command = millhand(args);
    command.env("MILLHAND_DATABASE_URL", url);
    command
}

#[track_caller]
fn stdout_of(said: &Said) -> &str {
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{said:?}");
    said.stdout.trim()
}

#[test]
fn many_dispatch_at_once_through_few_sessions() {
    let database = Database::new();
    let pooler = Pooler::start(&database, "transaction", "");
    let url = pooler.url(&database);
    // Each of its sessions has a prepared statement of the driver's first name already.
    let mut direct: Vec<_> = (0..3).map(|_| db::connect(&url, "test").unwrap()).collect();
    for client in &mut direct {
        client.batch_execute("BEGIN; PREPARE s0 AS SELECT 1; PREPARE s1 AS SELECT 1").unwrap();
    }
    for client in &mut direct {
        client.batch_execute("COMMIT").unwrap();
    }
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for n in 0..12 {
                    let resource = format!("r{n}");
                    let args = ["dispatch", "millhand.noop", "--exclusive", &resource];
                    stdout_of(&run(&mut through(&url, &args)));
                }
            });
        }
    });
    assert_eq!(database.tasks().len(), 96);
    let workshop = Workshop::new(&database, "");
    let mut worker = workshop.worker("postgres", &["--burst", "--threads", "4"]);
    assert!(worker.wait(SOON).success(), "{}", worker.stderr());
    assert!(database.tasks().iter().all(|task| task.state == TaskState::Completed));
    assert_clean(&database, &workshop);
}

#[test]
fn every_command_but_a_worker_works_through_it() {
    let database = Database::empty();
    let pooler = Pooler::start(&database, "transaction", "");
    let url = pooler.url(&database);
    let mut other = db::connect(&url, "test").unwrap();
    let mut ask = |args: &[&str]| {
        // Somebody else had its session before, whichever it gets.
        other.batch_execute("DEALLOCATE ALL; PREPARE s0 AS SELECT 1").unwrap();
        run(&mut through(&url, args))
    };
    stdout_of(&ask(&["migrate"]));
    stdout_of(&ask(&["migrate", "--check"]));
    let id = stdout_of(&ask(&["dispatch", "t", "--shared", "a"])).to_owned();
    let mut many = through(&url, &["dispatch", "-"]);
    let lines: String =
        (0..2500).map(|n| format!("{{\"name\":\"t\",\"exclusive\":[\"r{n}\"]}}\n")).collect();
    assert_eq!(stdout_of(&run_with_input(&mut many, &lines)).lines().count(), 2500);
    let said = run_with_input(&mut many, "{\"name\":\"t\"}\n{\"name\":\"\"}\n");
    assert!(said.stderr.contains("line 2: a task needs a name"), "{said:?}");
    assert_eq!(stdout_of(&ask(&["task", "list", "--state", "waiting"])).lines().count(), 51);
    assert!(stdout_of(&ask(&["task", "show", &id])).contains("waiting"));
    assert_eq!(stdout_of(&ask(&["task", "logs", &id])), "");
    stdout_of(&ask(&["task", "cancel", &id]));
    assert_eq!(ask(&["task", "wait", &id]).code, Some(1));
    assert_eq!(database.tasks()[0].state, TaskState::Canceled);
    assert!(stdout_of(&ask(&["status"])).contains("2500"));
    assert!(stdout_of(&ask(&["workers"])).starts_with("ID"));
    // The library, in a transaction of the caller's.
    let mut transaction = other.transaction().unwrap();
    let tasks = [NewTask::new("t").exclusive("x"), NewTask::new("t").exclusive("y")];
    client::lock_places(&mut transaction, &tasks).unwrap();
    client::dispatch(&mut transaction, &tasks[0]).unwrap();
    client::dispatch_many(&mut transaction, &tasks).unwrap();
    transaction.commit().unwrap();
    assert_eq!(database.tasks().len(), 2504);
}

#[test]
fn a_worker_says_that_it_cannot_work_through_it() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    for settings in ["", "server_round_robin = 1", "default_pool_size = 1"] {
        let pooler = Pooler::start(&database, "transaction", settings);
        for worker_type in WORKER_TYPES {
            let mut worker = workshop.millhand(["worker", "--type", worker_type]);
            let said = run(worker.env("MILLHAND_DATABASE_URL", pooler.url(&database)));
            assert_eq!(said.code, Some(2), "{settings} {said:?}");
            assert!(
                said.stderr.starts_with("millhand: ")
                    && said.stderr.contains("PgBouncer in transaction mode")
                    && said.stderr.lines().count() == 1,
                "{said:?}"
            );
        }
    }
    assert_clean(&database, &workshop);
}

#[test]
fn a_worker_works_through_a_pool_of_whole_sessions() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let pooler = Pooler::start(&database, "session", "default_pool_size = 20");
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        let mut worker = workshop.millhand(["worker", "--burst", "--type", worker_type]);
        let said = run(worker.env("MILLHAND_DATABASE_URL", pooler.url(&database)));
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(database.task(id).state, TaskState::Completed);
        assert_clean(&database, &workshop);
    }
}
