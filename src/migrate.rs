//! Brings a database's schema up to what this program knows.
//!
//! Migrations are numbered and only go forward. The functions in
//! `sql/functions` belong to the newest migration and are replaced with it, so
//! whoever changes one adds a migration.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;
use postgres::types::Type;

use crate::error::Error;

/// The migrations, in order; the number of the last is the schema's version.
const MIGRATIONS: [(i32, &str, &str); 5] = [
    (1, "initial", include_str!("../sql/migrations/0001_initial.sql")),
    (2, "lock owner", include_str!("../sql/migrations/0002_lock_owner.sql")),
    (3, "unblocked", include_str!("../sql/migrations/0003_unblocked.sql")),
    (4, "faults", include_str!("../sql/migrations/0004_faults.sql")),
    (5, "reports", include_str!("../sql/migrations/0005_reports.sql")),
];

const FUNCTIONS: [&str; 21] = [
    include_str!("../sql/functions/01_lock_keys.sql"),
    include_str!("../sql/functions/02_ring.sql"),
    include_str!("../sql/functions/03_places.sql"),
    include_str!("../sql/functions/04_check_task.sql"),
    include_str!("../sql/functions/05_dispatch.sql"),
    include_str!("../sql/functions/06_dispatch_many.sql"),
    include_str!("../sql/functions/07_cancel.sql"),
    include_str!("../sql/functions/08_finish_task.sql"),
    include_str!("../sql/functions/09_locks.sql"),
    include_str!("../sql/functions/10_sight.sql"),
    include_str!("../sql/functions/11_park.sql"),
    include_str!("../sql/functions/12_next_task.sql"),
    include_str!("../sql/functions/13_workers.sql"),
    include_str!("../sql/functions/14_housekeeping.sql"),
    include_str!("../sql/functions/15_joint_turn.sql"),
    include_str!("../sql/functions/16_unblocked_turn.sql"),
    include_str!("../sql/functions/17_begin_session.sql"),
    include_str!("../sql/functions/20_json.sql"),
    include_str!("../sql/functions/18_sequences.sql"),
    include_str!("../sql/functions/19_names.sql"),
    include_str!("../sql/functions/21_version_4.sql"),
];

/// For how long a migration tries to get the locks that it needs, and its pauses: longer
/// than what it keeps others waiting for.
const LOCK_DEADLINE: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_secs(2);

/// Held by whoever migrates. Never change it.
const MIGRATION_LOCK: i64 = 7_300_000_001;

/// The schema version that this program knows.
#[must_use]
pub fn known_version() -> i32 {
    MIGRATIONS[MIGRATIONS.len() - 1].0
}

/// The database's schema version; 0 if there is none.
pub fn current_version(client: &mut Client) -> Result<i32, Error> {
    let doing = "could not read the schema's version";
    let exists: bool = client
        .query_typed_one("SELECT to_regclass('millhand.migration') IS NOT NULL", &[])
        .map_err(|error| Error::postgres(doing, error))?
        .get(0);
    if !exists {
        return Ok(0);
    }
    let row = client
        .query_typed_one("SELECT coalesce(max(version), 0) FROM millhand.migration", &[])
        .map_err(|error| Error::postgres(doing, error))?;
    Ok(row.get(0))
}

/// Fails unless the database has exactly the schema that this program knows.
pub fn check(client: &mut Client) -> Result<(), Error> {
    let current = current_version(client)?;
    let known = known_version();
    if current > known {
        return Err(newer(current));
    }
    if current == 0 {
        let row = client
            .query_typed_one("SELECT current_database()", &[])
            .map_err(|error| Error::postgres("could not read the database's name", error))?;
        return Err(Error::Schema(format!(
            "there are no millhand tables in the database `{}` yet; run `millhand migrate`",
            row.get::<_, &str>(0)
        )));
    }
    if current < known {
        return Err(Error::Schema(format!(
            "the database has schema version {current}, this program needs {known}; \
             run `millhand migrate`"
        )));
    }
    Ok(())
}

/// Makes sure that workers can work on this database, and mends what they would
/// stumble over.
pub(crate) fn prepare(client: &mut Client) -> Result<(), Error> {
    check_encoding(client)?;
    check(client)?;
    mend_sequences(client)
}

/// Text of another encoding could not be read, and what commands say could not be
/// stored.
fn check_encoding(client: &mut Client) -> Result<(), Error> {
    let encoding: String = client
        .query_typed_one("SELECT current_setting('server_encoding')", &[])
        .map_err(|error| Error::postgres("could not read the database's encoding", error))?
        .get(0);
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(Error::Config(format!(
        "the database has encoding {encoding}; create one with ENCODING 'UTF8' TEMPLATE template0, \
         and name that"
    )))
}

/// Draws sequences forward that lag behind the rows, and says so.
fn mend_sequences(client: &mut Client) -> Result<(), Error> {
    let rows = client
        .query_typed(include_str!("../sql/queries/mend_sequences.sql"), &[])
        .map_err(|error| Error::postgres("could not mend the sequences", error))?;
    for row in rows {
        let what: &str = row.get(0);
        log::warn!("{what}");
    }
    Ok(())
}

/// Applies what is missing, all in one transaction, and returns the versions applied: workers
/// of the version before never see half of it. Many may do so at once: one at a time works,
/// the others find nothing left to do. Waits for a minute at most where somebody keeps a
/// table locked, and lets others pass meanwhile: running tasks depend on heartbeats.
pub fn migrate(client: &mut Client) -> Result<Vec<i32>, Error> {
    check_encoding(client)?;
    let begin = Instant::now();
    let applied = loop {
        match apply_all(client) {
            Err(error) if error.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                if begin.elapsed() >= LOCK_DEADLINE {
                    return Err(error);
                }
                std::thread::sleep(LOCK_PAUSE);
            }
            other => break other?,
        }
    };
    mend_sequences(client)?;
    Ok(applied)
}

fn apply_all(client: &mut Client) -> Result<Vec<i32>, Error> {
    let fail = |error: postgres::Error| {
        let doing = match error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) {
            true => "could not migrate, as somebody keeps a table locked (see pg_locks)",
            false => "could not migrate",
        };
        Error::postgres(&format!("{doing}; nothing was changed"), error)
    };
    let mut transaction = client.transaction().map_err(fail)?;
    transaction
        .query_typed("SELECT pg_advisory_xact_lock($1)", &[(&MIGRATION_LOCK, Type::INT8)])
        .map_err(fail)?;
    // What waits for a lock keeps all who come later waiting, too.
    transaction.batch_execute("SET LOCAL lock_timeout = '1s'").map_err(fail)?;
    transaction.batch_execute(include_str!("../sql/migrations/bootstrap.sql")).map_err(fail)?;
    let current: i32 = transaction
        .query_typed_one("SELECT coalesce(max(version), 0) FROM millhand.migration", &[])
        .map_err(fail)?
        .get(0);
    if current > known_version() {
        return Err(newer(current));
    }
    let missing = MIGRATIONS.into_iter().filter(|(version, ..)| *version > current);
    let mut applied = Vec::new();
    for (version, name, sql) in missing {
        transaction.batch_execute(sql).map_err(fail)?;
        transaction
            .execute_typed(
                "INSERT INTO millhand.migration (version, name) VALUES ($1, $2)",
                &[(&version, Type::INT4), (&name, Type::TEXT)],
            )
            .map_err(fail)?;
        applied.push(version);
    }
    if !applied.is_empty() {
        for function in FUNCTIONS {
            transaction.batch_execute(function).map_err(fail)?;
        }
    }
    transaction.commit().map_err(fail)?;
    Ok(applied)
}

fn newer(current: i32) -> Error {
    Error::Schema(format!(
        "the database has schema version {current}, newer than this program knows ({}); \
         upgrade millhand",
        known_version()
    ))
}
