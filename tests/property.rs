//! Random queues, run by fleets of several processes while tasks are canceled:
//! the order holds, all ends, nothing is left.
//!
//! `MILLHAND_TEST_QUEUES` sets how many queues are drawn, `MILLHAND_TEST_SEED`
//! what is drawn: a failure names the seed that draws its queues first.

use std::thread;

use millhand::{NewTask, TaskId, client};
use postgres::Client;
use rustix::process::Signal;
use serde_json::json;

use crate::support::database::{Database, count_parked};
use crate::support::process::{WorkerProcess, Workshop};
use crate::support::{SOON, WORKER_TYPES, clean, oracle, random, wait_until};

/// Queues of one round: in one table at once, on resources of their own.
const ROUND: u64 = 5;
/// Rounds that one fleet runs.
const ROUNDS_OF_A_FLEET: u64 = 10;

/// Small and good enough: xorshift, from a seed that a failure names.
struct Dice(u64);

impl Dice {
    fn of(seed: u64) -> Dice {
        // Neighbouring seeds must not throw alike.
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

/// How the tasks of one queue are drawn.
struct Kind {
    prefix: String,
    n_names: u64,
    /// One need in so many is shared.
    shared: u64,
    /// Most resources of a task.
    most: u64,
}

fn draw_task(dice: &mut Dice, kind: &Kind) -> NewTask {
    let task = match dice.below(100) {
        0 => NewTask::new("brief"),
        1..5 => NewTask::new("millhand.fail").args(json!({ "message": "drawn" })),
        5..20 => {
            NewTask::new("millhand.sleep").args(json!({ "seconds": dice.below(8) as f64 / 1000.0 }))
        }
        _ => NewTask::new("millhand.noop"),
    };
    // Few without any resource: they are in nobody's way.
    let n = if dice.one_in(20) { 0 } else { 1 + dice.below(kind.most) };
    (0..n).fold(task, |task, _| {
        let name = format!("{}{}", kind.prefix, dice.below(kind.n_names));
        if dice.one_in(kind.shared) { task.shared(name) } else { task.exclusive(name) }
    })
}

/// Draws one queue, dispatches it piece by piece, in bulk and one by one, and
/// cancels one task in eight, now and then. Returns how many tasks there are.
fn dispatch_queue(database: &Database, seed: u64, prefix: String) -> usize {
    let mut dice = Dice::of(seed);
    let kind = Kind {
        prefix,
        n_names: 1 + dice.below(8),
        shared: 1 + dice.below(4),
        most: 1 + dice.below(5),
    };
    let tasks: Vec<NewTask> =
        (0..1 + dice.below(200)).map(|_| draw_task(&mut dice, &kind)).collect();
    let mut connection = database.connect();
    let mut ids: Vec<TaskId> = Vec::new();
    let mut rest = &tasks[..];
    while !rest.is_empty() {
        let n = match dice.below(3) {
            0 => 1,
            1 => 1 + dice.index(rest.len().min(10)),
            _ => 1 + dice.index(rest.len()),
        };
        let (piece, others) = rest.split_at(n);
        rest = others;
        match piece {
            [task] => ids.push(client::dispatch(&mut connection, task).unwrap()),
            tasks => ids.extend(client::dispatch_many(&mut connection, tasks).unwrap()),
        }
        if dice.one_in(2) {
            let drawn = dice.index(ids.len());
            client::cancel(&mut connection, ids[drawn]).unwrap();
        }
    }
    for _ in 0..tasks.len() / 8 {
        let drawn = dice.index(ids.len());
        client::cancel(&mut connection, ids[drawn]).unwrap();
    }
    tasks.len()
}

/// Runs a round of queues and looks at what became of them.
fn run_round(database: &Database, seed: u64, n_queues: u64) {
    let n_tasks: usize = thread::scope(|scope| {
        let queues: Vec<_> = (0..n_queues)
            .map(|number| {
                scope.spawn(move || dispatch_queue(database, seed + number, format!("q{number}.r")))
            })
            .collect();
        queues.into_iter().map(|queue| queue.join().unwrap()).sum()
    });
    database.wait_for_all_final();
    oracle::assert_sound(database);
    assert_eq!(database.tasks().len(), n_tasks);
    let mut connection = database.connect();
    assert_eq!(count_parked(&mut connection), 0, "{}", database.task_table());
    connection.batch_execute("TRUNCATE millhand.task, millhand.parked, millhand.freed").unwrap();
}

/// Whether any task was ever parked, as Postgres counts.
fn has_parked(connection: &mut Client) -> bool {
    connection
        .query_one(
            "SELECT n_tup_ins > 0 FROM pg_stat_user_tables
              WHERE schemaname = 'millhand' AND relname = 'parked'",
            &[],
        )
        .unwrap()
        .get(0)
}

#[test]
fn random_queues_keep_the_order_and_leave_nothing_behind() {
    let first_seed = setting("MILLHAND_TEST_SEED", random() >> 1);
    let n_queues = setting("MILLHAND_TEST_QUEUES", 1000);
    thread::scope(|scope| {
        for worker_type in WORKER_TYPES {
            // Half of them with each type; with `pulpcore`, where the walks make a queue take
            // about ten times as long, a twentieth.
            let share = if worker_type == "pulpcore" { 20 } else { 2 };
            let n = n_queues.div_ceil(share);
            let seed = first_seed + if worker_type == "redis" { n } else { 0 };
            scope.spawn(move || run_queues(worker_type, seed, n));
        }
    });
}

fn run_queues(worker_type: &str, first_seed: u64, n_queues: u64) {
    let database = Database::new();
    let workshop = Workshop::new(&database, "[handlers.brief]\ncommand = [\"sleep\", \"0.01\"]");
    let mut n_run = 0;
    while n_run < n_queues {
        let mut dice = Dice::of(first_seed + n_run);
        let fleet: Vec<WorkerProcess> = (0..2 + dice.below(3))
            .map(|_| {
                let threads = (1 + dice.below(6)).to_string();
                workshop.worker(worker_type, &["--threads", &threads])
            })
            .collect();
        for _ in 0..ROUNDS_OF_A_FLEET {
            let n = ROUND.min(n_queues - n_run);
            let seed = first_seed + n_run;
            // Shown only if the test fails.
            println!("MILLHAND_TEST_SEED={seed} MILLHAND_TEST_QUEUES={n} draws these");
            run_round(&database, seed, n);
            n_run += n;
        }
        for worker in fleet {
            worker.stop(Signal::TERM);
        }
        clean::assert_clean(&database, &workshop);
    }
    if n_queues >= 100 && worker_type != "pulpcore" {
        let mut connection = database.connect();
        wait_until(&database, "deep queues were parked", SOON, || {
            if has_parked(&mut connection) { Ok(()) } else { Err("nothing was") }
        });
    }
}
