//! Workers of type `redis` that are killed or cut off: at any message to a server, and
//! again and again at any moment.

use std::cell::RefCell;
use std::thread;
use std::time::Duration;

use millhand::{NewTask, Task, TaskId, TaskState, Waker, client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::server::{NOTED, assert_each_ran_once, dispatch_load};
use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task};
use crate::support::proxy::{Moment, Proxy};
use crate::support::redis::{Redis, start_redis};
use crate::support::{SOON, random, wait_until};

/// More than that many workers' threads cannot have had a task each.
const N_THREADS: usize = 2;

/// A mill whose workers come and go, with a proxy on each way to a server.
struct Street {
    database: Database,
    workshop: Workshop,
    waker: RefCell<Waker>,
    redis: (Proxy, String),
    postgres: (Proxy, String),
}

impl Street {
    fn new() -> Street {
        let database = Database::new();
        let workshop = Workshop::new(&database, &format!("{NOTED}{GATE_HANDLERS}"));
        Street {
            waker: RefCell::new(workshop.redis.waker()),
            redis: Proxy::of_redis(&workshop.redis.url),
            postgres: Proxy::of_postgres(&database.url()),
            database,
            workshop,
        }
    }

    /// A worker behind the proxies.
    fn start_victim(&self, flags: &[&str]) -> WorkerProcess {
        let mut command = self.workshop.millhand(["worker", "--type", "redis"]);
        command
            .args(["--threads", &N_THREADS.to_string()])
            .args(flags)
            .env("MILLHAND_REDIS_URL", &self.redis.1)
            .env("MILLHAND_DATABASE_URL", &self.postgres.1)
            // Polls are messages, too: fewer of them, and the rest counts.
            .env("MILLHAND_POLL_INTERVAL", "1s");
        let worker = WorkerProcess::start(command);
        self.database.wait_for_workers(N_THREADS);
        wait_until(&self.database, "it listens", SOON, || {
            let n = self.workshop.redis.n_listeners();
            if n == 1 { Ok(()) } else { Err((n, worker.stderr())) }
        });
        worker
    }

    /// A command that goes on until it is canceled, one that ends by itself, and what
    /// waits behind each of them. The first one is the one to be canceled.
    fn dispatch(&self, gate: &str) -> Vec<TaskId> {
        let folder = self.workshop.path().display().to_string();
        let noop = || NewTask::new("millhand.noop");
        let tasks = [
            gate_task(&self.workshop, "gate", gate).exclusive("a").shared("s"),
            noop().exclusive("a").shared("s"),
            NewTask::new("noted").args(json!({ "folder": folder })).exclusive("b").shared("s"),
            noop().exclusive("b"),
            noop().exclusive("s"),
        ];
        let ids = client::dispatch_many(&mut self.database.connect(), &tasks).unwrap();
        self.waker.borrow_mut().wake().unwrap();
        ids
    }

    fn cancel(&self, id: TaskId) {
        client::cancel(&mut self.database.connect(), id).unwrap();
        self.waker.borrow_mut().cancel(id).unwrap();
    }

    fn tasks(&self, ids: &[TaskId]) -> Vec<Task> {
        ids.iter().map(|id| self.database.task(*id)).collect()
    }

    fn n_unfinished(&self, ids: &[TaskId]) -> usize {
        self.tasks(ids).iter().filter(|task| !task.state.is_final()).count()
    }

    /// Waits until these tasks are done, or `is_over`. The first one is canceled when its
    /// command has begun.
    #[track_caller]
    fn see_through(&self, ids: &[TaskId], gate: &str, is_over: impl Fn() -> bool) {
        let mut is_canceled = false;
        let note = self.workshop.path().join(format!("at-{gate}"));
        wait_until(&self.database, "they are done", SOON, || {
            if is_over() {
                return Ok(());
            }
            if !is_canceled && note.exists() {
                self.cancel(ids[0]);
                is_canceled = true;
            }
            match self.n_unfinished(ids) {
                0 => Ok(()),
                n => Err(n),
            }
        });
    }

    /// Has a worker do some tasks and kills it at its message number `n` from when they
    /// are there; whether it sends that many.
    fn kill_at(&self, proxy: &Proxy, n: usize, moment: Moment) -> bool {
        let mut victim = self.start_victim(&[]);
        let pid = Pid::from_raw(victim.pid().cast_signed()).unwrap();
        proxy.arm(n, moment, move || kill_process(pid, Signal::KILL).unwrap());
        let gate = format!("{n}-{moment:?}");
        let ids = self.dispatch(&gate);
        self.see_through(&ids, &gate, || proxy.has_struck());
        // It lets go of the last locks after that.
        wait_until(&self.database, "it is dead, or has no lock left", SOON, || {
            let registry = self.workshop.redis.registry();
            if proxy.has_struck() || registry.is_empty() { Ok(()) } else { Err(registry) }
        });
        let was_struck = proxy.disarm();
        if was_struck {
            victim.wait(SOON);
        } else {
            victim.stop(Signal::TERM);
        }
        // Its warden settles what it had, at once.
        assert_clean(&self.database, &self.workshop);
        if !self.database.task(ids[0]).state.is_final() {
            self.cancel(ids[0]);
        }
        if self.n_unfinished(&ids) > 0 {
            let mut other = self.workshop.worker("redis", &["--burst", "--threads", "2"]);
            assert!(other.wait(SOON).success(), "{}", other.stderr());
        }
        self.assert_done(&ids, was_struck.then_some("has gone missing"));
        was_struck
    }

    /// Has a worker do some tasks and cuts its connection at its message number `n` from
    /// when they are there; whether it sends that many.
    fn cut_at(&self, proxy: &Proxy, n: usize, moment: Moment) -> bool {
        let worker = self.start_victim(&[]);
        proxy.arm(n, moment, || {});
        let gate = format!("cut-{n}-{moment:?}");
        let ids = self.dispatch(&gate);
        self.see_through(&ids, &gate, || false);
        let was_struck = proxy.disarm();
        worker.stop(Signal::TERM);
        assert_clean(&self.database, &self.workshop);
        // No claim is in a connection to Redis.
        let is_claim_lost = was_struck && std::ptr::eq(proxy, &self.postgres.0);
        self.assert_done(&ids, is_claim_lost.then_some("lost its connection to Postgres"));
        was_struck
    }

    /// Asserts that all tasks are final, and that none failed but for this reason.
    #[track_caller]
    fn assert_done(&self, ids: &[TaskId], reason: Option<&str>) {
        let tasks = self.tasks(ids);
        let failed: Vec<&Task> =
            tasks.iter().filter(|task| task.state == TaskState::Failed).collect();
        assert!(failed.len() <= reason.map_or(0, |_| N_THREADS), "{failed:#?}");
        for task in failed {
            assert!(task.error.as_ref().unwrap().contains(reason.unwrap()), "{task:?}");
        }
        for (index, task) in tasks.iter().enumerate() {
            let expected = if index == 0 { TaskState::Canceled } else { TaskState::Completed };
            assert!([expected, TaskState::Failed].contains(&task.state), "{task:?}");
        }
    }
}

/// Strikes at each message of a round of tasks, one after the other, until there are no
/// more of them.
fn at_each_message(street: &Street, strike: impl Fn(usize, Moment) -> bool) {
    for moment in [Moment::BeforeMessage, Moment::BeforeAnswer] {
        let n_messages = (1..).find(|n| !strike(*n, moment)).unwrap();
        // At least one to start and one to end each task that is not joined to another.
        assert!(n_messages > 6, "only {n_messages} messages");
    }
    assert_each_ran_once(&street.database, &street.workshop);
    assert_clean(&street.database, &street.workshop);
}

#[test]
fn a_worker_killed_at_any_message_to_the_lock_store_leaves_nothing() {
    let street = Street::new();
    at_each_message(&street, |n, moment| street.kill_at(&street.redis.0, n, moment));
}

#[test]
fn a_worker_killed_at_any_message_to_the_database_leaves_nothing() {
    let street = Street::new();
    at_each_message(&street, |n, moment| street.kill_at(&street.postgres.0, n, moment));
}

#[test]
fn a_connection_to_the_lock_store_cut_at_any_message_is_made_anew() {
    let street = Street::new();
    at_each_message(&street, |n, moment| street.cut_at(&street.redis.0, n, moment));
}

#[test]
fn a_connection_to_the_database_cut_at_any_message_is_made_anew() {
    let street = Street::new();
    at_each_message(&street, |n, moment| street.cut_at(&street.postgres.0, n, moment));
}

/// The question is asked again, and the second answer is another one, because somebody
/// has let go of a lock in between: nobody knows then of what the first one gave.
#[test]
fn what_was_taken_when_an_answer_was_lost_is_let_go() {
    let street = Street::new();
    let (database, workshop) = (&street.database, &street.workshop);
    // It does not look for lost locks now and then, as others do.
    let worker = street.start_victim(&["--auxiliary"]);
    let let_go = {
        let redis = workshop.redis.clone();
        move || redis.set_lock("ra", None)
    };
    // In the first ones it connects; then the first message asks for the locks of both.
    for round in 0..6 {
        workshop.redis.set_lock("ra", Some("0"));
        street.redis.0.arm(1, Moment::BeforeAnswer, let_go.clone());
        let [first, second] = ["a", "b"].map(|resource| {
            let gate = format!("{resource}{round}");
            (gate_task(workshop, "gate", &gate).exclusive(resource), gate)
        });
        let tasks = [first.0, second.0];
        let ids = client::dispatch_many(&mut database.connect(), &tasks).unwrap();
        street.waker.borrow_mut().wake().unwrap();
        for gate in [&first.1, &second.1] {
            workshop.wait_at_gate(database, gate);
        }
        for gate in [&first.1, &second.1] {
            workshop.open_gate(gate);
        }
        for id in ids {
            database.wait_for_state(id, TaskState::Completed);
        }
        assert!(street.redis.0.has_struck());
    }
    worker.stop(Signal::TERM);
    assert_clean(database, workshop);
}

/// How many starts the crash loop has.
const N_STARTS: usize = 100;

/// Keys of others in the same Redis.
const N_FOREIGN_KEYS: u64 = 100_000;

/// A worker under the name that all have.
fn start_same(workshop: &Workshop) -> WorkerProcess {
    workshop.worker("redis", &["--threads", "2", "--name-template", "same"])
}

/// Waits until all that is left of workers that were killed is gone.
fn wait_for_quiet(database: &Database, workshop: &Workshop) {
    wait_until(database, "no process is left", SOON, || {
        let processes = workshop.processes();
        if processes.is_empty() { Ok(()) } else { Err(processes) }
    });
    database.wait_for_workers(0);
}

/// Starts a worker with nothing to do but one task, kills it when it has done that, and
/// returns how many commands Redis was given meanwhile.
fn n_calls_of_a_start(database: &Database, workshop: &Workshop) -> u64 {
    wait_for_quiet(database, workshop);
    let n_calls = || workshop.redis.calls().values().sum::<u64>();
    let before = n_calls();
    let worker = start_same(workshop);
    let id = database.dispatch(&NewTask::new("millhand.noop").exclusive("r"));
    database.wait_for_state(id, TaskState::Completed);
    worker.kill();
    wait_for_quiet(database, workshop);
    n_calls() - before
}

#[test]
fn a_crash_loop_under_one_name_leaves_nothing_and_never_looks_through_all_keys() {
    let server = start_redis();
    let database = Database::new();
    let workshop = Workshop::with_redis(&database, Redis::of(&server), NOTED);
    redis::cmd("EVAL")
        .arg("for i = 1, ARGV[1] do redis.call('SET', 'foreign:' .. i, i) end")
        .arg(0)
        .arg(N_FOREIGN_KEYS)
        .exec(&mut workshop.redis.connect())
        .unwrap();
    let of_first = n_calls_of_a_start(&database, &workshop);
    for _ in 2..N_STARTS {
        dispatch_load(&database, &workshop, 6);
        let worker = start_same(&workshop);
        // Any moment from before it has registered to when it has ended some tasks.
        thread::sleep(Duration::from_millis(random() % 300));
        worker.kill();
    }
    let last = start_same(&workshop);
    database.wait_for_all_final();
    last.kill();
    let of_last = n_calls_of_a_start(&database, &workshop);
    assert!(of_last <= of_first, "{of_first} commands at first, {of_last} in the end");
    for (name, n) in workshop.redis.calls() {
        assert!(!["keys", "scan"].contains(&name.as_str()), "{n} calls of {name}");
    }
    let tasks = database.tasks();
    let failed: Vec<&Task> = tasks.iter().filter(|task| task.state == TaskState::Failed).collect();
    assert!(!failed.is_empty(), "no worker was killed while it was at work");
    for task in failed {
        assert!(task.error.as_ref().unwrap().contains("has gone missing"), "{task:?}");
    }
    assert_each_ran_once(&database, &workshop);
    assert_clean(&database, &workshop);
}
