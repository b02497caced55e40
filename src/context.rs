//! What a handler that is a function sees while it runs.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::Error;
use crate::task::{NewTask, TaskId};
use crate::worker::claim::Claims;
use crate::worker::inbox::Inbox;
use crate::worker::reports::Reports;
use crate::worker::run::storable_json;

/// The running task, seen from its handler. It lives on the worker's thread.
pub struct Context<'a> {
    pub(crate) id: TaskId,
    pub(crate) name: &'a str,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
    pub(crate) claims: RefCell<&'a mut dyn Claims>,
    pub(crate) inbox: &'a Inbox,
    pub(crate) reports: &'a Reports,
}

impl Context<'_> {
    /// The task's number.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// The task's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name
    }

    /// The fencing token of this start: higher than that of any earlier start
    /// of any task, for storage that can refuse an older one.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }

    /// The number of this start of the task, from 1.
    #[must_use]
    pub fn attempt(&self) -> i32 {
        self.attempt
    }

    /// Whether the handler should end now: somebody canceled the task, the
    /// worker is being shut down by force, or it has lost its claim. What the
    /// handler returns after that counts only in the second case.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.inbox.must_end(self.id, *self.claims.borrow_mut())
    }

    /// Waits for `duration`, or until the task should end; says whether the
    /// whole time has passed.
    #[must_use]
    pub fn wait(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        while !self.is_canceled() {
            if !self.inbox.wait_until(deadline) {
                return true;
            }
        }
        false
    }

    /// Says how far the handler has come, as JSON of any shape. This waits for nobody: what
    /// was said last is stored half a second later, and at the latest with the task's end.
    pub fn progress(&self, progress: &impl Serialize) {
        match serde_json::value::to_raw_value(progress) {
            Ok(progress) => self.reports.progress(self.id, self.fence, storable_json(progress)),
            Err(error) => log::warn!("progress of task {} cannot be written: {error}", self.id),
        }
    }

    /// Creates another task, at once, whatever becomes of this one.
    pub fn dispatch(&self, task: &NewTask) -> Result<TaskId, Error> {
        self.claims.borrow_mut().dispatch(task)
    }
}
