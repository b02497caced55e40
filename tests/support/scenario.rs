//! Scenarios: tasks by letter with the resources they need, run step by step.
//!
//! Each task runs until the test ends it, so a test says which tasks run at
//! each step, and the order is certain without any clock.

use std::collections::{BTreeMap, BTreeSet};

use millhand::{NewTask, TaskId, TaskState, client};
use postgres::Client;
use rustix::process::Signal;

use super::clean::assert_clean;
use super::database::Database;
use super::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task};
use super::{SOON, wait_until};

/// Resources as `"a b +c"`: `a` and `b` exclusively, `c` shared.
pub(crate) fn with_resources(mut task: NewTask, resources: &str) -> NewTask {
    for resource in resources.split_whitespace() {
        task = match resource.strip_prefix('+') {
            Some(shared) => task.shared(shared),
            None => task.exclusive(resource),
        };
    }
    task
}

/// A database, a workshop, workers, and tasks with names.
pub(crate) struct Scenario {
    pub(crate) database: Database,
    pub(crate) workshop: Workshop,
    pub(crate) connection: Client,
    worker_type: &'static str,
    workers: Vec<WorkerProcess>,
    tasks: BTreeMap<String, TaskId>,
}

impl Scenario {
    pub(crate) fn new(worker_type: &'static str) -> Scenario {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let connection = database.connect();
        let (workers, tasks) = (Vec::new(), BTreeMap::new());
        Scenario { database, workshop, connection, worker_type, workers, tasks }
    }

    /// A task that runs until `end`.
    pub(crate) fn gate(&self, letter: &str, resources: &str) -> NewTask {
        with_resources(gate_task(&self.workshop, "gate", letter), resources)
    }

    /// Dispatches a task that runs until `end`.
    pub(crate) fn dispatch(&mut self, letter: &str, resources: &str) -> TaskId {
        let task = self.gate(letter, resources);
        let id = client::dispatch(&mut self.connection, &task).unwrap();
        self.adopt(letter, id)
    }

    /// Gives a letter to a task that was dispatched otherwise.
    pub(crate) fn adopt(&mut self, letter: &str, id: TaskId) -> TaskId {
        assert!(self.tasks.insert(letter.to_owned(), id).is_none(), "two tasks `{letter}`");
        id
    }

    pub(crate) fn worker_type(&self) -> &'static str {
        self.worker_type
    }

    pub(crate) fn id(&self, letter: &str) -> TaskId {
        self.tasks[letter]
    }

    /// Starts a worker process of this many threads.
    pub(crate) fn start_worker(&mut self, threads: u32) -> &WorkerProcess {
        let threads = threads.to_string();
        self.workers.push(self.workshop.worker(self.worker_type, &["--threads", &threads]));
        self.workers.last().unwrap()
    }

    /// The worker process started last, to be stopped by the test.
    pub(crate) fn take_worker(&mut self) -> WorkerProcess {
        self.workers.pop().unwrap()
    }

    /// Runs workers until nothing is left that could run.
    #[track_caller]
    pub(crate) fn burst(&self, threads: u32) {
        let threads = threads.to_string();
        let mut worker =
            self.workshop.worker(self.worker_type, &["--burst", "--threads", &threads]);
        let status = worker.wait(SOON);
        assert!(status.success(), "the burst ended with {status}:\n{}", worker.stderr());
    }

    /// Asserts that the history is sound and nothing is left.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_clean(&self.database, &self.workshop);
    }

    /// Waits until exactly these tasks run.
    #[track_caller]
    pub(crate) fn expect_running(&mut self, letters: &str) {
        let wanted: BTreeSet<&str> = letters.split_whitespace().collect();
        let label = format!("running are exactly {wanted:?}");
        let (connection, tasks) = (&mut self.connection, &self.tasks);
        wait_until(&self.database, &label, SOON, || {
            let ids: Vec<TaskId> = tasks.values().copied().collect();
            let states = client::task_states(connection, &ids).unwrap();
            let runs = |id: &TaskId| {
                states.iter().any(|(found, state, _)| found == id && *state == TaskState::Running)
            };
            let running: BTreeSet<&str> = tasks
                .iter()
                .filter(|(_, id)| runs(id))
                .map(|(letter, _)| letter.as_str())
                .collect();
            if running == wanted { Ok(()) } else { Err(format!("{running:?}")) }
        });
    }

    /// Lets these tasks end, and waits until they have.
    #[track_caller]
    pub(crate) fn end(&mut self, letters: &str) {
        for letter in letters.split_whitespace() {
            self.workshop.open_gate(letter);
            self.database.wait_for_state(self.id(letter), TaskState::Completed);
        }
    }

    #[track_caller]
    pub(crate) fn cancel(&mut self, letter: &str) {
        client::cancel(&mut self.connection, self.tasks[letter]).unwrap();
        self.database.wait_for_state(self.id(letter), TaskState::Canceled);
    }

    /// Asserts that all of `later` started after all of `earlier` ended.
    #[track_caller]
    pub(crate) fn assert_after(&self, later: &str, earlier: &str) {
        for second in later.split_whitespace() {
            for first in earlier.split_whitespace() {
                let start = self.database.task(self.id(second)).started_at;
                let end = self.database.task(self.id(first)).finished_at;
                assert!(
                    start.is_some() && end.is_some() && start >= end,
                    "`{second}` did not start after `{first}` ended\n{}",
                    self.database.task_table()
                );
            }
        }
    }

    /// Stops the workers when all tasks are final, and asserts that the history
    /// is sound and nothing is left.
    #[track_caller]
    pub(crate) fn finish(self) {
        self.database.wait_for_all_final();
        for worker in self.workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&self.database, &self.workshop);
    }
}
