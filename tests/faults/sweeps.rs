//! Who is settled by others, who is not, and what a process does that learns that the table
//! and it do not agree.

use millhand::{NewTask, TaskId, TaskState};
use postgres::Client;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::clean::assert_clean;
use crate::support::database::{Database, start_server};
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// A worker process whose worker has this name.
fn worker(workshop: &Workshop, worker_type: &str, name: &str, ttl: &str) -> WorkerProcess {
    let mut command = workshop.millhand(["worker", "--type", worker_type, "--name-template", name]);
    command.env("MILLHAND_TTL", ttl);
    WorkerProcess::start(command)
}

/// A task that runs for ever, on the worker of this name.
fn run_on(database: &Database, workshop: &Workshop, name: &str) -> TaskId {
    let id = database.dispatch(&gate_task(workshop, "gate", name).exclusive(name));
    workshop.wait_at_gate(database, name);
    assert_eq!(database.task(id).worker.as_deref(), Some(name));
    id
}

/// Kills a worker process and, before that, what would settle it.
fn kill_with_warden(worker: WorkerProcess) {
    let parent = worker.pid().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let is_child = stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(parent.as_str()));
        if is_child && command.contains("warden") {
            // Frozen first, so that no successor comes.
            worker.signal(Signal::STOP);
            let pid: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        }
    }
    worker.kill();
}

fn session_of(connection: &mut Client, name: &str) -> Pid {
    let purpose = format!("millhand worker {name}");
    let query = "SELECT pid FROM pg_stat_activity WHERE application_name = $1";
    Pid::from_raw(connection.query_one(query, &[&purpose]).unwrap().get(0)).unwrap()
}

#[test]
fn a_worker_whose_session_cannot_be_ended_holds_up_nobody_else() {
    for worker_type in WORKER_TYPES.into_iter().filter(|name| *name != "redis") {
        // Its own server: one of its sessions stands still for a while.
        let server = start_server();
        let database = Database::of(&server);
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        // First by its id, so that it comes first where the order is that.
        let stuck = worker(&workshop, worker_type, "stuck", "2s");
        let of_stuck = run_on(&database, &workshop, "stuck");
        let dead = worker(&workshop, worker_type, "dead", "2s");
        let of_dead = run_on(&database, &workshop, "dead");
        let sweeper = worker(&workshop, worker_type, "sweeper", "2s");
        database.wait_for_workers(3);
        let session = session_of(&mut database.connect(), "stuck");
        kill_process(session, Signal::STOP).unwrap();
        kill_with_warden(stuck);
        kill_with_warden(dead);
        let task = database.wait_for_state(of_dead, TaskState::Failed);
        assert_eq!(task.error.as_deref(), Some("worker dead has gone missing"));
        wait_until(&database, "the stuck one is named", SOON, || {
            let stderr = sweeper.stderr();
            if stderr.contains("cannot be settled") { Ok(()) } else { Err(stderr) }
        });
        assert_eq!(database.task(of_stuck).state, TaskState::Running);
        kill_process(session, Signal::CONT).unwrap();
        database.wait_for_state(of_stuck, TaskState::Failed);
        // On a busy machine the other one may have taken a second attempt.
        assert_eq!(sweeper.stderr().matches("its session cannot be ended").count(), 1);
        sweeper.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_worker_whose_session_is_another_roles_holds_up_nobody_else() {
    let server = start_server();
    let database = Database::of(&server);
    database
        .connect()
        .batch_execute(
            "CREATE ROLE fleet; CREATE ROLE a LOGIN IN ROLE fleet; CREATE ROLE b LOGIN IN ROLE fleet;
             GRANT USAGE ON SCHEMA millhand TO fleet;
             GRANT ALL ON ALL TABLES IN SCHEMA millhand TO fleet;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA millhand TO fleet",
        )
        .unwrap();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let start = |role: &str, name: &str| {
        let mut command =
            workshop.millhand(["worker", "--type", "postgres", "--name-template", name]);
        let url = database.url().replace("//postgres@", &format!("//{role}@"));
        assert!(url.contains(role), "{url}");
        command.env("MILLHAND_TTL", "2s").env("MILLHAND_DATABASE_URL", url);
        WorkerProcess::start(command)
    };
    let foreign = start("a", "foreign");
    let of_foreign = run_on(&database, &workshop, "foreign");
    let dead = start("b", "dead");
    let of_dead = run_on(&database, &workshop, "dead");
    let sweeper = start("b", "sweeper");
    database.wait_for_workers(3);
    foreign.signal(Signal::STOP);
    kill_with_warden(dead);
    database.wait_for_state(of_dead, TaskState::Failed);
    wait_until(&database, "the foreign one is named", SOON, || {
        let stderr = sweeper.stderr();
        if stderr.contains("pg_signal_backend") { Ok(()) } else { Err(stderr) }
    });
    assert_eq!(database.task(of_foreign).state, TaskState::Running);
    foreign.kill();
    database.wait_for_state(of_foreign, TaskState::Failed);
    sweeper.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

#[test]
fn a_worker_learns_at_its_next_poll_that_its_row_is_gone() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        // Its next heartbeat is 20 minutes away.
        let worker = worker(&workshop, worker_type, "w", "1h");
        let id = run_on(&database, &workshop, "w");
        let old = database.wait_for_workers(1);
        database.connect().execute("DELETE FROM millhand.worker", &[]).unwrap();
        database.wait_for_state(id, TaskState::Failed);
        wait_until(&database, "it works under another id", SOON, || {
            let ids = database.worker_ids();
            if ids.len() == 1 && ids != old { Ok(()) } else { Err((ids, worker.stderr())) }
        });
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// As after a failover to a server that has lost the commit that ended it.
#[test]
fn a_task_whose_end_was_lost_fails_and_is_not_run_again() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let worker = worker(&workshop, worker_type, "w", "6s");
        let id = run_on(&database, &workshop, "w");
        let owner = *database.wait_for_workers(1).first().unwrap();
        workshop.open_gate("w");
        database.wait_for_state(id, TaskState::Completed);
        let lose = "UPDATE millhand.task SET state = 'running', owner = $1, finished_at = NULL";
        database.connect().execute(lose, &[&owner]).unwrap();
        let task = database.wait_for_state(id, TaskState::Failed);
        assert_eq!(task.attempt, 1);
        let next = database.dispatch(&NewTask::new("millhand.noop").exclusive("w"));
        database.wait_for_state(next, TaskState::Completed);
        // Also if that is seen only as it leaves.
        let owner = *database.worker_ids().first().unwrap();
        worker.signal(Signal::STOP);
        let lose = "UPDATE millhand.task SET state = 'running', owner = $1, finished_at = NULL
                     WHERE id = $2";
        database.connect().execute(lose, &[&owner, &next.0]).unwrap();
        worker.signal(Signal::TERM);
        worker.signal(Signal::CONT);
        let task = database.wait_for_state(next, TaskState::Failed);
        assert_eq!(task.attempt, 1);
        let mut worker = worker;
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        assert_clean(&database, &workshop);
    }
}

/// The same for the commit that started it: it has begun, so it is not run again.
#[test]
fn a_task_whose_start_was_lost_is_ended_here_and_fails() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let worker = worker(&workshop, worker_type, "w", "6s");
        let id = run_on(&database, &workshop, "w");
        let fence = database.task(id).fence;
        let lose = "UPDATE millhand.task SET state = 'waiting', owner = NULL, attempt = 0,
                           started_at = NULL, fence = NULL, worker = NULL";
        database.connect().execute(lose, &[]).unwrap();
        let task = database.wait_for_state(id, TaskState::Failed);
        assert_eq!((task.attempt, task.fence), (1, fence));
        let next = database.dispatch(&NewTask::new("millhand.noop").exclusive("w"));
        database.wait_for_state(next, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn tasks_of_an_owner_without_a_row_fail_after_a_ttl() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let id = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
        let next = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
        database
            .connect()
            .execute(
                "UPDATE millhand.task SET state = 'running', owner = 1, worker = 'gone', attempt = 1,
                        fence = nextval('millhand.task_fence'), started_at = clock_timestamp()
                  WHERE id = $1",
                &[&id.0],
            )
            .unwrap();
        let worker = worker(&workshop, worker_type, "w", "2s");
        let task = database.wait_for_state(id, TaskState::Failed);
        assert_eq!(task.error.as_deref(), Some("worker gone has gone missing"));
        database.wait_for_state(next, TaskState::Completed);
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn fencing_tokens_are_lifted_where_the_server_is_on_another_timeline() {
    let database = Database::new();
    let mut connection = database.connect();
    let mut draw = || -> i64 {
        connection.batch_execute("SELECT millhand.begin_session()").unwrap();
        connection.query_one("SELECT nextval('millhand.task_fence')", &[]).unwrap().get(0)
    };
    let first = draw();
    assert_eq!(draw(), first + 1);
    // As on a standby that was promoted.
    database.connect().execute("UPDATE millhand.server SET timeline = timeline + 1", &[]).unwrap();
    let lifted = draw();
    assert!(lifted > first + (1 << 32), "{first}, then {lifted}");
    assert_eq!(draw(), lifted + 1);
}
