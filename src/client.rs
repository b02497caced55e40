//! Dispatch, cancel and read tasks, on any `postgres` client or transaction.
//!
//! What happens inside a transaction is part of it: rolled back, there is no
//! task, no cancel and no wake-up.
//!
//! Here and wherever commands ask, types are said with the statement (`query_typed`): what
//! has to ask for them first takes one round trip more, and leaves a prepared statement in a
//! session that a pooler may give to somebody else in between.

use std::borrow::Cow;
use std::collections::BTreeSet;

use jiff::Timestamp;
use postgres::types::Type;
use postgres::{GenericClient, Transaction};
use serde_json::Value;

use crate::error::{self, Error};
use crate::row;
use crate::task::{NewTask, Task, TaskId, TaskState};

/// Creates a waiting task and returns its id.
pub fn dispatch(client: &mut impl GenericClient, task: &NewTask) -> Result<TaskId, Error> {
    let row = client
        .query_typed_one(
            include_str!("../sql/queries/dispatch.sql"),
            &[
                (&task.name, Type::TEXT),
                (&task.args, Type::JSONB),
                (&task.exclusive, Type::TEXT_ARRAY),
                (&task.shared, Type::TEXT_ARRAY),
            ],
        )
        .map_err(|error| {
            Error::postgres(&format!("could not dispatch a task `{}`", short(&task.name)), error)
        })?;
    Ok(TaskId(row.get(0)))
}

/// Creates many waiting tasks in one statement, in the order given, and
/// returns their ids in that order. All or none are created.
pub fn dispatch_many(
    client: &mut impl GenericClient,
    tasks: &[NewTask],
) -> Result<Vec<TaskId>, Error> {
    let array = serde_json::to_value(tasks).map_err(|error| Error::Bug {
        doing: "could not write tasks as JSON".to_owned(),
        source: error.into(),
    })?;
    let rows = client
        .query_typed(include_str!("../sql/queries/dispatch_many.sql"), &[(&array, Type::JSONB)])
        .map_err(|error| {
            Error::postgres(&format!("could not dispatch {} tasks", tasks.len()), error)
        })?;
    Ok(rows.iter().map(|row| TaskId(row.get(0))).collect())
}

/// Cancels a task and returns its state then: `canceled` if it had not
/// started, `canceling` while its worker stops it, or the final state that it
/// had reached before.
pub fn cancel(client: &mut impl GenericClient, id: TaskId) -> Result<TaskState, Error> {
    let row = client
        .query_typed_one(include_str!("../sql/queries/cancel.sql"), &[(&id.0, Type::INT8)])
        .map_err(|error| Error::postgres(&format!("could not cancel task {id}"), error))?;
    match row.get::<_, Option<&str>>(0) {
        Some(state) => read_state(state),
        None => Err(not_found(id)),
    }
}

/// Reads one task.
pub fn get_task(client: &mut impl GenericClient, id: TaskId) -> Result<Task, Error> {
    let doing = format!("could not read task {id}");
    let row = client
        .query_typed_opt(include_str!("../sql/queries/get_task.sql"), &[(&id.0, Type::INT8)])
        .map_err(|error| Error::postgres(&doing, error))?
        .ok_or_else(|| not_found(id))?;
    Task::from_row(&row)
}

/// Which tasks are listed.
#[derive(Debug, Clone)]
pub struct TaskFilter {
    /// Those in one of these states; all if empty.
    pub states: Vec<TaskState>,
    /// Those of this name.
    pub name: Option<String>,
    /// Those that need this resource, exclusively or shared.
    pub resource: Option<String>,
    /// Those that the worker of this name runs, or ran last.
    pub worker: Option<String>,
    /// Those dispatched at this moment, by the database's clock, or later.
    pub since: Option<Timestamp>,
    /// Whether the oldest come first, instead of the newest.
    pub oldest_first: bool,
    /// So many at most.
    pub limit: u32,
}

impl Default for TaskFilter {
    /// The newest 50.
    fn default() -> TaskFilter {
        TaskFilter {
            states: Vec::new(),
            name: None,
            resource: None,
            worker: None,
            since: None,
            oldest_first: false,
            limit: 50,
        }
    }
}

/// The tasks that pass the filter, newest first unless it says otherwise.
pub fn list_tasks(
    client: &mut impl GenericClient,
    filter: &TaskFilter,
) -> Result<Vec<Task>, Error> {
    let doing = "could not list tasks";
    let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
    // One statement for both directions would have to sort all of the table.
    let query = match filter.oldest_first {
        false => Cow::Borrowed(include_str!("../sql/queries/list_tasks.sql")),
        true => include_str!("../sql/queries/list_tasks.sql").replace("id DESC", "id").into(),
    };
    let tasks = client
        .query_typed(
            &query,
            &[
                (&states, Type::TEXT_ARRAY),
                (&filter.name, Type::TEXT),
                (&filter.resource, Type::TEXT),
                (&filter.worker, Type::TEXT),
                (&filter.since, Type::TIMESTAMPTZ),
                (&i64::from(filter.limit), Type::INT8),
            ],
        )
        .map_err(|error| Error::postgres(doing, error))?
        .iter()
        .filter_map(|row| match Task::from_row(row) {
            Ok(task) => Some(task),
            Err(error) => {
                // The others can be shown.
                log::warn!("{}", error::chain(&error));
                None
            }
        })
        .collect();
    Ok(tasks)
}

/// What a task's command has written to stderr, as far as it is stored: while it runs,
/// that is up to a few seconds ago.
#[derive(Debug, Clone)]
pub struct TaskLog {
    /// The last 64 KiB; empty for handlers that are functions.
    pub text: String,
    /// How many bytes there were in all.
    pub size: u64,
    /// Where the task is in its life: of one that is final, this is all.
    pub state: TaskState,
}

/// Reads a task's log.
pub fn task_log(client: &mut impl GenericClient, id: TaskId) -> Result<TaskLog, Error> {
    let row = client
        .query_typed_opt(include_str!("../sql/queries/task_log.sql"), &[(&id.0, Type::INT8)])
        .map_err(|error| Error::postgres(&format!("could not read the log of task {id}"), error))?
        .ok_or_else(|| not_found(id))?;
    let size: i64 = row.get("log_size");
    let state = read_state(row.get("state"))?;
    Ok(TaskLog { text: row.get("log"), size: size.unsigned_abs(), state })
}

/// State and progress of those of these tasks that exist, in no order.
pub fn task_states(
    client: &mut impl GenericClient,
    ids: &[TaskId],
) -> Result<Vec<(TaskId, TaskState, Option<Value>)>, Error> {
    let numbers: Vec<i64> = ids.iter().map(|id| id.0).collect();
    let rows = client
        .query_typed(
            include_str!("../sql/queries/task_states.sql"),
            &[(&numbers, Type::INT8_ARRAY)],
        )
        .map_err(|error| Error::postgres("could not read the states of tasks", error))?;
    rows.iter()
        .map(|row| {
            let progress = row.get::<_, Option<row::Json>>(2).map(|json| json.0);
            Ok((TaskId(row.get(0)), read_state(row.get(1))?, progress))
        })
        .collect()
}

/// Fails, as `dispatch` would, if this task could not be dispatched.
pub fn check_task(client: &mut impl GenericClient, task: &NewTask) -> Result<(), Error> {
    client
        .query_typed(
            include_str!("../sql/queries/check_task.sql"),
            &[
                (&task.name, Type::TEXT),
                (&task.args, Type::JSONB),
                (&task.exclusive, Type::TEXT_ARRAY),
                (&task.shared, Type::TEXT_ARRAY),
            ],
        )
        .map_err(|error| {
            Error::postgres(&format!("could not check a task `{}`", short(&task.name)), error)
        })?;
    Ok(())
}

/// Takes the dispatch locks of all these tasks until the transaction ends, so
/// that they can be dispatched by several calls without a deadlock.
pub fn lock_places(transaction: &mut Transaction<'_>, tasks: &[NewTask]) -> Result<(), Error> {
    let names = |of: fn(&NewTask) -> &Vec<String>| -> Vec<&str> {
        let names: BTreeSet<&str> = tasks.iter().flat_map(of).map(String::as_str).collect();
        names.into_iter().collect()
    };
    transaction
        .query_typed(
            include_str!("../sql/queries/lock_places.sql"),
            &[
                (&names(|task| &task.exclusive), Type::TEXT_ARRAY),
                (&names(|task| &task.shared), Type::TEXT_ARRAY),
            ],
        )
        .map_err(|error| Error::postgres("could not dispatch tasks", error))?;
    Ok(())
}

/// A state that only a newer program knows, or a hand, is no state of ours.
fn read_state(text: &str) -> Result<TaskState, Error> {
    text.parse().map_err(|what: String| Error::Bug {
        doing: "could not read a task's state".to_owned(),
        source: what.into(),
    })
}

fn not_found(id: TaskId) -> Error {
    Error::NotFound(format!("there is no task {id}"))
}

fn short(name: &str) -> String {
    name.chars().take(100).collect()
}
