//! The seam between a worker thread and its lock back end.

pub(crate) mod postgres;

use ::postgres::Client;
use serde_json::Value;

use super::Sight;
use super::crew::Plan;
use crate::error::Error;
use crate::task::TaskId;

/// A task that this worker owns and has to run.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) id: TaskId,
    pub(crate) name: String,
    pub(crate) args: Value,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
}

/// How a task ended, as far as its handler goes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) completed: bool,
    pub(crate) result: Option<Value>,
    pub(crate) error: Option<String>,
    pub(crate) log: Option<String>,
}

impl Outcome {
    pub(crate) fn completed(result: Value) -> Outcome {
        Outcome { completed: true, result: Some(result), error: None, log: None }
    }

    pub(crate) fn failed(error: impl Into<String>) -> Outcome {
        Outcome { completed: false, result: None, error: Some(error.into()), log: None }
    }
}

/// A task that has ended and whose final state is not stored yet.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) id: TaskId,
    pub(crate) outcome: Outcome,
}

/// What came of a turn.
pub(crate) struct Turn {
    /// False if the ended task was not this worker's any more: the claim is
    /// lost, and with it every other answer.
    pub(crate) owned: bool,
    pub(crate) task: Option<Claimed>,
    pub(crate) more: bool,
    pub(crate) inconclusive: bool,
    pub(crate) unfinished: bool,
    pub(crate) bell_hung: bool,
}

/// A worker's hold on the lock back end, under one worker id. Dropping it lets
/// go of every lock.
///
/// What it must keep: a task is started by a guarded update of its row only,
/// and its locks are let go after its final state is committed, not before.
pub(crate) trait Claims {
    /// The worker id of this hold.
    fn worker(&self) -> i64;

    /// Stores how a task ended, if one did, and starts the next one if
    /// `wanted`, in one transaction.
    fn next_task(
        &mut self,
        ended: Option<&Ended>,
        wanted: bool,
        sight: &Sight,
        plan: Plan,
    ) -> Result<Turn, Error>;

    /// After a turn that failed on a living connection: lets go of what it had
    /// locked, the bell too, so that the next turn begins as planned.
    fn recover(&mut self) -> Result<(), Error>;

    /// The connection for the task's own short statements.
    fn client(&mut self) -> &mut Client;

    /// Whether the hold is known to be gone.
    fn is_lost(&mut self) -> bool;

    /// Takes the worker's row away; it owns nothing by now.
    fn leave(&mut self) -> Result<(), Error>;
}
