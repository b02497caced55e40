//! What tests stand on: private servers, a database for each test, workers as
//! processes, scenarios, the oracle.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub(crate) mod certificates;
pub(crate) mod clean;
pub(crate) mod database;
pub(crate) mod oracle;
pub(crate) mod pooler;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod scenario;
pub(crate) mod session;

use std::cell::RefCell;
use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use database::Database;

/// How long tests wait for what should be there at once. It counts from the last progress
/// that was seen: a machine that is busy with other things is slow and fails nothing.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Whatever goes on, by then it should have come.
const PATIENCE: u32 = 20;

/// Every worker type that is under test. What is tested for one holds for all.
pub(crate) const WORKER_TYPES: [&str; 3] = ["postgres", "redis", "pulpcore"];

/// Looks until it finds what it looks for, or returns what it saw last.
pub(crate) fn look_until<T, V>(
    deadline: Duration,
    look: impl FnMut() -> Result<T, V>,
) -> Result<T, V> {
    look_while(deadline, String::new, look)
}

/// The same, and begins to wait anew whenever the deadline finds that `progress` says
/// something else than at the beginning.
pub(crate) fn look_while<T, V>(
    deadline: Duration,
    mut progress: impl FnMut() -> String,
    mut look: impl FnMut() -> Result<T, V>,
) -> Result<T, V> {
    let mut said = progress();
    let begin = Instant::now();
    let mut end = begin + deadline;
    loop {
        let seen = match look() {
            Err(seen) => seen,
            found => return found,
        };
        if Instant::now() >= end {
            let says = progress();
            if says == said || begin.elapsed() > deadline * PATIENCE {
                return Err(seen);
            }
            said = says;
            end = Instant::now() + deadline;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Looks until it finds what it looks for, and panics with the label, what it saw last and
/// the tasks if for `deadline` neither that has changed nor any task has come on.
#[track_caller]
pub(crate) fn wait_until<T, V: Debug>(
    database: &Database,
    label: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, V>,
) -> T {
    let seen = RefCell::new(String::new());
    let progress = || format!("{} {}", seen.borrow(), database::progress(&database.url()));
    let look = || look().inspect_err(|now| *seen.borrow_mut() = format!("{now:?}"));
    match look_while(deadline, progress, look) {
        Ok(found) => found,
        Err(seen) => panic!(
            "waited {deadline:?} in vain: {label}\nlast seen: {seen:?}\n{}",
            database.task_table()
        ),
    }
}

/// A number that differs from run to run.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
