//! What running tasks say: progress and logs.
//!
//! The threads that run tasks only note it here. One more thread stores what is due, for all
//! tasks in one statement on a connection of its own, which it has while there is something
//! to store. What a task said last, and is not stored by then, goes with its end. So a short
//! task costs no statement, and nobody waits to say something.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::types::Json;
use serde_json::value::RawValue;

use super::Shared;
use super::tail::{Remains, Tail};
use crate::db;
use crate::error::{self, Error};
use crate::task::TaskId;

/// What a task says is stored so much later, at most so often.
const INTERVAL: Duration = Duration::from_millis(500);
/// And logs more seldom the longer they are: each time all that is kept is written anew.
const BYTES_PER_SECOND: u64 = 32 << 10;
/// How long the connection is kept for what may follow.
const IDLE: Duration = Duration::from_secs(30);
/// How long to wait after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// What running tasks have said and is not stored yet.
#[derive(Default)]
pub(crate) struct Reports {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By the fencing token, which no other start of a task has.
    running: HashMap<i64, Report>,
    /// Logs of starts that are not their worker's any more.
    remains: Vec<Remains>,
    has_ended: bool,
}

struct Report {
    id: TaskId,
    progress: Option<Arc<RawValue>>,
    log: Option<Arc<Mutex<Tail>>>,
    stored_size: u64,
    due: Option<Instant>,
    /// Nothing is due before that.
    next: Instant,
}

impl Reports {
    /// A task has come so far.
    pub(crate) fn progress(&self, id: TaskId, fence: i64, progress: Box<RawValue>) {
        self.note(id, fence, |report| report.progress = Some(progress.into()));
    }

    /// A task's log has grown.
    pub(super) fn wrote(&self, id: TaskId, fence: i64, log: &Arc<Mutex<Tail>>) {
        self.note(id, fence, |report| {
            report.log.get_or_insert_with(|| log.clone());
        });
    }

    /// A task has ended; its progress, unless that is stored.
    pub(super) fn end(&self, fence: i64) -> Option<Arc<RawValue>> {
        self.lock().running.remove(&fence)?.progress
    }

    /// A task is not its worker's any more: of what it said the log is kept.
    pub(super) fn leave(&self, remains: Remains) {
        self.lock().remains.push(remains);
        self.changed.notify_all();
    }

    /// Nothing will follow.
    pub(super) fn close(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    fn note(&self, id: TaskId, fence: i64, note: impl FnOnce(&mut Report)) {
        let mut state = self.lock();
        let report = state.running.entry(fence).or_insert_with(|| Report {
            id,
            progress: None,
            log: None,
            stored_size: 0,
            due: None,
            next: Instant::now() + INTERVAL,
        });
        note(report);
        if report.due.is_none() {
            report.due = Some(report.next);
            self.changed.notify_all();
        }
    }

    /// Waits for something to store, until `deadline` at most.
    fn wait(&self, deadline: Option<Instant>) -> Work {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let remains = std::mem::take(&mut state.remains);
            let has_ended = state.has_ended;
            let reports = if has_ended { Vec::new() } else { state.take_due(now) };
            if has_ended || !remains.is_empty() || !reports.is_empty() {
                return Work { reports, remains, has_ended };
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Work { reports, remains, has_ended };
            }
            let due = state.running.values().filter_map(|report| report.due).chain(deadline).min();
            state = match due {
                Some(due) => {
                    let wait = self.changed.wait_timeout(state, due - now);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// These are stored, or, if not, are due again.
    fn settle(&self, sent: &[Sent], stored: &[TaskId], pause: Duration) {
        let mut state = self.lock();
        for sent in sent {
            // It may have ended meanwhile; what was not stored has gone with its end.
            let Some(report) = state.running.get_mut(&sent.fence) else { continue };
            let n_bytes = sent.log.as_ref().map_or(0, |(text, _)| text.len() as u64);
            let pause = pause + Duration::from_millis(n_bytes * 1000 / BYTES_PER_SECOND);
            report.next = Instant::now() + INTERVAL + pause;
            if stored.contains(&sent.id) {
                let is_same = |progress: &Arc<RawValue>| {
                    sent.progress.as_ref().is_some_and(|sent| Arc::ptr_eq(progress, sent))
                };
                report.progress.take_if(|progress| is_same(progress));
                report.stored_size =
                    report.stored_size.max(sent.log.as_ref().map_or(0, |(_, size)| *size));
            } else {
                report.due = Some(report.next);
            }
            if report.due.is_some() {
                report.due = Some(report.next);
            }
        }
    }

    /// The database refuses what this one says: it is said no more.
    fn drop_progress(&self, sent: &Sent) {
        if let Some(report) = self.lock().running.get_mut(&sent.fence) {
            report.progress = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_due(&mut self, now: Instant) -> Vec<Sent> {
        let is_due = |report: &&mut Report| report.due.is_some_and(|due| due <= now);
        let due = self.running.iter_mut().map(|(fence, report)| (*fence, report));
        due.filter(|(_, report)| is_due(report))
            .filter_map(|(fence, report)| {
                report.due = None;
                let log = report.log.as_ref().map(|log| lock(log));
                let log = log.filter(|log| log.size() > report.stored_size);
                let log = log.map(|log| (log.text(), log.size()));
                let progress = report.progress.clone();
                let is_news = log.is_some() || progress.is_some();
                is_news.then_some(Sent { id: report.id, fence, progress, log })
            })
            .collect()
    }
}

/// What the thread has to do.
struct Work {
    reports: Vec<Sent>,
    remains: Vec<Remains>,
    has_ended: bool,
}

/// A report on its way into the table.
struct Sent {
    id: TaskId,
    fence: i64,
    progress: Option<Arc<RawValue>>,
    /// The end of it, and its size in all.
    log: Option<(String, u64)>,
}

pub(super) fn lock(log: &Mutex<Tail>) -> MutexGuard<'_, Tail> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores what is due, until the workers have left.
pub(super) fn report(shared: &Arc<Shared>) {
    let reports = &shared.reports;
    let mut client: Option<Client> = None;
    let mut told = String::new();
    loop {
        let deadline = client.as_ref().map(|_| Instant::now() + IDLE);
        let work = reports.wait(deadline);
        if work.reports.is_empty() && work.remains.is_empty() {
            client = None;
            if work.has_ended {
                return;
            }
            continue;
        }
        // What runs comes first: it must not wait for what is left over.
        let stored = connected(&mut client, &shared.url)
            .and_then(|client| store(client, &work.reports, reports))
            .and_then(|stored| {
                reports.settle(&work.reports, &stored, Duration::ZERO);
                let client = connected(&mut client, &shared.url)?;
                Ok(store_all_remains(client, work.remains.clone()))
            });
        let left = match stored {
            Ok(left) => {
                told.clear();
                left
            }
            Err(error) => {
                let reason = error::chain(&error);
                if reason != told {
                    log::warn!("{reason}; trying again");
                    told = reason;
                }
                client = None;
                reports.settle(&work.reports, &[], PAUSE);
                work.remains
            }
        };
        if work.has_ended {
            if !left.is_empty() {
                let ids: Vec<String> = left.iter().map(|log| log.id.to_string()).collect();
                log::warn!("the logs of these tasks could not be stored: {}", ids.join(" "));
            }
            return;
        }
        if !left.is_empty() || !told.is_empty() {
            left.into_iter().for_each(|remains| reports.leave(remains));
            shared.pause(PAUSE);
        }
    }
}

fn connected<'a>(client: &'a mut Option<Client>, url: &str) -> Result<&'a mut Client, Error> {
    match client.take_if(|client| !client.is_closed()) {
        Some(open) => Ok(client.insert(open)),
        None => {
            let mut opened = db::connect_for_long(url, "millhand reports")?;
            // Whoever keeps a row locked keeps nobody from leaving.
            opened
                .batch_execute("SET lock_timeout = '2s'; SET statement_timeout = '10s'")
                .map_err(|error| Error::postgres("could not set up a session", error))?;
            Ok(client.insert(opened))
        }
    }
}

/// Stores these, and returns whose were stored. Where one is refused, which must not keep the
/// others from being stored, its progress is dropped.
fn store(client: &mut Client, sent: &[Sent], reports: &Reports) -> Result<Vec<TaskId>, Error> {
    let error = match store_at_once(client, sent) {
        Err(error) if !error.is_unavailable() && !client.is_closed() => error,
        other => return other,
    };
    if let [sent] = sent {
        log::warn!("task {}: {}", sent.id, error::chain(&error));
        reports.drop_progress(sent);
        return Ok(Vec::new());
    }
    let mut stored = Vec::new();
    for sent in sent {
        stored.extend(store(client, std::slice::from_ref(sent), reports)?);
    }
    Ok(stored)
}

fn store_at_once(client: &mut Client, sent: &[Sent]) -> Result<Vec<TaskId>, Error> {
    if sent.is_empty() {
        return Ok(Vec::new());
    }
    let logs = || sent.iter().map(|sent| sent.log.as_ref());
    let texts = logs().map(|log| log.map(|(text, _)| text.as_str()));
    let sizes = logs().map(|log| log.map(|(_, size)| size.cast_signed()));
    let rows = client
        .query(
            include_str!("../../sql/queries/report.sql"),
            &[
                &sent.iter().map(|sent| sent.id.0).collect::<Vec<_>>(),
                &sent.iter().map(|sent| sent.fence).collect::<Vec<_>>(),
                &sent.iter().map(|sent| sent.progress.as_deref().map(Json)).collect::<Vec<_>>(),
                &texts.collect::<Vec<_>>(),
                &sizes.collect::<Vec<_>>(),
            ],
        )
        .map_err(|error| Error::postgres("could not store what tasks report", error))?;
    Ok(rows.iter().map(|row| TaskId(row.get(0))).collect())
}

/// Stores logs of starts that their worker has lost, and returns those that could not be.
fn store_all_remains(client: &mut Client, remains: Vec<Remains>) -> Vec<Remains> {
    let mut left = Vec::new();
    for remains in remains {
        match store_remains(client, &remains) {
            Ok(true) => {}
            Ok(false) => left.push(remains),
            Err(error) if error.is_unavailable() => left.push(remains),
            // Trying again would not help.
            Err(error) => log::warn!("{}", error::chain(&error)),
        }
    }
    left
}

/// Stores the log of a start that its worker has lost; false while somebody keeps its row
/// locked.
pub(super) fn store_remains(client: &mut Client, remains: &Remains) -> Result<bool, Error> {
    let Remains { id, fence, text, size } = remains;
    let row = client
        .query_one(
            include_str!("../../sql/queries/store_remains.sql"),
            &[&id.0, fence, text, &size.cast_signed()],
        )
        .map_err(|error| {
            Error::postgres(&format!("could not store the log of task {id}"), error)
        })?;
    Ok(!row.get::<_, bool>("is_locked"))
}
