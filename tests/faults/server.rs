//! Sessions that are cut, a server that is stopped under load.

use std::collections::BTreeSet;

use millhand::{NewTask, TaskId, TaskState, client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::{Database, start_server};
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task};
use crate::support::redis::{Redis, start_redis};
use crate::support::session::{Session, Turn};
use crate::support::{SOON, WORKER_TYPES, wait_until};

const HOUSEKEEPER: &str = "millhand housekeeper";

/// Waits until a session of this purpose is there that was not among `before`.
fn wait_for_another(database: &Database, purpose: &str, before: &[i32]) {
    wait_until(database, &format!("another session, {purpose}"), SOON, || {
        let now = sessions(database, purpose);
        if now.iter().any(|pid| !before.contains(pid)) { Ok(()) } else { Err(now) }
    });
}

fn sessions(database: &Database, purpose: &str) -> Vec<i32> {
    database
        .connect()
        .query(
            "SELECT pid FROM pg_stat_activity
              WHERE datname = current_database() AND application_name = $1",
            &[&purpose],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[test]
fn a_listener_that_is_cut_off_listens_again() {
    const LISTENER: &str = "millhand listener";
    let redis = start_redis();
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::with_redis(&database, Redis::of(&redis), GATE_HANDLERS);
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let running = database.dispatch(&gate_task(&workshop, "gate", "never"));
        database.wait_for_state(running, TaskState::Running);
        let before = sessions(&database, LISTENER);
        if worker_type == "redis" {
            assert_eq!(workshop.redis.n_listeners(), 1);
            workshop.redis.kill_clients("pubsub");
        } else {
            assert_eq!(database.terminate(&format!("application_name = '{LISTENER}'")), 1);
        }
        // Dispatched while nobody listens: found all the same.
        let next = database.dispatch(&NewTask::new("millhand.noop"));
        if worker_type == "redis" {
            wait_until(&database, "it listens again", SOON, || {
                let n = workshop.redis.n_listeners();
                if n == 1 { Ok(()) } else { Err((n, worker.stderr())) }
            });
        } else {
            wait_for_another(&database, LISTENER, &before);
        }
        database.wait_for_state(next, TaskState::Completed);
        let next = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(next, TaskState::Completed);
        client::cancel(&mut database.connect(), running).unwrap();
        let task = database.wait_for_state(running, TaskState::Canceled);
        assert_eq!((task.attempt, task.error), (1, None));
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_housekeeper_that_is_cut_off_keeps_house_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_TTL", "2s");
        let worker = WorkerProcess::start(command);
        let running = database.dispatch(&gate_task(&workshop, "gate", "a"));
        database.wait_for_state(running, TaskState::Running);
        let before = sessions(&database, HOUSEKEEPER);
        assert_eq!(database.terminate(&format!("application_name = '{HOUSEKEEPER}'")), 1);
        wait_for_another(&database, HOUSEKEEPER, &before);
        // It renews the row of the worker, which has lost nothing.
        let renewed = |connection: &mut postgres::Client| -> i64 {
            connection
                .query_one(
                    "SELECT count(*) FROM millhand.worker
                      WHERE last_heartbeat > started_at + 2 * ttl",
                    &[],
                )
                .unwrap()
                .get(0)
        };
        let mut connection = database.connect();
        wait_until(&database, "its row lives longer than its ttl", SOON, || {
            if renewed(&mut connection) == 1 { Ok(()) } else { Err(worker.stderr()) }
        });
        workshop.open_gate("a");
        let task = database.wait_for_state(running, TaskState::Completed);
        assert_eq!(task.attempt, 1);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// Ids, and whether the row is older than its ttl.
fn workers(connection: &mut postgres::Client) -> Vec<(i64, bool)> {
    connection
        .query("SELECT id, clock_timestamp() > started_at + ttl FROM millhand.worker", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

#[test]
fn a_worker_whose_row_cannot_be_renewed_takes_nothing() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_TTL", "1s");
        let worker = WorkerProcess::start(command);
        let running = database.dispatch(&gate_task(&workshop, "gate", "never"));
        workshop.wait_at_gate(&database, "never");
        let mut connection = database.connect();
        let before = workers(&mut connection)[0].0;
        // Heartbeats fail, and nothing else does.
        connection
            .batch_execute(
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full';
                 END $$;
                 CREATE TRIGGER full_disk BEFORE UPDATE ON millhand.worker FOR EACH ROW
                     EXECUTE FUNCTION fail()",
            )
            .unwrap();
        let next = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(running, TaskState::Failed);
        // Its thread starts anew, and waits for longer than a ttl.
        wait_until(&database, "a row that nobody renews", SOON, || {
            let now = workers(&mut connection);
            if matches!(now[..], [(id, true)] if id != before) {
                Ok(())
            } else {
                Err((now, worker.stderr()))
            }
        });
        assert_eq!(database.task(next).state, TaskState::Waiting);
        connection.batch_execute("DROP TRIGGER full_disk ON millhand.worker").unwrap();
        database.wait_for_state(next, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_turn_that_failed_keeps_no_lock() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let mut connection = database.connect();
        // The server's disk is full, as far as the start of this task goes.
        connection
            .batch_execute(
                "CREATE SEQUENCE failures;
                 CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
                 BEGIN
                     PERFORM nextval('public.failures');
                     RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full';
                 END $$;
                 CREATE TRIGGER full_disk BEFORE UPDATE ON millhand.task FOR EACH ROW
                     WHEN (NEW.state = 'running') EXECUTE FUNCTION fail()",
            )
            .unwrap();
        let worker = workshop.worker(worker_type, &["--threads", "2"]);
        let id = database.dispatch(&NewTask::new("millhand.noop").exclusive("r").shared("s"));
        wait_until(&database, "several starts have failed", SOON, || {
            let n: i64 =
                connection.query_one("SELECT last_value FROM failures", &[]).unwrap().get(0);
            if n > 4 { Ok(()) } else { Err(n) }
        });
        connection.batch_execute("DROP TRIGGER full_disk ON millhand.task").unwrap();
        database.wait_for_state(id, TaskState::Completed);
        let other = workshop.worker(worker_type, &[]);
        wait_until(&database, "the locks are free, and the workers still here", SOON, || {
            let row = connection
                .query_one(
                    "SELECT (SELECT count(*) FROM pg_locks
                              WHERE locktype = 'advisory' AND objsubid = 1
                                AND (classid::bigint << 32 | objid::bigint) IN
                                    (millhand.resource_lock('r'), millhand.resource_lock('s'))),
                            (SELECT count(*) FROM millhand.worker)",
                    &[],
                )
                .unwrap();
            let found: (i64, i64) = (row.get(0), row.get(1));
            if found == (0, 3) { Ok(()) } else { Err((found, worker.stderr())) }
        });
        worker.stop(Signal::TERM);
        other.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn all_sessions_cut_at_once_again_and_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, NOTED);
        let workers = [
            workshop.worker(worker_type, &["--threads", "4"]),
            workshop.worker(worker_type, &["--threads", "4"]),
        ];
        let ids = dispatch_load(&database, &workshop, 400);
        for n_final in [20, 60, 100, 140] {
            wait_for_n_final(&database, n_final);
            database.terminate("application_name LIKE 'millhand%'");
        }
        database.wait_for_all_final();
        assert_eq!(database.tasks().len(), ids.len());
        assert_each_ran_once(&database, &workshop);
        let after = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(after, TaskState::Completed);
        for worker in workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&database, &workshop);
    }
}

/// Notes each start of a task.
pub(super) const NOTED: &str = r#"
[handlers.noted]
command = ["sh", "-c", "echo $MILLHAND_TASK_ID >>\"$0/starts\"; sleep 0.02", "{folder}"]
"#;

/// Short tasks on few resources, every fourth of them a command.
pub(super) fn dispatch_load(database: &Database, workshop: &Workshop, n: usize) -> Vec<TaskId> {
    let folder = workshop.path().display().to_string();
    let tasks: Vec<NewTask> = (0..n)
        .map(|number| {
            let task = match number % 4 {
                0 => NewTask::new("noted").args(json!({ "folder": folder })),
                _ => NewTask::new("millhand.sleep").args(json!({ "seconds": 0.01 })),
            };
            task.exclusive(format!("r{}", number % 13)).shared(format!("s{}", number % 5))
        })
        .collect();
    client::dispatch_many(&mut database.connect(), &tasks).unwrap()
}

/// No command ran twice, and those that are said to have ended in good order
/// did run.
#[track_caller]
pub(super) fn assert_each_ran_once(database: &Database, workshop: &Workshop) {
    let starts = std::fs::read_to_string(workshop.path().join("starts")).unwrap();
    let mut started: Vec<&str> = starts.lines().collect();
    let n_starts = started.len();
    started.sort_unstable();
    started.dedup();
    assert_eq!(started.len(), n_starts, "some command ran twice: {starts}");
    for task in database.tasks() {
        if task.name == "noted" && task.state == TaskState::Completed {
            assert!(started.contains(&task.id.to_string().as_str()), "{task:?}");
        }
    }
}

pub(super) fn wait_for_n_final(database: &Database, n_final: i64) {
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
        let workshop = Workshop::new(&database, NOTED);
        let workers = [
            workshop.worker(worker_type, &["--threads", "4"]),
            workshop.worker(worker_type, &["--threads", "4"]),
        ];
        let ids = dispatch_load(&database, &workshop, 300);
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
        assert_each_ran_once(&database, &workshop);
        let after = database.dispatch(&NewTask::new("millhand.noop"));
        database.wait_for_state(after, TaskState::Completed);
        for worker in workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&database, &workshop);
    }
}

/// Stops the server's process behind the housekeeper's session, which holds
/// nothing then, and returns its pid.
fn freeze_idle_housekeeper(database: &Database) -> Pid {
    let mut connection = database.connect();
    let mut state = |pid: i32| -> String {
        let query = "SELECT state FROM pg_stat_activity WHERE pid = $1";
        connection.query_one(query, &[&pid]).unwrap().get(0)
    };
    let pid = sessions(database, HOUSEKEEPER)[0];
    let session = Pid::from_raw(pid).unwrap();
    wait_until(database, "an idle housekeeper is frozen", SOON, || {
        if state(pid) == "idle" {
            kill_process(session, Signal::STOP).unwrap();
            if state(pid) == "idle" {
                return Ok(session);
            }
            kill_process(session, Signal::CONT).unwrap();
        }
        Err("busy")
    })
}

/// Stands in for a server that was restored from a backup, where older tasks
/// wait again: one appears below all that the worker knows to be finished.
#[test]
fn a_worker_that_comes_back_looks_from_the_beginning() {
    for worker_type in WORKER_TYPES {
        // Its own server: one of its sessions stands still for a while.
        let server = start_server();
        let database = Database::of(&server);
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let worker = workshop.worker(worker_type, &[]);
        let mut connection = database.connect();
        for _ in 0..3 {
            database.dispatch(&NewTask::new("millhand.noop"));
        }
        let gate = database.dispatch(&gate_task(&workshop, "gate", "a"));
        workshop.wait_at_gate(&database, "a");
        // Two polls after the last draw of a position, all below is finished.
        let mut polls = BTreeSet::new();
        wait_until(&database, "some polls", SOON, || {
            let query =
                "SELECT query_start::text FROM pg_stat_activity WHERE application_name = $1";
            polls.insert(connection.query_one(query, &[&HOUSEKEEPER]).unwrap().get::<_, String>(0));
            if polls.len() > 4 { Ok(()) } else { Err(polls.len()) }
        });
        let session = freeze_idle_housekeeper(&database);
        let before = workers(&mut connection)[0].0;
        let later = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
        connection
            .execute(
                "INSERT INTO millhand.task (name, position, exclusive)
                 VALUES ('millhand.noop', 0, '{r}')",
                &[],
            )
            .unwrap();
        assert_eq!(database.terminate("application_name LIKE 'millhand worker%'"), 1);
        workshop.open_gate("a");
        if worker_type != "redis" {
            wait_until(&database, "its thread has come back", SOON, || {
                let now = workers(&mut connection);
                if matches!(now[..], [(id, _)] if id != before) { Ok(()) } else { Err(now) }
            });
        }
        assert_eq!(database.terminate(&format!("application_name = '{HOUSEKEEPER}'")), 1);
        kill_process(session, Signal::CONT).unwrap();
        database.wait_for_state(later, TaskState::Completed);
        // A claim that is in the lost session is lost.
        let expected =
            if worker_type == "redis" { TaskState::Completed } else { TaskState::Failed };
        assert_eq!(database.task(gate).state, expected);
        worker.stop(Signal::TERM);
        // The oracle knows the order.
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_claim_that_is_being_committed_when_its_worker_is_settled_is_settled_too() {
    // Its own server: commits wait for a standby that is away.
    let server = start_server();
    let database = Database::of(&server);
    let id = database.dispatch(&NewTask::new("t").exclusive("r"));
    let mut session = Session::new(&database, "w");
    let mut other = database.connect();
    other.batch_execute("SET synchronous_commit = local").unwrap();
    other.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", &[]).unwrap();
    other.execute("SELECT pg_reload_conf()", &[]).unwrap();
    wait_until(&database, "commits wait for a standby", SOON, || {
        let shown = session.connection.query_one("SHOW synchronous_standby_names", &[]);
        let row = shown.unwrap();
        if row.get::<_, &str>(0) == "nobody" { Ok(()) } else { Err("not yet") }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Its connection ends, after the commit.
            let claim = session.turn(&Turn::default());
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
        // As a warden does, which tries again as long as something is in the way.
        wait_until(&database, "the worker is settled", SOON, || {
            let settle = "SELECT millhand.settle_worker(id, 'worker w has gone missing')
                            FROM millhand.worker";
            match other.query_one(settle, &[]).unwrap().get::<_, Option<i32>>(0) {
                Some(n) => Ok(n),
                None => Err("held up"),
            }
        });
    });
    let task = database.task(id);
    assert_eq!(task.state, TaskState::Failed);
    assert_eq!(task.error.as_deref(), Some("worker w has gone missing"));
}
