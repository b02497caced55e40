//! The table and its locks, as they are seen from a session.

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running,
    Final,
}

/// Its place in the table is its position.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    /// Those that it needs, exclusively, one a bit.
    pub(super) resources: u8,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Lock {
    Task(usize),
    Resource(u8),
}

impl World {
    pub(super) fn states(&self) -> Vec<State> {
        self.tasks.iter().map(|task| task.state).collect()
    }

    /// Whether a snapshot shows this task as waiting for nobody.
    pub(super) fn is_free(&self, task: usize, snapshot: &[State]) -> bool {
        let resources = self.tasks[task].resources;
        snapshot[task] == State::Waiting
            && (0..task).all(|earlier| {
                self.tasks[earlier].resources & resources == 0 || snapshot[earlier] == State::Final
            })
    }

    fn locks_of(&self, task: usize) -> Vec<Lock> {
        let resources = self.tasks[task].resources;
        (0..4)
            .filter(|bit| resources & 1 << bit != 0)
            .map(Lock::Resource)
            .chain([Lock::Task(task)])
            .collect()
    }

    /// All or none, as `try_locks`.
    pub(super) fn try_locks(&mut self, worker: usize, task: usize) -> bool {
        let wanted = self.locks_of(task);
        if self.locks.keys().any(|(lock, holder)| wanted.contains(lock) && *holder != worker) {
            return false;
        }
        for lock in wanted {
            *self.locks.entry((lock, worker)).or_default() += 1;
        }
        true
    }

    pub(super) fn unlock(&mut self, worker: usize, task: usize) {
        for lock in self.locks_of(task) {
            // They may be gone already, with a turn that failed.
            if let Some(n) = self.locks.get_mut(&(lock, worker)) {
                *n -= 1;
                if *n == 0 {
                    self.locks.remove(&(lock, worker));
                }
            }
        }
    }

    /// Or ending or settling a task.
    pub(super) fn is_anybody_dispatching(&self) -> bool {
        !self.dispatching.is_empty() || !self.dispatches.is_empty()
    }

    pub(super) fn bell_hangs(&self) -> bool {
        !self.bells.is_empty()
    }

    pub(super) fn notify(&mut self, rings: bool) {
        if rings {
            self.notifications.extend(0..self.crews.len());
        }
    }
}
