//! Migrations: from nothing to the golden schema, by many at once, never past
//! a newer one. Every query is valid against the result.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use millhand::{Error, NewTask, TaskId, TaskState, migrate};

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{Workshop, millhand, run};
use crate::support::{SOON, WORKER_TYPES};

/// A dump without what depends on the server's or pg_dump's version.
fn normalized_dump(database: &Database) -> String {
    let output = Command::new("pg_dump")
        .args(["--schema-only", "--no-owner", "--no-privileges", "--schema=millhand"])
        .arg(database.url())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut text = String::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let varies = ["--", "SET ", "SELECT pg_catalog.set_config", "\\restrict", "\\unrestrict"];
        if varies.iter().any(|start| line.starts_with(start))
            || (line.is_empty() && text.ends_with("\n\n"))
        {
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text.trim().to_owned() + "\n"
}

#[track_caller]
fn assert_golden(database: &Database) {
    migrate::check(&mut database.connect()).unwrap();
    let found = normalized_dump(database);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/schema.sql");
    if std::env::var_os("MILLHAND_WRITE_SCHEMA").is_some() {
        fs::write(golden, found).unwrap();
        return;
    }
    let expected = fs::read_to_string(golden).unwrap();
    let differs =
        found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "the schema differs from sql/schema.sql, first in line {:?}; if it should, run `make schema`\n{found}",
        differs.map(|line| line + 1)
    );
}

#[test]
fn an_empty_database_migrates_to_the_golden_schema() {
    let database = Database::empty();
    let mut connection = database.connect();
    assert_eq!(migrate::current_version(&mut connection).unwrap(), 0);
    let applied = migrate::migrate(&mut connection).unwrap();
    assert_eq!(applied.last(), Some(&migrate::known_version()));
    assert!(migrate::migrate(&mut connection).unwrap().is_empty());
    assert_golden(&database);
}

#[test]
fn a_database_of_the_first_version_migrates_to_the_golden_schema() {
    let database = Database::empty();
    let mut connection = database.connect();
    let sql = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/migrations");
        fs::read_to_string(folder.join(name)).unwrap()
    };
    connection.batch_execute(&sql("bootstrap.sql")).unwrap();
    connection.batch_execute(&sql("0001_initial.sql")).unwrap();
    // Of its functions, those that later versions have no use for, or call otherwise.
    connection
        .batch_execute(
            "CREATE FUNCTION millhand.register_worker(
                 text, text, text, text, integer, interval, bigint, bigint)
                 RETURNS bigint LANGUAGE sql AS 'SELECT 0';
             CREATE FUNCTION millhand.sweep_lock() RETURNS bigint LANGUAGE sql AS 'SELECT 0';
             INSERT INTO millhand.migration (version, name) VALUES (1, 'initial');
             INSERT INTO millhand.task (name, position) VALUES ('a', 1)",
        )
        .unwrap();
    let applied = migrate::migrate(&mut connection).unwrap();
    assert_eq!(applied, (2..=migrate::known_version()).collect::<Vec<_>>());
    assert_golden(&database);
    let n: i64 = connection.query_one("SELECT count(*) FROM millhand.task", &[]).unwrap().get(0);
    assert_eq!(n, 1);
}

#[test]
fn sixteen_may_migrate_at_once() {
    let database = Database::empty();
    let applied: Vec<i32> = thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| migrate::migrate(&mut database.connect()).unwrap()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // Each migration was applied by one of them.
    assert_eq!(applied.len(), applied.iter().collect::<std::collections::BTreeSet<_>>().len());
    migrate::check(&mut database.connect()).unwrap();
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let database = Database::new();
    let mut connection = database.connect();
    connection
        .batch_execute("INSERT INTO millhand.migration (version, name) VALUES (9999, 'future')")
        .unwrap();
    for error in [
        migrate::check(&mut connection).unwrap_err(),
        migrate::migrate(&mut connection).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Schema(_)), "{error:?}");
        assert!(error.to_string().contains("9999, newer than this program knows"), "{error}");
    }
}

#[test]
fn the_check_tells_and_changes_nothing() {
    let database = Database::empty();
    let migrate = |flags: &[&str]| {
        run(millhand(["migrate"]).args(flags).env("MILLHAND_DATABASE_URL", database.url()))
    };
    let said = migrate(&["--check"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""));
    assert!(
        said.stderr.starts_with("millhand: ") && said.stderr.contains("run `millhand migrate`"),
        "{said:?}"
    );
    let exists: bool = database
        .connect()
        .query_one("SELECT to_regnamespace('millhand') IS NOT NULL", &[])
        .unwrap()
        .get(0);
    assert!(!exists);
    let said = migrate(&[]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    let said = migrate(&["--check"]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_database_of_another_encoding_is_refused() {
    let database = Database::of_encoding("SQL_ASCII");
    for args in [&["migrate"][..], &["worker", "-qq"], &["worker", "-qq", "--type", "pulpcore"]] {
        let said = run(millhand(args).env("MILLHAND_DATABASE_URL", database.url()));
        assert_eq!((said.code, said.stdout.as_str()), (Some(2), ""), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        assert!(said.stderr.contains("SQL_ASCII") && said.stderr.contains("UTF8"), "{said:?}");
    }
}

#[test]
fn sequences_that_lag_are_mended_and_no_task_overtakes_another() {
    let start_worker = |workshop: &Workshop, worker_type: &str| {
        let mut worker = workshop.worker(worker_type, &["--burst"]);
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        worker.stderr()
    };
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let task = NewTask::new("millhand.noop").exclusive("r");
        let mut connection = database.connect();
        let dispatch = |n: usize| {
            for _ in 0..n {
                database.dispatch(&task);
            }
        };
        dispatch(3);
        assert!(!start_worker(&workshop, worker_type).contains("lagged"));
        dispatch(3);
        connection
            .batch_execute(
                "SELECT setval('millhand.task_position', 1, false);
                 SELECT setval('millhand.task_fence', 1, false);
                 SELECT setval('millhand.task_id_seq', 1, false)",
            )
            .unwrap();
        let said = run(millhand(["migrate"]).env("MILLHAND_DATABASE_URL", database.url()));
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(said.stderr.matches("lagged behind the rows").count(), 3, "{said:?}");
        let said = run(millhand(["migrate"]).env("MILLHAND_DATABASE_URL", database.url()));
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
        dispatch(1);
        connection.batch_execute("SELECT setval('millhand.task_position', 1, false)").unwrap();
        assert!(start_worker(&workshop, worker_type).contains("task_position lagged"));
        dispatch(1);
        start_worker(&workshop, worker_type);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn the_sequences_belong_to_their_columns() {
    let database = Database::new();
    let row = database
        .connect()
        .query_one(
            "SELECT pg_get_serial_sequence('millhand.task', 'position'),
                    pg_get_serial_sequence('millhand.task', 'fence')",
            &[],
        )
        .unwrap();
    let found: (String, String) = (row.get(0), row.get(1));
    assert_eq!(found, ("millhand.task_position".to_owned(), "millhand.task_fence".to_owned()));
}

#[test]
fn every_query_can_be_prepared() {
    let database = Database::new();
    let mut connection = database.connect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/queries");
    let mut n_queries = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let sql = fs::read_to_string(&path).unwrap();
        // What makes a session ready is a script; all else is one statement.
        let scripts = ["worker_session.sql", "rehearse.sql", "rehearse_unblocked.sql"];
        let result = if scripts.iter().any(|script| path.ends_with(script)) {
            connection.batch_execute(&sql)
        } else {
            connection.prepare(&sql).map(drop)
        };
        result.unwrap_or_else(|error| {
            panic!("{}: {}", path.display(), millhand::error::chain(&error))
        });
        n_queries += 1;
    }
    assert!(n_queries > 5);
}

/// A database is migrated while workers of the version before are online.
#[test]
fn turns_as_workers_of_version_4_call_them_work() {
    let database = Database::new();
    let mut connection = database.connect();
    let register = |connection: &mut postgres::Client| -> i64 {
        let sql = "SELECT millhand.add_worker('old', 'postgres', 'p', 'h', 1, '1 hour', NULL, NULL,
                                              NULL, NULL, NULL, NULL)";
        connection.query_one(sql, &[]).unwrap().get(0)
    };
    let worker = register(&mut connection);
    let ids: Vec<TaskId> =
        (0..4).map(|_| database.dispatch(&NewTask::new("t").exclusive("r"))).collect();
    let mut turn = |ended: Option<i64>, wanted: bool| -> Option<i64> {
        let sql = "SELECT task_id FROM millhand.next_task($1, 'old', '{t}', 0, '{}', $2,
                       'completed', '1', NULL, 'said', $3, false, false, false)";
        connection.query_one(sql, &[&worker, &ended, &wanted]).unwrap().get(0)
    };
    assert_eq!(turn(None, true), Some(ids[0].0));
    assert_eq!(turn(Some(ids[0].0), true), Some(ids[1].0));
    assert_eq!(turn(Some(ids[1].0), false), None);
    for id in &ids[..2] {
        let task = database.task(*id);
        assert_eq!((task.state, task.result), (TaskState::Completed, Some(serde_json::json!(1))));
    }
    let sql = "SELECT task_id, what FROM millhand.joint_turn('{}', '{}', '{}', '{}', '{}', '{}',
                   ARRAY[$1::bigint], ARRAY[$2::bigint])";
    let row = connection.query_one(sql, &[&ids[2].0, &worker]).unwrap();
    assert_eq!((row.get(0), row.get(1)), (ids[2].0, "started"));
    let sql = "SELECT task_id, what FROM millhand.joint_turn(ARRAY[$1::bigint], ARRAY[$2::bigint],
                   '{completed}', ARRAY['2'::jsonb], ARRAY[NULL::text], '{said}', '{}', '{}')";
    let row = connection.query_one(sql, &[&ids[2].0, &worker]).unwrap();
    assert_eq!((row.get(0), row.get(1)), (ids[2].0, "ended"));
    assert_eq!(database.task(ids[2]).result, Some(serde_json::json!(2)));
    connection
        .execute("UPDATE millhand.task SET unblocked_at = now() WHERE state = 'waiting'", &[])
        .unwrap();
    let sql = "SELECT task_id FROM millhand.unblocked_turn($1, 'old', '{t}', 0, '{}', NULL,
                   NULL, NULL, NULL, NULL, true, false, false, false, true)";
    let row = connection.query_one(sql, &[&worker]).unwrap();
    assert_eq!(row.get::<_, Option<i64>>(0), Some(ids[3].0));
}
