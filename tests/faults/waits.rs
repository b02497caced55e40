//! What passes is waited for: servers that are not there, take nothing, or let nobody
//! in for now, workers of another type, a machine without threads or descriptors.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use millhand::server::PrivatePostgres;
use millhand::{NewTask, TaskState, db};
use postgres::Client;
use rustix::process::Signal;
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::{Database, start_server, url_of};
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task, run};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// A session on the server of this database that may write whatever the server says.
fn admin(server: &PrivatePostgres) -> Client {
    let mut admin = db::connect(&server.url(), "test").unwrap();
    admin.batch_execute("SET default_transaction_read_only = off").unwrap();
    admin
}

fn set_read_only(database: &Database, admin: &mut Client, value: &str) {
    let sql = format!("ALTER SYSTEM SET default_transaction_read_only = {value}");
    admin.execute(&sql, &[]).unwrap();
    admin.execute("SELECT pg_reload_conf()", &[]).unwrap();
    wait_until(database, "the setting is in force", SOON, || {
        let mut other = database.connect();
        let row = other.query_one("SHOW default_transaction_read_only", &[]).unwrap();
        let found: String = row.get(0);
        if found == value { Ok(()) } else { Err(found) }
    });
}

#[track_caller]
fn wait_for_line(database: &Database, worker: &WorkerProcess, part: &str) {
    wait_until(database, &format!("the worker says `{part}`"), SOON, || {
        let said = worker.stderr();
        if said.contains(part) { Ok(()) } else { Err(said) }
    });
}

/// It works now, and says what it waited for once.
#[track_caller]
fn assert_works(database: &Database, worker: WorkerProcess, part: &str) {
    let id = database.dispatch(&NewTask::new("millhand.noop"));
    database.wait_for_state(id, TaskState::Completed);
    let said = worker.stderr();
    let n_lines = said.lines().filter(|line| line.contains(part)).count();
    assert_eq!(n_lines, 1, "{said}");
    worker.stop(Signal::TERM);
}

#[test]
fn a_server_that_is_read_only_for_a_while_costs_no_result() {
    let server = start_server();
    let mut admin = admin(&server);
    for worker_type in WORKER_TYPES {
        let database = Database::of(&server);
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let running = database.dispatch(&gate_task(&workshop, "gate", "a"));
        workshop.wait_at_gate(&database, "a");
        set_read_only(&database, &mut admin, "on");
        for args in [&["dispatch", "millhand.noop"][..], &["task", "cancel", "1"], &["migrate"]] {
            let said = run(&mut workshop.millhand(args));
            assert!(matches!(said.code, Some(75 | 1)), "{said:?}");
            assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        }
        workshop.open_gate("a");
        wait_for_line(&database, &worker, "read-only transaction");
        assert_eq!(database.task(running).state, TaskState::Running);
        set_read_only(&database, &mut admin, "off");
        assert_eq!(database.wait_for_state(running, TaskState::Completed).attempt, 1);
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(id, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
        admin.batch_execute("TRUNCATE millhand.task").unwrap();
    }
}

/// As a standby before its promotion, and a primary that was demoted.
#[test]
fn a_server_in_recovery_is_waited_for_until_it_is_promoted() {
    for worker_type in WORKER_TYPES {
        let mut server = start_server();
        let database = Database::of(&server);
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let running = workshop.worker(worker_type, &["--threads", "2"]);
        let first = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(first, TaskState::Completed);
        server.stop_fast();
        std::fs::write(server.directory().join("data/standby.signal"), "").unwrap();
        server.start_again().unwrap();
        wait_for_line(&database, &running, "read-only transaction");
        let starting = workshop.worker(worker_type, &[]);
        wait_for_line(&database, &starting, "read-only transaction");
        let said = run(&mut workshop.millhand(["dispatch", "millhand.noop"]));
        assert_eq!((said.code, said.stderr.lines().count()), (Some(75), 1), "{said:?}");
        database.connect().execute("SELECT pg_promote()", &[]).unwrap();
        let ids: Vec<_> = (0..20)
            .map(|_| {
                database.dispatch(&NewTask::new("millhand.sleep").args(json!({"seconds": 0.05})))
            })
            .collect();
        for id in ids {
            database.wait_for_state(id, TaskState::Completed);
        }
        wait_until(&database, "all three work", SOON, || {
            let workers = database.worker_ids();
            if workers.len() == 3 { Ok(()) } else { Err((workers, starting.stderr())) }
        });
        running.stop(Signal::TERM);
        starting.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_worker_starts_when_the_server_does() {
    let mut server = start_server();
    let database = Database::of(&server);
    let workshop = Workshop::new(&database, "");
    for worker_type in WORKER_TYPES {
        server.stop_fast();
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        wait_for_line_of(&worker, "could not connect to Postgres");
        // One that is told to stop need not wait.
        workshop_stop(&workshop, worker_type);
        server.start_again().unwrap();
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(id, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// Without a database to look at.
#[track_caller]
fn wait_for_line_of(worker: &WorkerProcess, part: &str) {
    let seen = crate::support::look_until(SOON, || {
        let said = worker.stderr();
        if said.contains(part) { Ok(()) } else { Err(said) }
    });
    seen.unwrap_or_else(|said| panic!("the worker did not say `{part}`:\n{said}"));
}

fn workshop_stop(workshop: &Workshop, worker_type: &str) {
    let worker = workshop.worker(worker_type, &[]);
    wait_for_line_of(&worker, "trying again");
    worker.stop(Signal::TERM);
}

#[test]
fn a_worker_starts_when_its_database_and_its_role_are_there_and_let_it_in() {
    let server = start_server();
    let template = Database::of(&server);
    let mut admin = db::connect(&url_of(&server.url(), "postgres"), "test").unwrap();
    for worker_type in WORKER_TYPES {
        let workshop = Workshop::new(&template, "");
        let url = url_of(&server.url(), "later").replace("//postgres@", "//newcomer@");
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_DATABASE_URL", &url);
        let worker = WorkerProcess::start(command);
        wait_for_line(&template, &worker, "role \"newcomer\" does not exist");
        let said = run(workshop.millhand(["status"]).env("MILLHAND_DATABASE_URL", &url));
        assert_eq!(said.code, Some(75), "{said:?}");
        admin.batch_execute("CREATE ROLE newcomer LOGIN").unwrap();
        wait_for_line(&template, &worker, "database \"later\" does not exist");
        admin.batch_execute("ALTER ROLE newcomer CONNECTION LIMIT 0").unwrap();
        wait_until(&template, "nobody is in the template", SOON, || {
            admin.batch_execute("CREATE DATABASE later TEMPLATE millhand OWNER newcomer")
        });
        wait_for_line(&template, &worker, "too many connections for role");
        let mut later = db::connect(&url_of(&server.url(), "later"), "test").unwrap();
        later
            .batch_execute(
                "GRANT ALL ON SCHEMA millhand TO newcomer;
                 GRANT ALL ON ALL TABLES IN SCHEMA millhand TO newcomer;
                 GRANT ALL ON ALL SEQUENCES IN SCHEMA millhand TO newcomer",
            )
            .unwrap();
        admin.batch_execute("ALTER ROLE newcomer CONNECTION LIMIT -1").unwrap();
        let id = millhand::dispatch(&mut later, &NewTask::new("millhand.noop")).unwrap();
        wait_until(&template, "the task is completed", SOON, || {
            let task = millhand::client::get_task(&mut later, id).unwrap();
            if task.state == TaskState::Completed { Ok(()) } else { Err(worker.stderr()) }
        });
        worker.stop(Signal::TERM);
        drop(later);
        admin.batch_execute("DROP DATABASE later WITH (FORCE)").unwrap();
        admin.batch_execute("DROP ROLE newcomer").unwrap();
    }
}

#[test]
fn workers_of_another_type_take_over_when_the_last_has_gone() {
    for (older, newer) in [("postgres", "redis"), ("redis", "pulpcore"), ("pulpcore", "postgres")] {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let first = workshop.worker(older, &["--name-template", "the-first"]);
        database.wait_for_workers(1);
        let second = workshop.worker(newer, &["--name-template", "the-second"]);
        let line = format!(
            "a worker of type `{newer}` cannot start while worker the-first of type `{older}` is online"
        );
        wait_for_line(&database, &second, &line);
        first.stop(Signal::TERM);
        assert_works(&database, second, &line);
        assert_clean(&database, &workshop);
    }
}

/// Ends with a code of its own, whatever is missing.
#[test]
fn without_descriptors_or_memory_a_worker_ends_as_one_that_may_be_started_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        for limit in ["n 4", "n 7", "n 10", "n 14", "n 18", "n 22", "n 26", "n 30", "n 40"] {
            let burst = workshop.millhand(["worker", "--burst", "--threads", "2"]);
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("ulimit -{limit}; exec \"$0\" \"$@\""));
            command.arg(burst.get_program()).args(burst.get_args());
            command.args(["--type", worker_type]);
            for (name, value) in burst.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            let mut worker = WorkerProcess::start(command);
            // It ends by itself, or waits until there is more.
            wait_until(&database, "it ends or waits", SOON, || {
                let said = worker.stderr();
                let ended = worker.has_ended();
                if ended || said.contains("trying again") { Ok(()) } else { Err(said) }
            });
            worker.signal(Signal::TERM);
            let status = worker.wait(SOON);
            assert!(
                matches!(status.code(), Some(0 | 75 | 127)),
                "{limit}: {status} {:?}\n{}",
                status.signal(),
                worker.stderr()
            );
        }
        wait_until(&database, "nothing is left", SOON, || {
            let workers = database.worker_ids();
            if workers.is_empty() { Ok(()) } else { Err(workers) }
        });
        assert_clean(&database, &workshop);
    }
}
