//! A task that waits for another one: refused where it would be for ever.
//!
//! A running task keeps its resources until it ends. If its command waits for a task that
//! cannot start before, because it needs one of these resources, or waits for a task that
//! does, neither ends.

use std::collections::HashMap;

use postgres::{GenericClient, Row};

use crate::error::Error;
use crate::row::Names;
use crate::task::TaskId;

/// The task whose command this program is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    /// The task.
    pub id: TaskId,
    /// The fencing token of its start: in another database a task may have the same number.
    pub fence: i64,
}

impl Waiter {
    /// The one that the environment names (`MILLHAND_TASK_ID`, `MILLHAND_FENCE`); none if
    /// this program is no part of a command.
    #[must_use]
    pub fn from_environment() -> Option<Waiter> {
        let number = |name| std::env::var(name).ok()?.parse().ok();
        Some(Waiter { id: TaskId(number("MILLHAND_TASK_ID")?), fence: number("MILLHAND_FENCE")? })
    }

    /// Fails with [`Error::Conflict`] if one of these tasks cannot start before this one has
    /// ended.
    ///
    /// Once, before the wait, is enough: which earlier tasks a task waits for is settled when
    /// it is dispatched, and later only gets less.
    pub fn check(&self, client: &mut impl GenericClient, ids: &[TaskId]) -> Result<(), Error> {
        let fail = |error| Error::postgres("could not look what a task waits for", error);
        let query = include_str!("../sql/queries/running_start.sql");
        let Some(own) = client.query_opt(query, &[&self.id.0, &self.fence]).map_err(fail)? else {
            return Ok(());
        };
        if ids.contains(&self.id) {
            return Err(Error::Conflict(format!("task {} cannot wait for itself", self.id)));
        }
        let position: i64 = own.get(0);
        let mut blocked = Blocked::default();
        blocked.add(self.id, own.get::<_, Names>(1).0, own.get::<_, Names>(2).0);
        if blocked.is_empty() {
            return Ok(());
        }
        let numbers: Vec<i64> = ids.iter().map(|id| id.0).collect();
        let query = include_str!("../sql/queries/unfinished_among.sql");
        let mut awaited = client.query(query, &[&numbers]).map_err(fail)?;
        // Who needs nothing waits for nobody.
        awaited.retain(|row| needs(row) != (Vec::new(), Vec::new()));
        let Some(last) = awaited.last().map(|row| row.get::<_, i64>(1)) else { return Ok(()) };
        // The usual case: no need to look at what is between.
        for row in &awaited {
            self.refuse(row, &blocked)?;
        }
        let query = include_str!("../sql/queries/unfinished_between.sql");
        let between = client.query(query, &[&position, &last]).map_err(fail)?;
        let mut between = between.iter().peekable();
        // In the order of the positions each one waits for those before it alone: one pass
        // finds all that wait for us, through however many others.
        for row in &awaited {
            let position: i64 = row.get(1);
            while let Some(task) = between.next_if(|task| task.get::<_, i64>(1) < position) {
                let (exclusive, shared) = needs(task);
                if blocked.blocker(&exclusive, &shared).is_some() {
                    blocked.add(TaskId(task.get(0)), exclusive, shared);
                }
            }
            self.refuse(row, &blocked)?;
        }
        Ok(())
    }

    fn refuse(&self, awaited: &Row, blocked: &Blocked) -> Result<(), Error> {
        let (exclusive, shared) = needs(awaited);
        let Some((resource, blocker)) = blocked.blocker(&exclusive, &shared) else { return Ok(()) };
        let (own, id) = (self.id, awaited.get::<_, i64>(0));
        Err(Error::Conflict(format!(
            "task {own} cannot wait for task {id}, which cannot start before task {own} has ended: \
             it needs `{resource}` after task {blocker}; do not wait, or name other resources"
        )))
    }
}

fn needs(row: &Row) -> (Vec<String>, Vec<String>) {
    (row.get::<_, Names>(2).0, row.get::<_, Names>(3).0)
}

/// What tasks need that cannot end before us, and which of them needs it first.
#[derive(Debug, Default)]
struct Blocked {
    exclusive: HashMap<String, TaskId>,
    shared: HashMap<String, TaskId>,
}

impl Blocked {
    fn is_empty(&self) -> bool {
        self.exclusive.is_empty() && self.shared.is_empty()
    }

    fn add(&mut self, id: TaskId, exclusive: Vec<String>, shared: Vec<String>) {
        for name in exclusive {
            self.exclusive.entry(name).or_insert(id);
        }
        for name in shared {
            self.shared.entry(name).or_insert(id);
        }
    }

    /// For which resource, and after whom, a later task with these needs has to wait.
    fn blocker<'a>(
        &self,
        exclusive: &'a [String],
        shared: &'a [String],
    ) -> Option<(&'a str, TaskId)> {
        let found = |name: &'a String, id: Option<&TaskId>| Some((name.as_str(), *id?));
        let by_exclusive = exclusive.iter().find_map(|name| {
            found(name, self.exclusive.get(name).or_else(|| self.shared.get(name)))
        });
        by_exclusive
            .or_else(|| shared.iter().find_map(|name| found(name, self.exclusive.get(name))))
    }
}
