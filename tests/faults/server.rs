//! Sessions that are cut, a server that is stopped under load.

use millhand::{NewTask, TaskId, TaskState, client};
use rustix::process::Signal;
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::{Database, start_server};
use crate::support::process::{GATE_HANDLERS, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES, wait_until};

fn terminate(database: &Database, condition: &str) -> i64 {
    database
        .connect()
        .query_one(
            &format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
            ),
            &[],
        )
        .unwrap()
        .get(0)
}

#[test]
fn a_worker_whose_session_is_cut_ends_its_task_and_works_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let worker = workshop.worker(worker_type, &[]);
        let id = database.dispatch(&gate_task(&workshop, "stubborn", "never").exclusive("r"));
        database.wait_for_state(id, TaskState::Running);
        let next = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
        // The session that holds the task's lock is the thread's own.
        let n = terminate(
            &database,
            "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
                        AND (classid::bigint << 32 | objid::bigint) = millhand.resource_lock('r'))",
        );
        assert_eq!(n, 1);
        let task = database.wait_for_state(id, TaskState::Failed);
        assert!(task.error.as_ref().unwrap().contains("connection"), "{:?}", task.error);
        database.wait_for_state(next, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn all_sessions_cut_at_once_again_and_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let workers = [
            workshop.worker(worker_type, &["--threads", "4"]),
            workshop.worker(worker_type, &["--threads", "4"]),
        ];
        let ids = dispatch_load(&database, 400);
        for n_final in [20, 60, 100, 140] {
            wait_for_n_final(&database, n_final);
            terminate(&database, "application_name LIKE 'millhand%'");
        }
        database.wait_for_all_final();
        assert_eq!(database.tasks().len(), ids.len());
        let after = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(after, TaskState::Completed);
        for worker in workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&database, &workshop);
    }
}

/// Short tasks on few resources.
fn dispatch_load(database: &Database, n: usize) -> Vec<TaskId> {
    let tasks: Vec<NewTask> = (0..n)
        .map(|number| {
            NewTask::new("millhand.sleep")
                .args(json!({ "seconds": 0.01 }))
                .exclusive(format!("r{}", number % 13))
                .shared(format!("s{}", number % 5))
        })
        .collect();
    client::dispatch_many(&mut database.connect(), &tasks).unwrap()
}

fn wait_for_n_final(database: &Database, n_final: i64) {
    let mut connection = database.connect();
    wait_until(database, &format!("{n_final} tasks are final"), SOON, || {
        let n: i64 = connection
            .query_one(
                "SELECT count(*) FROM millhand.task WHERE state IN ('completed', 'failed', 'canceled')",
                &[],
            )
            .unwrap()
            .get(0);
        if n >= n_final { Ok(()) } else { Err(n) }
    });
}

#[test]
fn a_server_stopped_hard_under_load_loses_no_task() {
    for worker_type in WORKER_TYPES {
        let mut server = start_server();
        let database = Database::of(&server);
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let workers = [
            workshop.worker(worker_type, &["--threads", "4"]),
            workshop.worker(worker_type, &["--threads", "4"]),
        ];
        let ids = dispatch_load(&database, 300);
        for (n_final, hard) in [(30, true), (60, false), (90, true)] {
            wait_for_n_final(&database, n_final);
            if hard {
                server.kill_hard()
            } else {
                server.stop_fast()
            }
            server.start_again().unwrap();
        }
        database.wait_for_all_final();
        assert_eq!(database.tasks().len(), ids.len());
        let after = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(after, TaskState::Completed);
        for worker in workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_claim_that_is_being_committed_when_its_worker_is_settled_is_settled_too() {
    // Its own server: commits wait for a standby that is away.
    let server = start_server();
    let database = Database::of(&server);
    let id = database.dispatch(&NewTask::new("t").exclusive("r"));
    let mut session = database.connect();
    let worker: i64 = session
        .query_one(
            "SELECT millhand.register_worker('w', 'postgres', 'p', 'h', 1, '30s', NULL, NULL)",
            &[],
        )
        .unwrap()
        .get(0);
    let mut other = database.connect();
    other.batch_execute("SET synchronous_commit = local").unwrap();
    other.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", &[]).unwrap();
    other.execute("SELECT pg_reload_conf()", &[]).unwrap();
    wait_until(&database, "commits wait for a standby", SOON, || {
        let row = session.query_one("SHOW synchronous_standby_names", &[]).unwrap();
        if row.get::<_, &str>(0) == "nobody" { Ok(()) } else { Err("not yet") }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Its connection ends, after the commit.
            let claim = session.execute(
                "SELECT millhand.next_task($1, 'w', '{t}', 0, NULL, NULL, NULL, NULL, NULL,
                                           true, false, false, false)",
                &[&worker],
            );
            assert!(claim.is_err());
        });
        wait_until(&database, "the claim is being committed", SOON, || {
            let n: i64 = other
                .query_one(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
                    &[],
                )
                .unwrap()
                .get(0);
            if n == 1 { Ok(()) } else { Err(n) }
        });
        other.execute("SELECT millhand.settle_process('p')", &[]).unwrap();
    });
    let task = database.task(id);
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(task.error.as_deref(), Some("worker w has gone missing"));
}
