//! What must be left behind when all workers have gone: nothing but final rows.

use std::fs;

use super::database::Database;
use super::process::Workshop;
use super::{SOON, oracle, wait_until};

/// Panics unless the history is sound and, soon, no lock, worker row, owner,
/// process or working directory is left.
#[track_caller]
pub(crate) fn assert_clean(database: &Database, workshop: &Workshop) {
    oracle::assert_sound(database);
    let mut connection = database.connect();
    wait_until(database, "nothing is left behind", SOON, || {
        let row = connection
            .query_one(
                "SELECT (SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                          WHERE l.locktype = 'advisory' AND d.datname = current_database()),
                        (SELECT count(*) FROM millhand.worker),
                        (SELECT count(*) FROM millhand.task WHERE owner IS NOT NULL)",
                &[],
            )
            .unwrap();
        let mut left = Vec::new();
        for (index, what) in ["advisory locks", "worker rows", "owners"].into_iter().enumerate() {
            match row.get::<_, i64>(index) {
                0 => {}
                n => left.push(format!("{n} {what}")),
            }
        }
        left.extend(workshop.redis.keys().into_iter().map(|key| format!("key {key}")));
        left.extend(workshop.processes().into_iter().map(|process| format!("process {process}")));
        for entry in fs::read_dir(workshop.work()).unwrap().flatten() {
            left.push(format!("directory {}", entry.path().display()));
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}
