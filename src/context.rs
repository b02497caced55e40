//! What a handler that is a function sees while it runs.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::error::{self, Error};
use crate::task::{NewTask, TaskId};
use crate::worker::claim::Claims;
use crate::worker::inbox::Inbox;

/// How often a task's progress is stored at most.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// The running task, seen from its handler. It lives on the worker's thread.
pub struct Context<'a> {
    pub(crate) id: TaskId,
    pub(crate) name: &'a str,
    pub(crate) fence: i64,
    pub(crate) attempt: i32,
    pub(crate) claims: RefCell<&'a mut dyn Claims>,
    pub(crate) inbox: &'a Inbox,
    pub(crate) last_progress: Cell<Option<Instant>>,
    pub(crate) unstored: RefCell<Option<Box<RawValue>>>,
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
        self.store_due_progress();
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

    /// Stores how far the handler has come, as JSON of any shape; twice a second at most.
    /// Of what comes faster the newest is stored when that time has passed and the handler
    /// reports or asks whether it should end, at the latest when it has ended.
    pub fn progress(&self, progress: &impl Serialize) {
        match serde_json::value::to_raw_value(progress) {
            Ok(progress) => *self.unstored.borrow_mut() = Some(progress),
            Err(error) => log::warn!("progress of task {} cannot be written: {error}", self.id),
        }
        self.store_due_progress();
    }

    /// When progress that was reported has to be stored.
    pub(crate) fn progress_is_due_at(&self) -> Option<Instant> {
        self.unstored.borrow().as_ref()?;
        Some(self.last_progress.get().map_or_else(Instant::now, |last| last + PROGRESS_INTERVAL))
    }

    pub(crate) fn store_due_progress(&self) {
        if self.progress_is_due_at().is_some_and(|due| due <= Instant::now()) {
            self.store_progress();
        }
    }

    /// Stores what was reported last, if it is not stored yet.
    pub(crate) fn store_progress(&self) {
        let Some(progress) = self.unstored.take() else { return };
        self.last_progress.set(Some(Instant::now()));
        if let Err(error) = self.claims.borrow_mut().set_progress(self.id, &progress) {
            log::warn!("{}", error::chain(&error));
        }
    }

    /// Creates another task, at once, whatever becomes of this one.
    pub fn dispatch(&self, task: &NewTask) -> Result<TaskId, Error> {
        self.claims.borrow_mut().dispatch(task)
    }
}
