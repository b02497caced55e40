//! The oracle can fail: both judges object to a broken history of each kind,
//! and to none that is sound.

use crate::support::database::Database;
use crate::support::oracle::{judge_in_sql, judge_pairs};

/// A history: tasks by their resources, state and times (seconds; `-` for
/// none), in the order of their positions. The rest of each row fits its state.
struct History<'a>(&'a [(&'a str, &'a str, &'a str, &'a str)]);

impl History<'_> {
    fn write(&self, database: &Database) {
        let mut connection = database.connect();
        connection
            .batch_execute(
                "ALTER TABLE millhand.task DROP CONSTRAINT IF EXISTS task_consistent;
                 TRUNCATE millhand.task, millhand.worker;
                 INSERT INTO millhand.worker (name, type, process, hostname, pid, ttl)
                 VALUES ('w', 'postgres', 'p', 'h', 1, '30 s')",
            )
            .unwrap();
        for (resources, state, started, finished) in self.0 {
            let (shared, exclusive): (Vec<_>, Vec<_>) =
                resources.split_whitespace().partition(|name| name.starts_with('+'));
            let shared: Vec<_> = shared.into_iter().map(|name| &name[1..]).collect();
            let second = |text: &str| text.parse::<f64>().ok();
            connection
                .execute(
                    "INSERT INTO millhand.task
                       (name, state, position, exclusive, shared, owner, fence, attempt,
                        created_at, started_at, finished_at, error)
                     SELECT 't', $1::text, nextval('millhand.task_position'), $2, $3,
                            CASE WHEN $1::text IN ('running', 'canceling')
                                 THEN (SELECT id FROM millhand.worker) END,
                            CASE WHEN $4::float8 IS NOT NULL THEN nextval('millhand.task_fence') END,
                            CASE WHEN $4::float8 IS NOT NULL THEN 1 ELSE 0 END,
                            to_timestamp(0), to_timestamp($4::float8), to_timestamp($5::float8),
                            CASE WHEN $1::text = 'failed' THEN 'reason' END",
                    &[state, &exclusive, &shared, &second(started), &second(finished)],
                )
                .unwrap();
        }
    }
}

/// Writes the history, then changes it by `damage`.
#[track_caller]
fn check(
    database: &Database,
    history: &[(&str, &str, &str, &str)],
    damage: &str,
    expect_sound: bool,
) {
    History(history).write(database);
    let mut connection = database.connect();
    connection.batch_execute(damage).unwrap();
    let sql = judge_in_sql(&mut connection);
    let pairs = judge_pairs(&mut connection).unwrap();
    let what = format!(
        "{history:?} {damage}\noracle.sql says {sql:#?}\nthe check of pairs says {pairs:#?}"
    );
    assert_eq!(pairs.is_empty(), expect_sound, "{what}");
    assert_eq!(sql.is_empty(), expect_sound, "{what}");
}

#[test]
fn sound_histories_pass() {
    let database = Database::new();
    for history in [
        &[][..],
        &[("a", "waiting", "-", "-"), ("a", "waiting", "-", "-")],
        &[("a", "completed", "1", "2"), ("a", "completed", "2", "3")],
        &[("+a", "completed", "1", "9"), ("+a", "completed", "2", "3"), ("a", "failed", "9", "10")],
        &[("a", "running", "1", "-"), ("b", "running", "1", "-"), ("a b", "waiting", "-", "-")],
        &[("a", "canceled", "-", "5"), ("a", "completed", "6", "7")],
        &[
            ("a", "canceling", "1", "-"),
            ("+a", "canceled", "-", "3"),
            ("+b", "completed", "1", "2"),
        ],
        &[("a", "completed", "5", "6"), ("", "completed", "1", "9"), ("b", "completed", "1", "2")],
    ] {
        check(&database, history, "", true);
    }
}

#[test]
fn two_exclusive_tasks_at_once_are_found() {
    let database = Database::new();
    check(&database, &[("a", "completed", "1", "5"), ("a", "completed", "4", "6")], "", false);
    check(&database, &[("x a", "running", "1", "-"), ("a y", "running", "2", "-")], "", false);
    check(&database, &[("a", "canceling", "1", "-"), ("a", "completed", "2", "3")], "", false);
}

#[test]
fn a_reader_inside_a_writer_is_found() {
    let database = Database::new();
    check(&database, &[("a", "completed", "1", "5"), ("+a", "completed", "2", "3")], "", false);
}

#[test]
fn a_writer_inside_a_reader_is_found() {
    let database = Database::new();
    check(&database, &[("+a", "completed", "1", "5"), ("a", "failed", "2", "3")], "", false);
    // The oldest reader of several, and not the last to come, is the long one.
    check(
        &database,
        &[
            ("+a", "completed", "1", "9"),
            ("+a", "completed", "1", "2"),
            ("a", "completed", "3", "4"),
        ],
        "",
        false,
    );
}

#[test]
fn a_swapped_order_is_found() {
    let database = Database::new();
    check(&database, &[("a", "completed", "5", "6"), ("a", "completed", "1", "2")], "", false);
    check(&database, &[("a", "completed", "5", "6"), ("+a", "completed", "1", "2")], "", false);
    check(&database, &[("+a", "waiting", "-", "-"), ("a", "completed", "1", "2")], "", false);
    check(&database, &[("a b", "waiting", "-", "-"), ("+b", "running", "1", "-")], "", false);
    // Far apart, with others between them.
    check(
        &database,
        &[
            ("a", "waiting", "-", "-"),
            ("b", "completed", "1", "2"),
            ("+c", "completed", "1", "2"),
            ("+a", "waiting", "-", "-"),
            ("+a", "completed", "1", "2"),
        ],
        "",
        false,
    );
}

#[test]
fn a_start_before_an_earlier_tasks_cancel_is_found() {
    let database = Database::new();
    check(&database, &[("a", "canceled", "-", "5"), ("a", "completed", "4", "6")], "", false);
}

#[test]
fn a_second_start_is_found() {
    let database = Database::new();
    let one = [("a", "completed", "1", "2")];
    check(&database, &one, "UPDATE millhand.task SET attempt = 2", false);
    check(&database, &one, "UPDATE millhand.task SET attempt = 0", false);
    check(&database, &one, "UPDATE millhand.task SET fence = NULL", false);
    let two = [("a", "completed", "1", "2"), ("b", "completed", "1", "2")];
    check(&database, &two, "UPDATE millhand.task SET fence = 7", false);
}

#[test]
fn a_row_that_its_state_does_not_allow_is_found() {
    let database = Database::new();
    let ended = [("a", "completed", "1", "2")];
    let runs = [("a", "running", "1", "-")];
    let waits = [("a", "waiting", "-", "-")];
    for (history, damage) in [
        (&ended[..], "finished_at = NULL"),
        (&ended, "started_at = NULL"),
        (&ended, "owner = (SELECT id FROM millhand.worker)"),
        (&ended, "position = NULL"),
        (&ended, "created_at = to_timestamp(1.5)"),
        (&ended, "finished_at = to_timestamp(0.5)"),
        (&ended, "state = 'done'"),
        (&ended, "state = 'failed'"),
        (&ended, "error = 'reason'"),
        (&runs, "owner = NULL"),
        (&runs, "owner = -1"),
        (&runs, "finished_at = to_timestamp(3)"),
        (&runs, "started_at = NULL"),
        (&waits, "position = NULL"),
        (&waits, "finished_at = to_timestamp(3)"),
        (&waits, "owner = (SELECT id FROM millhand.worker)"),
        (&waits, "state = 'scheduled'"),
        (&waits, "state = 'canceled'"),
    ] {
        check(&database, history, &format!("UPDATE millhand.task SET {damage}"), false);
    }
}

#[test]
fn a_position_held_twice_is_found() {
    let database = Database::new();
    let two = [("a", "completed", "1", "2"), ("b", "completed", "1", "2")];
    check(&database, &two, "UPDATE millhand.task SET position = 7", false);
}

/// Random histories, most of them broken somewhere: the judges must agree on
/// each.
#[test]
fn the_judges_agree_on_random_histories() {
    let database = Database::new();
    History(&[]).write(&database);
    let mut connection = database.connect();
    let seed = i32::try_from(crate::support::random() % 1_000_000).unwrap();
    let (mut n_sound, mut n_broken) = (0, 0);
    for round in 0..200 {
        connection
            .batch_execute(&format!(
                "TRUNCATE millhand.task;
                 SELECT setseed({});
                 INSERT INTO millhand.task
                   (name, state, position, exclusive, shared, fence, attempt, created_at, started_at, finished_at)
                 SELECT 't', 'completed', n, exclusive, shared, n, 1, to_timestamp(0),
                        to_timestamp(start), to_timestamp(start + random() * {})
                   FROM (SELECT n, n + random() * 2 AS start,
                                CASE WHEN random() < 0.6 THEN ARRAY[chr(97 + (random() * 6)::int)] ELSE '{{}}' END AS exclusive,
                                CASE WHEN random() < 0.6 THEN ARRAY[chr(97 + (random() * 6)::int)] ELSE '{{}}' END AS shared
                           FROM generate_series(1, 8) AS n) AS drawn",
                f64::from((seed + round) % 1_000_000) / 1e6,
                1 + round % 3
            ))
            .unwrap();
        let sql = judge_in_sql(&mut connection);
        let pairs = judge_pairs(&mut connection).unwrap();
        assert_eq!(
            sql.is_empty(),
            pairs.is_empty(),
            "seed {seed} round {round}\noracle.sql says {sql:#?}\nthe check of pairs says {pairs:#?}\n{}",
            database.task_table()
        );
        if pairs.is_empty() { n_sound += 1 } else { n_broken += 1 }
    }
    assert!(n_sound > 5 && n_broken > 5, "{n_sound} sound and {n_broken} broken: too one-sided");
}
