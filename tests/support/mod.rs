//! What tests stand on: private servers, a database for each test, workers as
//! processes, scenarios, the oracle.

#![allow(dead_code, reason = "each test target uses a part of it")]

pub(crate) mod clean;
pub(crate) mod database;
pub(crate) mod oracle;
pub(crate) mod process;
pub(crate) mod scenario;

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use database::Database;

/// How long tests wait for what should be there at once: long enough for a
/// machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Every worker type that is under test. What is tested for one holds for all.
pub(crate) const WORKER_TYPES: [&str; 1] = ["postgres"];

/// Waits until `look` finds what it looks for, and panics with the label, what
/// it saw last and the tasks if that takes longer than `deadline`.
#[track_caller]
pub(crate) fn wait_until<T, V: Debug>(
    database: &Database,
    label: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, V>,
) -> T {
    let end = Instant::now() + deadline;
    loop {
        let seen = match look() {
            Ok(found) => return found,
            Err(seen) => seen,
        };
        assert!(
            Instant::now() < end,
            "waited {deadline:?} in vain: {label}\nlast seen: {seen:?}\n{}",
            database.task_table()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// A number that differs from run to run.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}
