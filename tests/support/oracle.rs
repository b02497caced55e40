//! The oracle: reads the table after a run and says what should not be there.
//!
//! Two judges that share no code: `sql/queries/oracle.sql`, which reads tables
//! of any size, and the check of all pairs below, which is too slow for more
//! than some thousand tasks and too simple to be wrong. They must agree on
//! whether a history is sound.
//!
//! What both check:
//!
//! - order (R1): of two tasks that conflict, the one with the higher position
//!   starts after the final state of the other;
//! - one start (R4): a task starts at most once, under a fencing token that no
//!   other start has;
//! - the state machine: each column says what the state allows it to say, and
//!   time goes forward.

use std::collections::HashMap;

use jiff::Timestamp;
use postgres::Client;

use super::database::Database;

/// How many tasks are judged by pairs.
const MOST_PAIRED: usize = 5000;

/// Panics, with what is wrong and the tasks, unless the history is sound.
#[track_caller]
pub(crate) fn assert_sound(database: &Database) {
    let mut connection = database.connect();
    let sql = judge_in_sql(&mut connection);
    let pairs = judge_pairs(&mut connection).unwrap_or_default();
    assert!(
        sql.is_empty() && pairs.is_empty(),
        "the history is broken\noracle.sql says {sql:#?}\nthe check of pairs says {pairs:#?}\n{}",
        database.task_table()
    );
}

/// One line a violation that `oracle.sql` found.
pub(crate) fn judge_in_sql(connection: &mut Client) -> Vec<String> {
    let oracle = include_str!("../../sql/queries/oracle.sql");
    connection
        .query(&format!("SELECT to_jsonb(violation)::text FROM (\n{oracle}\n) AS violation"), &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// What the check of pairs needs of a row.
#[derive(Debug)]
struct Row {
    id: i64,
    state: String,
    position: Option<i64>,
    exclusive: Vec<String>,
    shared: Vec<String>,
    owner: Option<i64>,
    owner_exists: bool,
    fence: Option<i64>,
    attempt: i32,
    has_error: bool,
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

impl Row {
    fn is_final(&self) -> bool {
        matches!(self.state.as_str(), "completed" | "failed" | "canceled")
    }

    fn runs(&self) -> bool {
        matches!(self.state.as_str(), "running" | "canceling")
    }

    fn conflicts_with(&self, other: &Row) -> bool {
        let needs =
            |row: &Row, name: &String| row.exclusive.contains(name) || row.shared.contains(name);
        self.exclusive.iter().any(|name| needs(other, name))
            || other.exclusive.iter().any(|name| needs(self, name))
    }
}

/// One line a violation, found by looking at each task and each pair of them;
/// none if there are too many tasks.
pub(crate) fn judge_pairs(connection: &mut Client) -> Option<Vec<String>> {
    let rows = read_rows(connection);
    if rows.len() > MOST_PAIRED {
        return None;
    }
    let mut violations: Vec<String> = rows.iter().flat_map(judge_row).collect();
    let mut starts: HashMap<i64, i64> = HashMap::new();
    let mut places: HashMap<i64, i64> = HashMap::new();
    for row in &rows {
        if let Some(other) = row.fence.and_then(|fence| starts.insert(fence, row.id)) {
            violations.push(format!("tasks {other} and {} have one fencing token", row.id));
        }
        if let Some(other) = row.position.and_then(|position| places.insert(position, row.id)) {
            violations.push(format!("tasks {other} and {} have one position", row.id));
        }
    }
    for first in &rows {
        for second in &rows {
            let in_order = match (first.position, second.position) {
                (Some(first), Some(second)) => first < second,
                _ => false,
            };
            if in_order && second.started_at.is_some() && first.conflicts_with(second) {
                violations.extend(judge_pair(first, second));
            }
        }
    }
    Some(violations)
}

/// `first` has the lower position, they conflict, `second` was started.
fn judge_pair(first: &Row, second: &Row) -> Option<String> {
    let pair = format!("task {} started", second.id);
    match first.finished_at {
        Some(end) if first.is_final() && Some(end) <= second.started_at => None,
        Some(end) => {
            Some(format!("{pair} before task {}, which comes first, ended at {end}", first.id))
        }
        None => {
            Some(format!("{pair} while task {}, which comes first, is {}", first.id, first.state))
        }
    }
}

fn judge_row(row: &Row) -> Vec<String> {
    let must_have_started = row.runs() || matches!(row.state.as_str(), "completed" | "failed");
    let known =
        row.is_final() || row.runs() || matches!(row.state.as_str(), "scheduled" | "waiting");
    let rules = [
        (!known, "has an unknown state"),
        (row.is_final() != row.finished_at.is_some(), "has an end exactly if it is not final"),
        (row.runs() != row.owner.is_some(), "has an owner exactly if it does not run"),
        (row.owner.is_some() && !row.owner_exists, "has an owner that is no worker"),
        (must_have_started && row.started_at.is_none(), "was never started"),
        (row.state == "scheduled" && row.position.is_some(), "is scheduled and has a position"),
        (
            row.position.is_none() && (row.state == "waiting" || row.started_at.is_some()),
            "has no position",
        ),
        (row.state == "completed" && row.has_error, "has an error"),
        (row.state == "failed" && !row.has_error, "has no error"),
        (row.attempt > 1, "was started more than once"),
        (row.started_at.is_some() && row.attempt < 1, "was started in no attempt"),
        (row.started_at.is_some() && row.fence.is_none(), "was started without a fencing token"),
        (
            row.started_at.is_some_and(|start| start < row.created_at),
            "started before it was created",
        ),
        (row.finished_at.is_some_and(|end| end < row.created_at), "ended before it was created"),
        (
            row.finished_at.is_some_and(|end| row.started_at.is_some_and(|start| end < start)),
            "ended before it started",
        ),
    ];
    rules
        .into_iter()
        .filter(|(broken, _)| *broken)
        .map(|(_, what)| format!("task {} ({}) {what}", row.id, row.state))
        .collect()
}

fn read_rows(connection: &mut Client) -> Vec<Row> {
    connection
        .query(
            "SELECT id, state, position, exclusive, shared, owner,
                    EXISTS (SELECT FROM millhand.worker w WHERE w.id = t.owner), fence, attempt,
                    created_at, started_at, finished_at, error IS NOT NULL
               FROM millhand.task t",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| Row {
            id: row.get(0),
            state: row.get(1),
            position: row.get(2),
            exclusive: row.get(3),
            shared: row.get(4),
            owner: row.get(5),
            owner_exists: row.get(6),
            fence: row.get(7),
            attempt: row.get(8),
            created_at: row.get(9),
            started_at: row.get(10),
            finished_at: row.get(11),
            has_error: row.get(12),
        })
        .collect()
}
