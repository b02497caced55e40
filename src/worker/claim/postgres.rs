//! Worker types `postgres` and `pulpcore`: session advisory locks on the thread's own
//! connection. When the session ends, for whatever reason, the locks are gone.
//!
//! With `postgres` a worker looks through the waiting tasks by itself and holds a
//! lock for the task and one for each resource. With `pulpcore`, the older design,
//! one worker at a time marks the tasks that may start, and all take what is marked,
//! with a lock for the task alone. That is another statement; all else is the same.

mod crew;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fallible_iterator::FallibleIterator;
use postgres::error::SqlState;
use postgres::types::ToSql;
use postgres::{Client, Statement};

use super::{BackEnd, Claimed, Claims, Ended, Previous, Turn};
use crate::config::WorkerType;
use crate::error::Error;
use crate::row::Names;
use crate::task::{NewTask, TaskId};
use crate::worker::args::Args;
use crate::worker::inbox::{Event, Inbox, Mailbox};
use crate::worker::{LOOK, Shared, Shutdown, Sight};
use crate::{client, db};
use crew::{Crew, Found, Plan, Rest};

/// How long the answer of a connection that somebody doubts may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long no process may have told the metrics of type `pulpcore`.
const METRICS_INTERVAL: Duration = Duration::from_secs(10);

/// How workers find tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Type `postgres`: they look themselves, and try the locks.
    Look,
    /// Type `pulpcore`: they take what is marked, and, unless they are auxiliary, one
    /// of them marks.
    Unblocked { unblocks: bool },
}

impl Way {
    fn worker_type(self) -> WorkerType {
        match self {
            Way::Look => WorkerType::Postgres,
            Way::Unblocked { .. } => WorkerType::Pulpcore,
        }
    }

    /// The statement of a turn.
    fn turn(self) -> &'static str {
        match self {
            Way::Look => include_str!("../../../sql/queries/next_task.sql"),
            Way::Unblocked { .. } => include_str!("../../../sql/queries/unblocked_turn.sql"),
        }
    }

    /// A few turns that leave nothing behind.
    ///
    /// The first turn of a session takes several times as long as any later one,
    /// because the session has yet to read up on tables and functions. Nobody waits
    /// for that while it opens; else it would come when many tasks arrive at once. (80
    /// free tasks, dispatched one by one to 80 threads that have just come: they start
    /// after 33 ms in the mean, instead of 92. To rehearse a look in vain as well saves
    /// another third of Postgres' processor time for such a start and the look after it.)
    fn rehearsal(self) -> &'static str {
        match self {
            Way::Look => include_str!("../../../sql/queries/rehearse.sql"),
            Way::Unblocked { .. } => include_str!("../../../sql/queries/rehearse_unblocked.sql"),
        }
    }
}

pub(crate) struct PostgresBackEnd {
    crew: Crew,
    way: Way,
}

impl PostgresBackEnd {
    pub(crate) fn new(mailboxes: Vec<Mailbox>, way: Way) -> PostgresBackEnd {
        PostgresBackEnd { crew: Crew::new(mailboxes), way }
    }
}

impl BackEnd for PostgresBackEnd {
    fn open<'a>(
        &'a self,
        shared: &'a Shared,
        index: usize,
        name: &str,
        previous: Option<&Previous>,
    ) -> Result<Box<dyn Claims + 'a>, Error> {
        let purpose = format!("millhand worker {name}");
        let mut client = db::connect_for_long(&shared.url, &purpose)?;
        let fail = |error| Error::postgres("could not register", error);
        // Before it registers: whoever is online is ready.
        client.batch_execute(self.way.rehearsal()).map_err(fail)?;
        let worker = shared.register(&mut client, name, self.way.worker_type(), None, previous)?;
        let statement = client.prepare(self.way.turn()).map_err(fail)?;
        Ok(Box::new(PostgresClaims {
            shared,
            crew: &self.crew,
            way: self.way,
            index,
            client,
            statement,
            worker,
            name: name.to_owned(),
            has_joined: false,
            has_found_nothing_to_mend: false,
            is_read_only: false,
        }))
    }

    fn ring(&self) {
        self.crew.ring();
    }

    fn listen(&self, shared: &Arc<Shared>, connected: &mut dyn FnMut()) -> Result<(), Error> {
        let fail = |error| Error::postgres("could not listen", error);
        let mut client = db::connect_for_long(&shared.url, "millhand listener")?;
        client.batch_execute("LISTEN millhand_wakeup; LISTEN millhand_cancel").map_err(fail)?;
        let is_pulpcore = self.way != Way::Look;
        let auxiliary = self.way == Way::Unblocked { unblocks: false };
        if is_pulpcore {
            client.batch_execute("LISTEN millhand_metrics").map_err(fail)?;
        }
        let mut metrics_told = Instant::now();
        connected();
        while !shared.has_ended() {
            {
                let mut notifications = client.notifications();
                let mut received = notifications.timeout_iter(LOOK);
                while let Some(notification) = received.next().map_err(fail)? {
                    let said = notification.payload();
                    match notification.channel() {
                        "millhand_cancel" => {
                            if let Ok(id) = said.parse::<TaskId>() {
                                shared.tell_all(Event::Cancel(id));
                            }
                        }
                        "millhand_metrics" => {
                            metrics_told = Instant::now();
                            log::debug!("unblocked tasks and seconds of the oldest: {said}");
                        }
                        // What has yet to be marked is not for those who do not mark.
                        _ if auxiliary && said != "handle" => {}
                        _ => self.ring(),
                    }
                }
            }
            if client.is_closed() {
                break;
            }
            if is_pulpcore && !auxiliary && metrics_told.elapsed() >= METRICS_INTERVAL {
                metrics_told = Instant::now();
                let tell = include_str!("../../../sql/queries/tell_metrics.sql");
                client.execute(tell, &[]).map_err(fail)?;
            }
        }
        Ok(())
    }

    fn n_turns(&self) -> u64 {
        self.crew.n_turns()
    }

    fn tidy_up(&self) {
        // Locks go with their sessions.
    }
}

struct PostgresClaims<'a> {
    shared: &'a Shared,
    crew: &'a Crew,
    way: Way,
    index: usize,
    client: Client,
    statement: Statement,
    worker: i64,
    name: String,
    has_joined: bool,
    /// Whether the server said that it is read-only.
    is_read_only: bool,
    /// Whether the last turn failed because of a list of names, and none was wrong.
    has_found_nothing_to_mend: bool,
}

impl PostgresClaims<'_> {
    /// One call of the turn's function; false if the ended task was not this worker's.
    fn turn(
        &mut self,
        ended: Option<&Ended>,
        wanted: bool,
        sight: &Sight,
        plan: Plan,
    ) -> Result<Option<(Option<Claimed>, Found)>, Error> {
        let outcome = ended.map(|ended| &ended.outcome);
        let ended_id = ended.map(|ended| ended.id.0);
        let state = outcome.map(|outcome| outcome.state());
        let result = outcome.and_then(|outcome| outcome.result.as_ref());
        let error = outcome.and_then(|outcome| outcome.error.as_ref());
        let log = outcome.and_then(|outcome| outcome.log.as_ref());
        let log_size = outcome.and_then(|outcome| outcome.log_size);
        let progress = outcome.and_then(|outcome| outcome.progress.as_ref());
        let handlers = self.shared.offer.handlers();
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
            &self.worker,
            &self.name,
            &*handlers,
            &sight.low,
            &sight.stragglers,
            &ended_id,
            &state,
            &result,
            &error,
            &log,
            &log_size,
            &progress,
            &wanted,
            &plan.idle_siblings,
            &plan.take_bell_down,
            &plan.hang_bell,
        ];
        if let Way::Unblocked { unblocks } = &self.way {
            parameters.push(unblocks);
        }
        let row = match self.client.query_one(&self.statement, &parameters) {
            Ok(row) => row,
            Err(error) => {
                let doing = match ended {
                    Some(ended) => format!("could not end task {}", ended.id),
                    None => "could not look for a task".to_owned(),
                };
                return Err(self.refused(&doing, error));
            }
        };
        self.has_found_nothing_to_mend = false;
        if row.get::<_, Option<bool>>("owned") == Some(false) {
            return Ok(None);
        }
        let flag = |name| row.get::<_, Option<bool>>(name).unwrap_or(false);
        let task = row.get::<_, Option<i64>>("task_id").map(|id| Claimed {
            id: TaskId(id),
            name: row.get("task_name"),
            args: Args::new(row.get("task_args")),
            fence: row.get("task_fence"),
            attempt: row.get("task_attempt"),
            exclusive: row.get::<_, Names>("task_exclusive").0,
            shared: row.get::<_, Names>("task_shared").0,
        });
        let found = Found {
            task: task.is_some(),
            more: flag("more"),
            inconclusive: flag("inconclusive"),
            unfinished: flag("unfinished"),
            bell_hung: flag("bell_hung"),
        };
        Ok(Some((task, found)))
    }

    /// What a turn that failed means.
    fn refused(&mut self, doing: &str, error: postgres::Error) -> Error {
        self.is_read_only = error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
        if error.code() == Some(&SqlState::ARRAY_SUBSCRIPT_ERROR) {
            // One task's list of resources is none, and no look can go past it.
            let mend = include_str!("../../../sql/queries/mend_names.sql");
            if let Ok(row) = self.client.query_one(mend, &[]) {
                let is_mended = row.get::<_, i64>(0) > 0;
                if is_mended {
                    log::warn!("a task's resources were no list of names; they are one now");
                }
                // Another worker may have mended it since this turn failed; twice in a row
                // that is not the reason.
                if is_mended || !std::mem::replace(&mut self.has_found_nothing_to_mend, true) {
                    return Error::Unavailable { doing: doing.to_owned(), source: error.into() };
                }
            }
        }
        Error::postgres(doing, error)
    }

    /// Waits after a turn that found nothing.
    fn rest(&self, inbox: &Inbox, rest: Rest) {
        match rest {
            Rest::Again => {}
            Rest::Wait(Some(duration)) => {
                inbox.wait_until(Instant::now() + duration);
            }
            Rest::Wait(None) => {
                if self.shared.burst && self.crew.is_idle() {
                    self.shared.control.stop(Shutdown::Drain);
                }
                // A cancel is for whoever runs that task.
                while matches!(inbox.wait(), Event::Cancel(_)) {}
            }
        }
    }
}

impl Claims for PostgresClaims<'_> {
    fn worker(&self) -> i64 {
        self.worker
    }

    fn next_task(
        &mut self,
        inbox: &Inbox,
        ended: Option<&Ended>,
        wanted: bool,
    ) -> Result<Turn, Error> {
        if !std::mem::replace(&mut self.has_joined, true) {
            self.rest(inbox, self.crew.join(self.index));
            return Ok(Turn::Nothing);
        }
        // Before the look at the lease: under a lease that still holds then, the
        // housekeeper had learned it from the server that this session is on.
        let sight = self.shared.sight();
        // The housekeeper says so, too, but it may be held up itself.
        if inbox.is_lost() {
            return Ok(Turn::Lost);
        }
        let plan = self.crew.begin_turn(self.index, ended.is_some());
        let (task, found) = match self.turn(ended, wanted, &sight, plan) {
            Ok(Some(turn)) => turn,
            Ok(None) => {
                self.crew.drop_out(self.index);
                return Ok(Turn::NotOwned);
            }
            Err(error) => {
                self.crew.drop_out(self.index);
                return Err(error);
            }
        };
        if ended.is_some() {
            self.shared.end_is_stored(self.worker);
        }
        let rest = self.crew.end_turn(self.index, plan, found);
        if let Some(task) = task {
            return Ok(Turn::Task(task));
        }
        if wanted {
            self.rest(inbox, rest);
        }
        Ok(Turn::Nothing)
    }

    fn recover(&mut self) -> bool {
        // A primary that was demoted takes nothing any more: the next connection may
        // find its successor.
        let is_demoted = std::mem::take(&mut self.is_read_only)
            && self
                .client
                .query_one("SELECT pg_is_in_recovery()", &[])
                .map_or(true, |row| row.get(0));
        !is_demoted
            && !self.client.is_closed()
            && self
                .client
                .execute(include_str!("../../../sql/queries/let_go.sql"), &[&self.worker])
                .is_ok()
    }

    fn verify(&mut self) -> bool {
        self.client.is_valid(VERIFY_TIMEOUT).is_ok()
    }

    fn dispatch(&mut self, task: &NewTask) -> Result<TaskId, Error> {
        client::dispatch(&mut self.client, task)
    }

    fn leave(&mut self) -> Result<(), Error> {
        self.shared.sign_off(&mut self.client, &self.name, self.worker)
    }
}

impl Drop for PostgresClaims<'_> {
    fn drop(&mut self) {
        self.crew.drop_out(self.index);
    }
}
