//! Which resources a task needs, and who holds them.

use std::collections::HashMap;
use std::sync::Arc;

use redis::ScriptInvocation;
use serde::{Deserialize, Serialize};

use crate::task::TaskId;

/// The resources of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Needs {
    pub(crate) exclusive: Vec<String>,
    pub(crate) shared: Vec<String>,
}

/// The locks of one task, held by one owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lock {
    /// A UUID, drawn at each start of a worker thread.
    pub(crate) owner: String,
    pub(crate) task: TaskId,
    pub(crate) needs: Arc<Needs>,
}

/// The locks of tasks that end in one transaction: they pass on to those that start
/// in it. By resource, what stands for them in the store.
#[derive(Default)]
pub(crate) struct PassedOn(HashMap<String, i64>);

impl PassedOn {
    pub(crate) fn add(&mut self, lock: &Lock) {
        for name in &lock.needs.exclusive {
            self.0.insert(name.clone(), lock.task.0);
        }
        for name in &lock.needs.shared {
            *self.0.entry(name.clone()).or_default() -= 1;
        }
    }

    /// The value under which the lock of this resource does not count, or nothing.
    fn of(&self, name: &str) -> String {
        self.0.get(name).map_or(String::new(), i64::to_string)
    }
}

impl Needs {
    /// Exclusive and shared.
    fn lists(&self) -> [&[String]; 2] {
        [&self.exclusive, &self.shared]
    }

    /// The names of all its locks.
    pub(super) fn names(&self, task: TaskId) -> impl Iterator<Item = String> {
        let resources = self.lists().into_iter().flatten();
        std::iter::once(task_name(task)).chain(resources.map(|name| resource_name(name)))
    }

    /// What may be given to an owner in [`exchange`](super::Link::exchange).
    pub(super) fn add_wish(
        &self,
        task: TaskId,
        passed_on: &PassedOn,
        call: &mut ScriptInvocation<'_>,
    ) {
        call.arg(task_name(task)).arg(task.0).arg(self.entry_of(task));
        for list in self.lists() {
            call.arg(list.len());
            for name in list {
                call.arg(resource_name(name)).arg(passed_on.of(name));
            }
        }
    }

    /// An entry of the registry without the owner that it begins with.
    fn entry_of(&self, task: TaskId) -> String {
        let needs = serde_json::to_string(self).expect("lists of text are valid JSON");
        format!(" {task} {needs}")
    }
}

impl Lock {
    /// As it stands in the registry.
    fn entry(&self) -> String {
        format!("{}{}", self.owner, self.needs.entry_of(self.task))
    }

    pub(super) fn from_entry(entry: &str) -> Option<Lock> {
        let mut parts = entry.splitn(3, ' ');
        Some(Lock {
            owner: parts.next()?.to_owned(),
            task: parts.next()?.parse().ok()?,
            needs: Arc::new(serde_json::from_str(parts.next()?).ok()?),
        })
    }

    /// What is let go, or taken anew.
    pub(super) fn add_to(&self, call: &mut ScriptInvocation<'_>) {
        call.arg(self.entry()).arg(task_name(self.task)).arg(self.task.0);
        for list in self.needs.lists() {
            call.arg(list.len());
            for name in list {
                call.arg(resource_name(name));
            }
        }
    }
}

fn task_name(task: TaskId) -> String {
    format!("t{task}")
}

fn resource_name(name: &str) -> String {
    format!("r{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_registry_can_be_read_again() {
        let names = |text: &str| text.split(' ').map(str::to_owned).collect();
        let needs =
            Needs { exclusive: vec!["a b".to_owned(), "\"".to_owned()], shared: names("c d") };
        let lock = Lock { owner: "o".to_owned(), task: TaskId(7), needs: Arc::new(needs) };
        assert_eq!(Lock::from_entry(&lock.entry()), Some(lock));
        assert_eq!(Lock::from_entry("o 7"), None);
    }

    #[test]
    fn what_ends_does_not_count_against_what_starts_with_it() {
        let needs = |exclusive: &[&str], shared: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Arc::new(Needs { exclusive: owned(exclusive), shared: owned(shared) })
        };
        let lock = |id, needs| Lock { owner: String::new(), task: TaskId(id), needs };
        let mut passed_on = PassedOn::default();
        passed_on.add(&lock(7, needs(&["a"], &["b"])));
        passed_on.add(&lock(8, needs(&[], &["b"])));
        let values = ["a", "b", "c"].map(|name| passed_on.of(name));
        assert_eq!(values, ["7", "-2", ""]);
    }
}
