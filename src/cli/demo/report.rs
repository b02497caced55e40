//! What came out of the demo: the table, and everything that is not right.

use std::io::Write;

use millhand::client::TaskFilter;
use millhand::{Error, TaskId, TaskState, client};
use postgres::Client;
use serde_json::Value;

use crate::cli::output::{printable, seconds, table};
use crate::cli::{Failure, oracle};

/// At most so many lines about what is not right.
const N_LINES: usize = 20;

/// A publish or verify, and how many files its index must have.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) id: TaskId,
    pub(super) entries: usize,
}

/// Prints what came out and returns whether all of it is right.
pub(super) fn report(
    client: &mut Client,
    n_tasks: usize,
    expected: &[Expected],
    mut problems: Vec<String>,
) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}\n", times(client)?)?;

    let mut n_published = 0;
    let mut n_verified = 0;
    let mut n_ok = 0;
    for Expected { id, entries } in expected {
        let task = client::get_task(client, *id)?;
        if task.state != TaskState::Completed {
            continue;
        }
        let result = task.result.unwrap_or_default();
        let number = |field: &str| result.get(field).and_then(Value::as_u64).unwrap_or_default();
        let said = number("entries");
        if said != *entries as u64 {
            problems.push(format!(
                "task {id} ({}): the index has {said} files, {entries} were asked for before it",
                task.name
            ));
        } else if task.name == "publish" {
            n_published += 1;
        }
        if task.name == "verify" {
            n_verified += 1;
            n_ok += number("ok");
            if number("ok") != said {
                problems.push(format!(
                    "task {id}: sha256sum says that {} of {said} files are OK",
                    number("ok")
                ));
            }
        }
    }
    let failed = client::list_tasks(
        client,
        &TaskFilter {
            states: vec![TaskState::Failed, TaskState::Canceled],
            limit: 1000,
            ..TaskFilter::default()
        },
    )?;
    for task in &failed {
        let log = client::task_log(client, task.id)?;
        let last = log.text.lines().last().unwrap_or_default();
        let error = task.error.as_deref().unwrap_or_default();
        problems.push(format!("task {} ({}) {}: {error}: {last}", task.id, task.name, task.state));
    }
    let violations = oracle::verdict(client)?;
    writeln!(out, "sha256sum  {n_ok} files OK in {n_verified} checks")?;
    writeln!(out, "indexes    {n_published} with exactly the files asked for before them")?;
    match violations.len() {
        0 => writeln!(out, "oracle     no violation of the order in {n_tasks} tasks")?,
        n => writeln!(out, "oracle     {n} violations of the order in {n_tasks} tasks")?,
    }
    problems.extend(violations);

    for problem in problems.iter().take(N_LINES) {
        writeln!(out, "WRONG      {}", printable(problem))?;
    }
    if problems.len() > N_LINES {
        writeln!(out, "WRONG      ... and {} more", problems.len() - N_LINES)?;
    }
    Ok(problems.is_empty())
}

fn times(client: &mut Client) -> Result<String, Error> {
    let rows = client
        .query(include_str!("../../../sql/queries/task_times.sql"), &[])
        .map_err(|error| Error::postgres("could not read the times of the tasks", error))?;
    let rows = rows.iter().map(|row| {
        let mut cells = vec![row.get("name"), row.get::<_, i64>("count").to_string()];
        for column in ["wait_p50", "wait_p95", "run_p50", "run_p95"] {
            cells.push(seconds(row.get(column)));
        }
        cells
    });
    Ok(table(&["task", "count", "wait p50", "wait p95", "run p50", "run p95"], rows))
}
