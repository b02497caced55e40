//! Worker type `postgres`: session advisory locks on the thread's own
//! connection, one for the task and one for each resource. When the session
//! ends, for whatever reason, the locks are gone.

use postgres::{Client, Statement};

use super::{Claimed, Claims, Ended, Turn};
use crate::db;
use crate::error::Error;
use crate::task::TaskId;
use crate::worker::crew::Plan;
use crate::worker::{Identity, Sight};

/// What a thread held before it lost its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Previous {
    pub(crate) worker: i64,
    /// The task whose handler had begun; another one was only claimed.
    pub(crate) begun: Option<TaskId>,
}

pub(crate) struct PostgresClaims {
    client: Client,
    statement: Statement,
    worker: i64,
    name: String,
    handlers: Vec<String>,
}

impl PostgresClaims {
    /// Connects, settles what the thread owned before, and registers.
    pub(crate) fn open(
        url: &str,
        identity: &Identity,
        name: &str,
        handlers: &[String],
        previous: Option<Previous>,
    ) -> Result<PostgresClaims, Error> {
        let mut client = db::connect(url, &format!("millhand worker {name}"))?;
        let doing = format!("could not register worker {name}");
        let fail = |error| Error::postgres(&doing, error);
        client
            .batch_execute(include_str!("../../../sql/queries/worker_session.sql"))
            .map_err(fail)?;
        let worker = client
            .query_one(
                include_str!("../../../sql/queries/register_worker.sql"),
                &[
                    &name,
                    &"postgres",
                    &identity.process,
                    &identity.hostname,
                    &identity.pid,
                    &identity.ttl.as_secs_f64(),
                    &previous.map(|previous| previous.worker),
                    &previous.and_then(|previous| previous.begun).map(|id| id.0),
                ],
            )
            .map_err(fail)?
            .get(0);
        let statement =
            client.prepare(include_str!("../../../sql/queries/next_task.sql")).map_err(fail)?;
        Ok(PostgresClaims {
            client,
            statement,
            worker,
            name: name.to_owned(),
            handlers: handlers.to_vec(),
        })
    }
}

impl Claims for PostgresClaims {
    fn worker(&self) -> i64 {
        self.worker
    }

    fn next_task(
        &mut self,
        ended: Option<&Ended>,
        wanted: bool,
        sight: &Sight,
        plan: Plan,
    ) -> Result<Turn, Error> {
        let outcome = ended.map(|ended| &ended.outcome);
        let state = outcome.map(|o| if o.completed { "completed" } else { "failed" });
        let row = self
            .client
            .query_one(
                &self.statement,
                &[
                    &self.worker,
                    &self.name,
                    &self.handlers,
                    &sight.low,
                    &sight.stragglers,
                    &ended.map(|ended| ended.id.0),
                    &state,
                    &outcome.and_then(|o| o.result.as_ref()),
                    &outcome.and_then(|o| o.error.as_ref()),
                    &outcome.and_then(|o| o.log.as_ref()),
                    &wanted,
                    &plan.idle_siblings,
                    &plan.take_bell_down,
                    &plan.hang_bell,
                ],
            )
            .map_err(|error| {
                let doing = match ended {
                    Some(ended) => format!("could not end task {}", ended.id),
                    None => "could not look for a task".to_owned(),
                };
                Error::postgres(&doing, error)
            })?;
        let flag = |name| row.get::<_, Option<bool>>(name).unwrap_or(false);
        let task = row.get::<_, Option<i64>>("task_id").map(|id| Claimed {
            id: TaskId(id),
            name: row.get("task_name"),
            args: row.get("task_args"),
            fence: row.get("task_fence"),
            attempt: row.get("task_attempt"),
        });
        Ok(Turn {
            owned: row.get::<_, Option<bool>>("owned") != Some(false),
            task,
            more: flag("more"),
            inconclusive: flag("inconclusive"),
            unfinished: flag("unfinished"),
            bell_hung: flag("bell_hung"),
        })
    }

    fn recover(&mut self) -> Result<(), Error> {
        self.client
            .execute(include_str!("../../../sql/queries/let_go.sql"), &[&self.worker])
            .map_err(|error| Error::postgres("could not let go of its locks", error))?;
        Ok(())
    }

    fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    fn is_lost(&mut self) -> bool {
        self.client.is_closed()
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.client
            .execute(include_str!("../../../sql/queries/leave.sql"), &[&self.worker])
            .map_err(|error| {
                Error::postgres(&format!("could not sign off worker {}", self.name), error)
            })?;
        Ok(())
    }
}
