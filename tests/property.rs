//! Random queues, run by several processes while tasks are canceled: the order
//! holds, all ends, nothing is left.
//!
//! `MILLHAND_TEST_SEED` repeats a run, `MILLHAND_TEST_QUEUES` sets how many
//! queues are drawn (default: 10).

use std::thread;

use millhand::{NewTask, TaskId, client};
use serde_json::json;

use crate::support::process::Workshop;
use crate::support::{WORKER_TYPES, clean, database::Database, random};

/// Small and good enough: xorshift, from a seed that a failure names.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

fn draw_task(dice: &mut Dice, n_names: u64) -> NewTask {
    let task = match dice.below(10) {
        0 => NewTask::new("brief"),
        1 => NewTask::new("millhand.fail").args(json!({ "message": "drawn" })),
        2..5 => NewTask::new("millhand.sleep")
            .args(json!({ "seconds": dice.below(20) as f64 / 1000.0 })),
        _ => NewTask::new("millhand.noop"),
    };
    (0..dice.below(6)).fold(task, |task, _| {
        let name = format!("r{}", dice.below(n_names));
        if dice.one_in(2) { task.exclusive(name) } else { task.shared(name) }
    })
}

/// One queue: some of it dispatched before the workers start, the rest while
/// they run, and one in eight tasks canceled sooner or later.
fn run_queue(worker_type: &str, seed: u64) {
    let mut dice = Dice(seed | 1);
    let database = Database::new();
    let workshop = Workshop::new(&database, "[handlers.brief]\ncommand = [\"sleep\", \"0.02\"]");
    let n_names = 1 + dice.below(12);
    let tasks: Vec<NewTask> =
        (0..1 + dice.below(200)).map(|_| draw_task(&mut dice, n_names)).collect();
    let (early, late) = tasks.split_at(usize::try_from(dice.below(tasks.len() as u64)).unwrap());
    let mut connection = database.connect();
    let mut ids = client::dispatch_many(&mut connection, early).unwrap();
    let workers: Vec<_> = (0..1 + dice.below(3))
        .map(|_| {
            let threads = (1 + dice.below(6)).to_string();
            workshop.worker(worker_type, &["--threads", &threads])
        })
        .collect();
    thread::scope(|scope| {
        // A second dispatcher, so that transactions overlap.
        let (half, other_half) = late.split_at(late.len() / 2);
        let other = scope.spawn(|| dispatch_each(&database, other_half));
        for task in half {
            ids.push(client::dispatch(&mut connection, task).unwrap());
            if dice.one_in(4) {
                let drawn = usize::try_from(dice.below(ids.len() as u64)).unwrap();
                client::cancel(&mut connection, ids[drawn]).unwrap();
            }
        }
        ids.extend(other.join().unwrap());
    });
    for id in &ids {
        if dice.one_in(8) {
            client::cancel(&mut connection, *id).unwrap();
        }
    }
    database.wait_for_all_final();
    for worker in workers {
        worker.stop(rustix::process::Signal::TERM);
    }
    clean::assert_clean(&database, &workshop);
    assert_eq!(database.tasks().len(), tasks.len());
}

fn dispatch_each(database: &Database, tasks: &[NewTask]) -> Vec<TaskId> {
    let mut connection = database.connect();
    tasks.iter().map(|task| client::dispatch(&mut connection, task).unwrap()).collect()
}

#[test]
fn random_queues_keep_the_order_and_leave_nothing_behind() {
    let seed = setting("MILLHAND_TEST_SEED", random() >> 1);
    for number in 0..setting("MILLHAND_TEST_QUEUES", 10) {
        for worker_type in WORKER_TYPES {
            // Shown only if the test fails.
            println!("MILLHAND_TEST_SEED={} repeats this queue", seed + number);
            run_queue(worker_type, seed + number);
        }
    }
}
