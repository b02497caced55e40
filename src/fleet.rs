//! What the fleet looks like from outside: its workers, and counts of tasks.
//!
//! Reads only, on any connection; nothing here decides anything.

use std::collections::BTreeMap;

use jiff::Timestamp;
use postgres::GenericClient;
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::row::Moment;
use crate::task::{TaskId, TaskState};

/// One row of `millhand.worker`, with the task that it runs.
#[derive(Debug, Clone, Serialize)]
pub struct WorkerInfo {
    /// Its number; drawn anew at each start.
    pub id: i64,
    /// Its name, from the name template.
    pub name: String,
    /// Which locks it uses.
    pub r#type: String,
    /// What the workers of one process share.
    pub process: String,
    /// The machine that it runs on.
    pub hostname: String,
    /// Its process there.
    pub pid: i32,
    /// When it registered.
    pub started_at: Timestamp,
    /// When it renewed its row last.
    pub last_heartbeat: Timestamp,
    /// Seconds since then, by the database's clock.
    pub heartbeat_age: f64,
    /// Whether that is less than its ttl.
    pub online: bool,
    /// Whether it leaves housekeeping to others.
    pub auxiliary: bool,
    /// The task that it runs.
    pub task: Option<TaskId>,
    /// That task's name.
    pub task_name: Option<String>,
}

/// Counts of tasks and workers.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The version of the database's schema.
    pub schema_version: i32,
    /// Number of tasks in each state, also where it is 0.
    pub tasks: BTreeMap<&'static str, i64>,
    /// Of these, the number that ended within the last hour.
    pub last_hour: BTreeMap<&'static str, i64>,
    /// Seconds since the oldest waiting task was dispatched; none if none waits.
    pub oldest_waiting: Option<f64>,
    /// Seconds since the start of the task that runs longest; none if none runs.
    pub longest_running: Option<f64>,
    /// Workers within their ttl.
    pub workers_online: i64,
    /// Workers past their ttl that have not been swept yet.
    pub workers_missing: i64,
}

/// Every worker, oldest first.
pub fn workers(client: &mut impl GenericClient) -> Result<Vec<WorkerInfo>, Error> {
    let doing = "could not list workers";
    client
        .query_typed(include_str!("../sql/queries/workers.sql"), &[])
        .map_err(|error| Error::postgres(doing, error))?
        .iter()
        .map(worker_from_row)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Bug { doing: doing.to_owned(), source: error.into() })
}

/// Counts tasks and workers in one statement.
pub fn status(client: &mut impl GenericClient) -> Result<Status, Error> {
    let doing = "could not read the status";
    let row = client
        .query_typed_one(include_str!("../sql/queries/status.sql"), &[])
        .map_err(|error| Error::postgres(doing, error))?;
    status_from_row(&row)
        .map_err(|error| Error::Bug { doing: doing.to_owned(), source: error.into() })
}

fn worker_from_row(row: &postgres::Row) -> Result<WorkerInfo, postgres::Error> {
    Ok(WorkerInfo {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        r#type: row.try_get("type")?,
        process: row.try_get("process")?,
        hostname: row.try_get("hostname")?,
        pid: row.try_get("pid")?,
        started_at: row.try_get::<_, Moment>("started_at")?.0,
        last_heartbeat: row.try_get::<_, Moment>("last_heartbeat")?.0,
        heartbeat_age: row.try_get("heartbeat_age")?,
        online: row.try_get("online")?,
        auxiliary: row.try_get("auxiliary")?,
        task: row.try_get::<_, Option<i64>>("task")?.map(TaskId),
        task_name: row.try_get("task_name")?,
    })
}

fn status_from_row(row: &postgres::Row) -> Result<Status, postgres::Error> {
    let (all, recent): (Value, Value) = (row.try_get("tasks")?, row.try_get("last_hour")?);
    let count = |of: &Value, state: TaskState| of[state.as_str()].as_i64().unwrap_or(0);
    let counts = |of: &Value, states: &[TaskState]| -> BTreeMap<&'static str, i64> {
        states.iter().map(|&state| (state.as_str(), count(of, state))).collect()
    };
    let ends = TaskState::ALL.into_iter().filter(|state| state.is_final());
    Ok(Status {
        schema_version: row.try_get::<_, Option<i32>>("schema_version")?.unwrap_or(0),
        tasks: counts(&all, &TaskState::ALL),
        last_hour: counts(&recent, &ends.collect::<Vec<_>>()),
        oldest_waiting: row.try_get("oldest_waiting")?,
        longest_running: row.try_get("longest_running")?,
        workers_online: row.try_get("workers_online")?,
        workers_missing: row.try_get("workers_missing")?,
    })
}
