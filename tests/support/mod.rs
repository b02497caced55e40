//! What tests stand on: private servers, a database for each test, workers as
//! processes, scenarios, the oracle.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub(crate) mod clean;
pub(crate) mod database;
pub(crate) mod oracle;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod scenario;
pub(crate) mod session;

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use database::Database;

/// How long tests wait for what should be there at once: long enough for a
/// machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Every worker type that is under test. What is tested for one holds for all.
pub(crate) const WORKER_TYPES: [&str; 3] = ["postgres", "redis", "pulpcore"];

/// Looks until it finds what it looks for, or returns what it saw last.
pub(crate) fn look_until<T, V>(
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, V>,
) -> Result<T, V> {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            seen => return seen,
        }
    }
}

/// The same, and panics with the label, what it saw last and the tasks if that
/// takes longer than `deadline`.
#[track_caller]
pub(crate) fn wait_until<T, V: Debug>(
    database: &Database,
    label: &str,
    deadline: Duration,
    look: impl FnMut() -> Result<T, V>,
) -> T {
    match look_until(deadline, look) {
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
