//! Queueless distributed task workers.
//!
//! One Postgres table is the single source of truth about tasks. A task names
//! the resources that it needs exclusively and those that it shares; workers
//! look at the first waiting tasks in order, try their locks, and run what
//! they get. There is no broker and no process that is only one.
//!
//! The modules, in reading order:
//!
//! 1. [`task`]: what a task is, its states, and what is in a row.
//! 2. [`client`]: dispatch, cancel and read tasks on any `postgres` connection.
//! 3. [`registry`] and [`context`]: handlers, and what they see while they run.
//! 4. [`worker`]: the process that runs tasks; its threads are in the modules
//!    below it, the seam to a lock back end is `worker::claim`.
//! 5. [`wake`]: tells workers of type `redis` of a commit; `lock_store` has their
//!    locks.
//! 6. [`waiter`]: refuses a wait that would never end. [`fleet`]: workers and counts, for those who look on.
//! 7. [`config`], [`db`], [`migrate`], [`error`]: what all of them stand on.

pub mod client;
pub mod config;
pub mod context;
pub mod db;
pub mod error;
pub mod fleet;
mod lock_store;
pub mod migrate;
pub mod registry;
mod row;
pub mod server;
pub mod task;
pub mod waiter;
pub mod wake;
pub mod worker;

pub use client::{cancel, dispatch, dispatch_many};
pub use config::Config;
pub use context::Context;
pub use error::Error;
pub use registry::Registry;
pub use task::{NewTask, Task, TaskId, TaskState};
pub use waiter::Waiter;
pub use wake::Waker;
pub use worker::Worker;

/// What the README shows must compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
