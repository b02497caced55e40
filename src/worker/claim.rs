//! The seam between the threads of a worker process and its lock back end.
//!
//! A process has one `BackEnd`; each of its threads has `Claims` from it.

pub(crate) mod postgres;
pub(crate) mod redis;
mod rest;

use std::sync::{Arc, Mutex};

use ::postgres::types::Json;
use serde_json::value::{RawValue, to_raw_value};

use super::Shared;
use super::args::Args;
use super::inbox::Inbox;
use super::tail::Tail;
use crate::error::Error;
use crate::task::{NewTask, TaskId};

/// A task that this worker owns and has to run.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) id: TaskId,
    pub(crate) name: String,
    pub(crate) args: Args,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
    pub(crate) exclusive: Vec<String>,
    pub(crate) shared: Vec<String>,
}

/// How a task ended, as far as its handler goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    pub(crate) completed: bool,
    /// As its handler wrote it: Postgres holds more numbers than we do.
    pub(crate) result: Option<Json<Box<RawValue>>>,
    pub(crate) error: Option<String>,
    pub(crate) log: Option<String>,
    /// How long that was in all.
    pub(crate) log_size: Option<i64>,
    /// What the task reported last, unless that is stored.
    pub(crate) progress: Option<Json<Box<RawValue>>>,
    /// Its copy of the log outlives this process, and is gone when the end is stored.
    pub(crate) tail: Option<Arc<Mutex<Tail>>>,
}

impl Outcome {
    pub(crate) fn completed(result: Box<RawValue>) -> Outcome {
        Outcome { completed: true, result: Some(Json(result)), ..Outcome::default() }
    }

    pub(crate) fn failed(error: impl Into<String>) -> Outcome {
        Outcome { error: Some(error.into()), ..Outcome::default() }
    }

    /// The database does not take it as it is, which is most likely the fault of the
    /// result: makes text of that. (If not, it is the progress.)
    pub(crate) fn make_result_text(&mut self) {
        self.progress = None;
        if let Some(Json(result)) = &mut self.result {
            *result = text_as_json(result.get());
        }
    }

    /// The database does not take that either. Why a task failed is worth more than that
    /// something else could not be stored.
    pub(crate) fn leave_out_result(&mut self, why: &str) {
        self.result = None;
        if std::mem::take(&mut self.completed) {
            self.error = Some(format!("the result could not be stored: {why}"));
        }
    }

    /// The same once more: nothing but a reason, in plain characters.
    pub(crate) fn leave_out_log(&mut self) {
        self.log = None;
        let plain = |c: char| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' };
        let reason = self.error.as_deref().unwrap_or_default();
        self.error = Some(reason.chars().take(1000).map(plain).collect());
    }

    /// The state that it means, as in the table.
    pub(crate) fn state(&self) -> &'static str {
        if self.completed { "completed" } else { "failed" }
    }
}

/// This text as a JSON string.
pub(crate) fn text_as_json(text: &str) -> Box<RawValue> {
    to_raw_value(text).expect("text is valid JSON")
}

/// A task that has ended and whose final state is not stored yet.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) id: TaskId,
    pub(crate) outcome: Outcome,
}

/// What came of a turn.
#[derive(Debug)]
pub(crate) enum Turn {
    /// What had ended is stored, and this task is to be run.
    Task(Claimed),
    /// What had ended is stored; there is no task, and perhaps news in the inbox.
    Nothing,
    /// The claim is lost, as the inbox knows; nothing was done.
    Lost,
    /// The ended task was not this worker's any more; nothing was written.
    NotOwned,
}

/// What a thread held before it lost its claim.
#[derive(Debug, Clone)]
pub(crate) struct Previous {
    pub(crate) worker: i64,
    pub(crate) begun: Begun,
}

/// What a worker has begun under one id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Begun {
    /// The fencing token of the last start whose handler it began; what was started for it
    /// later was only claimed.
    pub(crate) fence: Option<i64>,
    /// The task of that start, its name and its attempt, until its end is stored.
    pub(crate) task: Option<(TaskId, String, i32)>,
}

/// What a worker process has of its lock back end.
pub(crate) trait BackEnd: Send + Sync {
    /// Settles what the thread owned before, and registers it as a new worker.
    fn open<'a>(
        &'a self,
        shared: &'a Shared,
        index: usize,
        name: &str,
        previous: Option<&Previous>,
    ) -> Result<Box<dyn Claims + 'a>, Error>;

    /// There may be work: sees to it that an idle worker looks.
    fn ring(&self);

    /// Connects to where wake-ups and cancels come from and passes them on,
    /// until the workers have left or the connection ends, which is the error.
    /// Calls `connected` once it hears.
    fn listen(&self, shared: &Arc<Shared>, connected: &mut dyn FnMut()) -> Result<(), Error>;

    /// How many turns were begun so far.
    fn n_turns(&self) -> u64;

    /// Sees to it that no lock stays that nobody holds. It is time to, and workers that
    /// are missing have just been settled.
    fn tidy_up(&self);
}

/// A worker's hold on the lock back end, under one worker id. Dropping it lets
/// go of every lock.
///
/// What it must keep: a task is started by a guarded update of its row only,
/// and its locks are let go after its final state is committed, not before.
pub(crate) trait Claims {
    /// The worker id of this hold.
    fn worker(&self) -> i64;

    /// Stores how a task ended, if one did, and starts the next one if `wanted`,
    /// in one transaction. Without a task it waits for one, or for news in the
    /// inbox.
    fn next_task(
        &mut self,
        inbox: &Inbox,
        ended: Option<&Ended>,
        wanted: bool,
    ) -> Result<Turn, Error>;

    /// After a turn that failed: lets go of what it had locked, so that the next
    /// turn begins as planned; false if the hold is gone.
    fn recover(&mut self) -> bool;

    /// Looks whether the hold is still there, because somebody doubts it.
    fn verify(&mut self) -> bool;

    /// Creates another task, at once.
    fn dispatch(&mut self, task: &NewTask) -> Result<TaskId, Error>;

    /// Takes the worker's row away; it owns nothing by now.
    fn leave(&mut self) -> Result<(), Error>;
}
