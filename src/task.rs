//! What a task is: its id, its states, and what a row of `millhand.task` says.

use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::row::{Json, Moment, Names};

/// The number of a task, drawn by the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub i64);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(TaskId)
    }
}

/// Where a task is in its life.
///
/// | from | to | who may take the step |
/// |---|---|---|
/// | `scheduled` | `waiting` | housekeeping, when it is due |
/// | `waiting` | `running` | a worker, which becomes the owner |
/// | `running` | `completed`, `failed` | the owner |
/// | `scheduled`, `waiting` | `canceled` | anyone: nothing runs that had to be stopped |
/// | `running` | `canceling` | anyone |
/// | `canceling` | `canceled` | the owner |
/// | `running` | `waiting` | the owner, if the handler was never begun |
///
/// The owner of a task whose worker has died is whoever sweeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// It waits for a time; it has no position and reserves nothing.
    Scheduled,
    /// It has a position and reserves its resources against later tasks.
    Waiting,
    /// A worker owns it.
    Running,
    /// Somebody asked its owner to end it.
    Canceling,
    /// Its handler succeeded.
    Completed,
    /// Its handler failed or its worker died.
    Failed,
    /// It was canceled, before or while it ran.
    Canceled,
}

impl TaskState {
    /// Every state, in the order of a task's life.
    pub const ALL: [TaskState; 7] = [
        TaskState::Scheduled,
        TaskState::Waiting,
        TaskState::Running,
        TaskState::Canceling,
        TaskState::Completed,
        TaskState::Failed,
        TaskState::Canceled,
    ];

    /// The name, as in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Scheduled => "scheduled",
            TaskState::Waiting => "waiting",
            TaskState::Running => "running",
            TaskState::Canceling => "canceling",
            TaskState::Completed => "completed",
            TaskState::Failed => "failed",
            TaskState::Canceled => "canceled",
        }
    }

    /// Whether nothing can change any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, TaskState::Completed | TaskState::Failed | TaskState::Canceled)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TaskState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TaskState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("unknown state `{text}`"))
    }
}

/// A task to dispatch.
///
/// ```
/// let task = millhand::NewTask::new("publish")
///     .args(serde_json::json!({"repository": "stable"}))
///     .exclusive("repository:stable");
/// # assert_eq!(task.exclusive, ["repository:stable"]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// The name of its handler.
    pub name: String,
    /// What the handler gets; at most 1 MiB.
    #[serde(default = "empty_object")]
    pub args: Value,
    /// Resources that nobody else may use while it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclusive: Vec<String>,
    /// Resources that it uses together with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<String>,
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

impl NewTask {
    /// A task for the handler of this name, without arguments and resources.
    pub fn new(name: impl Into<String>) -> NewTask {
        NewTask { name: name.into(), args: empty_object(), ..NewTask::default() }
    }

    /// Sets the arguments.
    #[must_use]
    pub fn args(mut self, args: Value) -> NewTask {
        self.args = args;
        self
    }

    /// Adds a resource that it needs exclusively.
    #[must_use]
    pub fn exclusive(mut self, resource: impl Into<String>) -> NewTask {
        self.exclusive.push(resource.into());
        self
    }

    /// Adds a resource that it shares.
    #[must_use]
    pub fn shared(mut self, resource: impl Into<String>) -> NewTask {
        self.shared.push(resource.into());
        self
    }
}

/// One row of `millhand.task`.
///
/// JSON that a [`Value`] cannot hold, such as `1e400`, is its text, as a string, and a
/// time out of range, such as `infinity`, is the end of the range.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    /// Its number.
    pub id: TaskId,
    /// The name of its handler.
    pub name: String,
    /// Where it is in its life.
    pub state: TaskState,
    /// Its place in the order of waiting; none while scheduled.
    pub position: Option<i64>,
    /// Resources it needs for itself.
    pub exclusive: Vec<String>,
    /// Resources it shares.
    pub shared: Vec<String>,
    /// What the handler gets.
    pub args: Value,
    /// Name of the worker that ran it last.
    pub worker: Option<String>,
    /// The fencing token of its last start.
    pub fence: Option<i64>,
    /// How often it was started.
    pub attempt: i32,
    /// What the handler reported last.
    pub progress: Option<Value>,
    /// What the handler returned.
    pub result: Option<Value>,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was dispatched.
    pub created_at: Timestamp,
    /// When it was started last.
    pub started_at: Option<Timestamp>,
    /// When it reached its final state.
    pub finished_at: Option<Timestamp>,
}

impl Task {
    /// Reads a row that has these columns under these names.
    pub(crate) fn from_row(row: &postgres::Row) -> Result<Task, Error> {
        let id: i64 = row.get("id");
        let doing = || format!("could not read task {id}");
        Task::read(row).map_err(|source| Error::Bug { doing: doing(), source })
    }

    fn read(row: &postgres::Row) -> Result<Task, Box<dyn StdError + Send + Sync>> {
        Ok(Task {
            id: TaskId(row.try_get("id")?),
            name: row.try_get("name")?,
            state: row.try_get::<_, &str>("state")?.parse::<TaskState>()?,
            position: row.try_get("position")?,
            exclusive: row.try_get::<_, Names>("exclusive")?.0,
            shared: row.try_get::<_, Names>("shared")?.0,
            args: row.try_get::<_, Json>("args")?.0,
            worker: row.try_get("worker")?,
            fence: row.try_get("fence")?,
            attempt: row.try_get("attempt")?,
            progress: row.try_get::<_, Option<Json>>("progress")?.map(|json| json.0),
            result: row.try_get::<_, Option<Json>>("result")?.map(|json| json.0),
            error: row.try_get("error")?,
            created_at: row.try_get::<_, Moment>("created_at")?.0,
            started_at: row.try_get::<_, Option<Moment>>("started_at")?.map(|at| at.0),
            finished_at: row.try_get::<_, Option<Moment>>("finished_at")?.map(|at| at.0),
        })
    }
}
