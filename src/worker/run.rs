//! Runs one claimed task on the worker's thread and turns whatever happens
//! into an outcome.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use postgres::types::Json;
use serde_json::value::{RawValue, to_raw_value};

use super::Shared;
use super::claim::{Claimed, Claims, Outcome, text_as_json};
use super::command::{self, NotBegun};
use super::inbox::Inbox;
use super::offer::Runnable;
use crate::context::Context;
use crate::error::panic_text;

/// How many resources a line of the log names.
const MOST_NAMES: usize = 10;

/// The reason stored for a task that a shutdown ended.
pub(crate) const ABORTED: &str = "aborted during worker shutdown";

/// Runs the task to its end, unless it could not begin.
pub(crate) fn run_task(
    shared: &Shared,
    worker_name: &str,
    task: Claimed,
    inbox: &Inbox,
    claims: &mut dyn Claims,
    thread: usize,
) -> Result<Outcome, NotBegun> {
    let began = Instant::now();
    // It is the one of now: the handlers may have been read anew since the task was found.
    let handler = shared.offer.get(&task.name).ok_or(NotBegun::Gone)?;
    // There may be thousands of functions a second.
    let level = match handler {
        Runnable::Command(_) => log::Level::Info,
        Runnable::Function(_) => log::Level::Debug,
    };
    // No function pays for lines that nobody sees.
    let who = || format!("worker {worker_name}: task {}", described(&task));
    log::log!(level, "{}: started", who());
    let args = match task.args.text() {
        Ok(args) => args,
        Err(reason) => return Ok(Outcome::failed(reason)),
    };
    let context = Context {
        id: task.id,
        name: &task.name,
        fence: task.fence,
        attempt: task.attempt,
        claims: RefCell::new(claims),
        inbox,
        reports: &shared.reports,
    };
    let mut outcome = match handler {
        Runnable::Function(function) => {
            match catch_unwind(AssertUnwindSafe(|| function(&context, args))) {
                Ok(Ok(result)) => Outcome::completed(result),
                Ok(Err(error)) => Outcome::failed(error),
                Err(panic) => Outcome::failed(format!("panicked: {}", panic_text(&*panic))),
            }
        }
        Runnable::Command(plan) => {
            command::run(shared, worker_name, thread, &plan, &task.args, &context)?
        }
    };
    let progress = shared.reports.end(task.fence);
    outcome.progress = progress.map(|progress| Json((*progress).to_owned()));
    if !outcome.completed && inbox.is_aborting() && !inbox.is_canceled(context.id) {
        outcome.error = Some(ABORTED.to_owned());
    }
    outcome.error = outcome.error.map(storable);
    outcome.log = outcome.log.map(storable);
    outcome.result = outcome.result.map(|Json(result)| Json(storable_json(result)));
    let told = || {
        let time = Duration::from_millis(began.elapsed().as_millis() as u64);
        format!("{} after {}", who(), humantime::format_duration(time))
    };
    match &outcome.error {
        None => log::log!(level, "{}: completed", told()),
        Some(reason) if inbox.is_canceled(context.id) => {
            log::log!(level, "{}: ended, as it was canceled: {}", told(), one_line(reason));
        }
        Some(reason) => log::warn!("{}: failed: {}", told(), one_line(reason)),
    }
    Ok(outcome)
}

/// A task's number, name and resources.
fn described(task: &Claimed) -> String {
    let mut text = format!("{} `{}`", task.id, one_line(&task.name));
    for (kind, names) in [("exclusive", &task.exclusive), ("shared", &task.shared)] {
        if !names.is_empty() {
            let names: Vec<String> =
                names.iter().take(MOST_NAMES).map(|name| one_line(name)).collect();
            let more = if names.len() == MOST_NAMES { ", ..." } else { "" };
            text.push_str(&format!(" {kind} {}{more}", names.join(", ")));
        }
    }
    text
}

/// What a task says, as a line of a log that a terminal may show.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Postgres text holds any character but NUL.
fn storable(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

/// The same for JSON.
pub(crate) fn storable_json(json: Box<RawValue>) -> Box<RawValue> {
    if !json.get().contains("\\u0000") {
        return json;
    }
    serde_json::from_str(json.get())
        .map(without_nul)
        .and_then(|value| to_raw_value(&value))
        .unwrap_or_else(|_| text_as_json(json.get()))
}

fn without_nul(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(storable(text)),
        Value::Array(values) => values.into_iter().map(without_nul).collect(),
        Value::Object(fields) => Value::Object(
            fields.into_iter().map(|(key, value)| (storable(key), without_nul(value))).collect(),
        ),
        other => other,
    }
}
