//! The lock store of worker type `redis` empties, freezes, goes away; its workers die.
//!
//! Nothing in it is truth and nothing in it is a lease: whatever becomes of it, no
//! task fails, none runs twice, and the order holds.

/// Workers that are killed or cut off at each message, and killed at any moment.
mod crashes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millhand::server::PrivateRedis;
use millhand::{NewTask, TaskId, TaskState, client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::server::{NOTED, assert_each_ran_once, dispatch_load, wait_for_n_final};
use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task, run};
use crate::support::proxy::Proxy;
use crate::support::redis::{Redis, start_redis};
use crate::support::{SOON, wait_until};

/// Longer than three times all that a worker waits for Redis (2 s to connect, 2 s for
/// an answer), and longer than [`TTL`].
const AWAY: Duration = Duration::from_secs(7);

/// Of workers that are to show that only Postgres renews their leases.
const TTL: &str = "2s";

/// Asserts something again and again for as long as this.
fn throughout(span: Duration, mut check: impl FnMut()) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        check();
        thread::sleep(Duration::from_millis(20));
    }
}

fn start_worker(workshop: &Workshop, ttl: &str, threads: usize) -> WorkerProcess {
    let mut command = workshop.millhand(["worker", "--type", "redis"]);
    command.env("MILLHAND_TTL", ttl).args(["--threads", &threads.to_string()]);
    WorkerProcess::start(command)
}

fn n_started(database: &Database) -> usize {
    database.tasks().iter().filter(|task| task.started_at.is_some()).count()
}

#[track_caller]
fn assert_all_completed(database: &Database) {
    for task in database.tasks() {
        assert_eq!((task.state, task.attempt), (TaskState::Completed, 1), "{task:?}");
    }
}

/// Two worker processes at a load, on a Redis of their own.
struct Mill {
    server: PrivateRedis,
    database: Database,
    workshop: Workshop,
    workers: [WorkerProcess; 2],
    tasks: Vec<TaskId>,
}

impl Mill {
    fn start(ttl: &str, n_tasks: usize) -> Mill {
        let server = start_redis();
        let database = Database::new();
        let handlers = format!("{NOTED}{GATE_HANDLERS}");
        let workshop = Workshop::with_redis(&database, Redis::of(&server), &handlers);
        let workers = [start_worker(&workshop, ttl, 4), start_worker(&workshop, ttl, 4)];
        database.wait_for_workers(8);
        let tasks = dispatch_load(&database, &workshop, n_tasks);
        Mill { server, database, workshop, workers, tasks }
    }

    /// Asserts that everything was done, once and by the workers that were there from
    /// the beginning, and that they still hear.
    #[track_caller]
    fn finish(self) {
        self.database.wait_for_all_final();
        assert!(self.database.tasks().len() >= self.tasks.len());
        assert_all_completed(&self.database);
        assert_each_ran_once(&self.database, &self.workshop);
        wait_until(&self.database, "both processes listen", SOON, || {
            let n = self.workshop.redis.n_listeners();
            if n == 2 { Ok(()) } else { Err(n) }
        });
        for worker in self.workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&self.database, &self.workshop);
    }
}

#[test]
fn a_lock_store_that_is_emptied_again_and_again_under_load_breaks_nothing() {
    let mill = Mill::start("30s", 400);
    for n_final in (20..400).step_by(20) {
        wait_for_n_final(&mill.database, n_final);
        redis::cmd("FLUSHALL").exec(&mut mill.workshop.redis.connect()).unwrap();
    }
    mill.finish();
}

#[test]
fn a_lock_store_that_is_stopped_under_load_and_starts_empty_breaks_nothing() {
    let mut mill = Mill::start("30s", 300);
    for (n_final, hard) in [(30, true), (70, false), (110, true), (150, false), (190, true)] {
        wait_for_n_final(&mill.database, n_final);
        if hard {
            mill.server.kill_hard();
        } else {
            mill.server.stop_fast();
        }
        mill.server.start_again().unwrap();
    }
    mill.finish();
}

#[test]
fn connections_to_the_lock_store_cut_again_and_again_under_load_break_nothing() {
    let mill = Mill::start("30s", 400);
    for n_final in (10..400).step_by(10) {
        wait_for_n_final(&mill.database, n_final);
        mill.workshop.redis.kill_clients("normal");
        mill.workshop.redis.kill_clients("pubsub");
    }
    mill.finish();
}

#[test]
fn while_the_lock_store_is_away_what_runs_goes_on_and_ends_and_nothing_starts() {
    let mut server = start_redis();
    let database = Database::new();
    let workshop = Workshop::with_redis(&database, Redis::of(&server), GATE_HANDLERS);
    let worker = start_worker(&workshop, TTL, 4);
    let ids = database.wait_for_workers(4);
    let [early, late, canceled] = ["early", "late", "canceled"].map(|gate| {
        let id = database.dispatch(&gate_task(&workshop, "gate", gate).exclusive(gate));
        workshop.wait_at_gate(&database, gate);
        id
    });
    let other = start_worker(&workshop, TTL, 2);
    database.wait_for_workers(6);
    let noop = |resource: &str| NewTask::new("millhand.noop").exclusive(resource);
    let behind = database.dispatch(&noop("early"));
    server.kill_hard();
    let free = database.dispatch(&noop("free"));
    workshop.open_gate("early");
    database.wait_for_state(early, TaskState::Completed);
    client::cancel(&mut database.connect(), canceled).unwrap();
    database.wait_for_state(canceled, TaskState::Canceled);
    throughout(AWAY, || {
        assert_eq!(n_started(&database), 3, "{}", database.task_table());
        assert_eq!(database.task(late).state, TaskState::Running);
    });
    // Nobody needs Redis to leave, or to end a task.
    other.stop(Signal::TERM);
    workshop.open_gate("late");
    database.wait_for_state(late, TaskState::Completed);
    for id in [behind, free] {
        assert_eq!(database.task(id).state, TaskState::Waiting);
    }
    server.start_again().unwrap();
    database.wait_for_state(behind, TaskState::Completed);
    database.wait_for_state(free, TaskState::Completed);
    // Nobody had to start anew.
    assert_eq!(database.worker_ids(), ids);
    for task in database.tasks() {
        assert_eq!(task.attempt, 1, "{task:?}");
    }
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

#[test]
fn a_lock_store_frozen_for_longer_than_the_ttl_under_load_ends_no_lease() {
    let mill = Mill::start(TTL, 200);
    let ids = mill.database.worker_ids();
    let [early, late] = ["early", "late"].map(|gate| {
        let id = mill.database.dispatch(&gate_task(&mill.workshop, "gate", gate));
        mill.workshop.wait_at_gate(&mill.database, gate);
        id
    });
    wait_for_n_final(&mill.database, 40);
    let frozen = Pid::from_raw(mill.server.pid().unwrap().cast_signed()).unwrap();
    kill_process(frozen, Signal::STOP).unwrap();
    let began = Instant::now();
    mill.workshop.open_gate("early");
    mill.database.wait_for_state(early, TaskState::Completed);
    throughout(AWAY.saturating_sub(began.elapsed()), || {
        assert_eq!(mill.database.task(late).state, TaskState::Running);
    });
    kill_process(frozen, Signal::CONT).unwrap();
    wait_for_n_final(&mill.database, mill.tasks.len() as i64 + 1);
    assert_eq!(mill.database.task(late).state, TaskState::Running);
    mill.workshop.open_gate("late");
    mill.database.wait_for_state(late, TaskState::Completed);
    assert_eq!(mill.database.worker_ids(), ids);
    mill.finish();
}

/// Somebody who wakes all workers again and again for as long as this value lives.
struct Chatter {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Chatter {
    fn start(workshop: &Workshop) -> Chatter {
        let ended = Arc::new(AtomicBool::new(false));
        let (has_ended, mut waker) = (ended.clone(), workshop.redis.waker());
        let thread = thread::spawn(move || {
            while !has_ended.load(Ordering::Relaxed) {
                waker.wake().unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        Chatter { ended, thread: Some(thread) }
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Others have much to say: the listener of a worker whose questions are not answered is
/// never without a message for as long as it would take to become suspicious.
#[test]
fn a_worker_that_hears_all_the_time_notices_that_the_lock_store_is_back() {
    let server = start_redis();
    let database = Database::new();
    let workshop = Workshop::with_redis(&database, Redis::of(&server), "");
    let worker = start_worker(&workshop, TTL, 1);
    database.wait_for_workers(1);
    let chatter = Chatter::start(&workshop);
    // Every question is answered with an error, and the listener asks none.
    let registry = format!("{{{}}}:registry", workshop.redis.prefix);
    redis::cmd("SET").arg(&registry).arg("").exec(&mut workshop.redis.connect()).unwrap();
    wait_until(&database, "it takes the lock store for lost", SOON, || {
        let stderr = worker.stderr();
        if stderr.contains("nothing new is started") { Ok(()) } else { Err(stderr) }
    });
    redis::cmd("DEL").arg(&registry).exec(&mut workshop.redis.connect()).unwrap();
    let id = database.dispatch(&NewTask::new("millhand.noop"));
    database.wait_for_state(id, TaskState::Completed);
    drop(chatter);
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

/// It could not let go of the locks of its last task, and takes no more turns.
#[test]
fn a_worker_that_leaves_when_its_lock_store_is_just_back_leaves_no_lock() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let (proxy, url) = Proxy::of_redis(&workshop.redis.url);
    let mut command = workshop.millhand(["worker", "--type", "redis", "--threads", "2"]);
    command.env("MILLHAND_REDIS_URL", url);
    let worker = WorkerProcess::start(command);
    let id = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r").shared("s"));
    workshop.wait_at_gate(&database, "a");
    proxy.part();
    workshop.open_gate("a");
    database.wait_for_state(id, TaskState::Completed);
    wait_until(&database, "it takes the lock store for lost", SOON, || {
        let stderr = worker.stderr();
        if stderr.contains("nothing new is started") { Ok(()) } else { Err(stderr) }
    });
    assert_eq!(workshop.redis.registry().len(), 1);
    proxy.join();
    worker.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

/// The tests of the processes see to the rest of this: the command is dead before its
/// resource is free, and who thaws writes nothing under its old claim.
#[test]
fn the_locks_of_a_frozen_worker_pass_to_others_while_it_is_frozen() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let frozen = start_worker(&workshop, TTL, 1);
    let first = database.dispatch(&gate_task(&workshop, "gate", "never").exclusive("r"));
    workshop.wait_at_gate(&database, "never");
    let before = workshop.redis.registry();
    assert!(matches!(&before[..], [entry] if entry.contains(&format!(" {first} "))), "{before:?}");
    let old = database.wait_for_workers(1);
    let other = start_worker(&workshop, TTL, 1);
    frozen.signal(Signal::STOP);
    let task = database.wait_for_state(first, TaskState::Failed);
    assert!(task.error.as_ref().unwrap().contains("has gone missing"), "{:?}", task.error);
    let second = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r").shared("s"));
    workshop.wait_at_gate(&database, "a");
    let locks = wait_until(&database, "only the second task has locks", SOON, || {
        let registry = workshop.redis.registry();
        match &registry[..] {
            [entry] if entry.contains(&format!(" {second} ")) => Ok(workshop.redis.locks()),
            _ => Err(registry),
        }
    });
    let held: Vec<&str> = locks.keys().map(String::as_str).collect();
    assert_eq!(held, ["rr", "rs", format!("t{second}").as_str()]);
    frozen.signal(Signal::CONT);
    wait_until(&database, "it starts anew", SOON, || {
        let ids = database.worker_ids();
        if ids.len() == 2 && ids.is_disjoint(&old) { Ok(()) } else { Err(ids) }
    });
    assert_eq!(workshop.redis.locks(), locks);
    // The other one is busy: what comes is for the one that was frozen.
    let next = database.dispatch(&NewTask::new("millhand.noop"));
    database.wait_for_state(next, TaskState::Completed);
    workshop.open_gate("a");
    database.wait_for_state(second, TaskState::Completed);
    let now = database.task(first);
    assert_eq!((now.state, now.finished_at), (task.state, task.finished_at));
    frozen.stop(Signal::TERM);
    other.stop(Signal::TERM);
    assert_clean(&database, &workshop);
}

#[test]
fn workers_of_one_name_leave_each_others_locks_alone() {
    let database = Database::new();
    let workshop = Workshop::new(&database, GATE_HANDLERS);
    let start = || workshop.worker("redis", &["--name-template", "same"]);
    let first = start();
    let held = database.dispatch(&gate_task(&workshop, "gate", "a").exclusive("r").shared("s"));
    workshop.wait_at_gate(&database, "a");
    let before = workshop.redis.locks();
    let registry = workshop.redis.registry();
    let [entry] = &registry[..] else { panic!("{registry:?}") };
    let registry = || {
        let registry = workshop.redis.registry();
        assert!(registry.contains(entry), "{registry:?}");
        registry
    };
    for signal in [Signal::TERM, Signal::KILL, Signal::TERM, Signal::KILL] {
        let mut second = start();
        // The first one has one thread, which is busy: this is the second one's. When
        // it takes a task it has looked at all that is in Redis.
        let own = database.dispatch(&gate_task(&workshop, "gate", "own").exclusive("t"));
        database.wait_for_state(own, TaskState::Running);
        assert_eq!(registry().len(), 2);
        if signal == Signal::TERM {
            workshop.open_gate("own");
            database.wait_for_state(own, TaskState::Completed);
            std::fs::remove_file(workshop.path().join("gate-own")).unwrap();
        }
        second.signal(signal);
        second.wait(SOON);
        wait_until(&database, "it has left no lock and no warden", SOON, || {
            let mut left = workshop.processes();
            left.retain(|process| process.contains(" warden"));
            let registry = registry();
            if (left.len(), registry.len()) == (1, 1) { Ok(()) } else { Err((left, registry)) }
        });
        assert_eq!(workshop.redis.locks(), before);
        assert_eq!(database.task(held).state, TaskState::Running);
    }
    workshop.open_gate("a");
    database.wait_for_state(held, TaskState::Completed);
    first.stop(Signal::TERM);
    database.wait_for_all_final();
    assert_clean(&database, &workshop);
}

#[test]
fn workers_of_another_type_than_those_online_wait_for_their_end() {
    for (online, other) in [("postgres", "redis"), ("redis", "postgres")] {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let worker = workshop.worker(online, &["--name-template", "the-first"]);
        database.wait_for_workers(1);
        // One that runs what there is, and no more, does not wait for long.
        let mut burst = workshop.millhand(["worker", "--burst", "--type", other]);
        let said = run(burst.env("MILLHAND_TTL", "1s"));
        assert_eq!(said.code, Some(75), "{said:?}");
        let second = workshop.worker(other, &[]);
        wait_until(&database, "it says why it waits", SOON, || {
            let stderr = second.stderr();
            let parts = [&format!("`{online}`"), &format!("`{other}`"), "the-first"];
            if parts.iter().all(|part| stderr.contains(*part)) { Ok(()) } else { Err(stderr) }
        });
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        let task = database.wait_for_state(id, TaskState::Completed);
        assert_eq!(task.worker.as_deref(), Some("the-first"));
        worker.stop(Signal::TERM);
        let id = database.dispatch(&NewTask::new("millhand.noop"));
        let task = database.wait_for_state(id, TaskState::Completed);
        assert_ne!(task.worker.as_deref(), Some("the-first"));
        second.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}

/// The answer to its turn is longer than what fits between the two, so the turn is not
/// committed, and keeps the rows of its workers locked.
#[test]
fn a_worker_frozen_before_the_answer_to_its_turn_holds_up_nobody_else() {
    let database = Database::new();
    let workshop = Workshop::new(&database, "");
    let mut connection = database.connect();
    let frozen = start_worker(&workshop, TTL, 2);
    let old = database.wait_for_workers(2);
    connection
        .batch_execute(
            "CREATE FUNCTION millhand.pause() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$;
             CREATE TRIGGER pause BEFORE UPDATE ON millhand.task FOR EACH ROW
                 WHEN (NEW.state = 'running') EXECUTE FUNCTION millhand.pause();
             SELECT pg_advisory_lock(1)",
        )
        .unwrap();
    let long = json!({ "text": "x".repeat(1_000_000) });
    let tasks = vec![NewTask::new("millhand.noop").args(long); 2];
    client::dispatch_many(&mut connection, &tasks).unwrap();
    let mut look = database.connect();
    let mut wait_for_turn = |event: &str| {
        wait_until(&database, &format!("the turn waits for {event}"), SOON, || {
            let n: i64 = look
                .query_one(
                    "SELECT count(*) FROM pg_stat_activity
                      WHERE datname = current_database() AND wait_event = $1",
                    &[&event],
                )
                .unwrap()
                .get(0);
            if n > 0 { Ok(()) } else { Err(n) }
        });
    };
    wait_for_turn("advisory");
    frozen.signal(Signal::STOP);
    connection.batch_execute("SELECT pg_advisory_unlock(1)").unwrap();
    wait_for_turn("ClientWrite");
    let other = start_worker(&workshop, TTL, 1);
    wait_until(&database, "its workers are settled", SOON, || {
        let ids = database.worker_ids();
        if ids.len() == 1 && ids.is_disjoint(&old) { Ok(()) } else { Err(ids) }
    });
    database.wait_for_all_final();
    frozen.signal(Signal::CONT);
    database.wait_for_workers(3);
    frozen.stop(Signal::TERM);
    other.stop(Signal::TERM);
    assert_all_completed(&database);
    assert_clean(&database, &workshop);
}
