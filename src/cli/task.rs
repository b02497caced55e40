//! `millhand task`: list, show, cancel, wait for tasks, read their logs.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use millhand::client::TaskFilter;
use millhand::config::parse_duration;
use millhand::{Error, Task, TaskId, TaskState, client, error};
use postgres::Client;
use serde::Serialize;

use crate::cli::output::{
    Colour, Listing, between, colour_of, complain, json_line, names, printable, seconds, short,
};
use crate::cli::wait::{code_after_wait, refuse_deadlock, wait_for_tasks};
use crate::cli::{Failure, Global, logs};

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List tasks, newest first
    List(ListArgs),
    /// Show all about one task
    Show(ShowArgs),
    /// Cancel tasks, waiting or running
    Cancel(CancelArgs),
    /// Wait until tasks have ended
    Wait(WaitArgs),
    /// Print what a task's command wrote to stderr
    Logs(logs::LogsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// List only tasks in STATE; may be given many times
    #[arg(short, long, value_name = "STATE", value_parser = state_parser())]
    state: Vec<TaskState>,
    /// List only tasks of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// List only tasks that need RESOURCE, exclusively or shared
    #[arg(short, long, value_name = "RESOURCE")]
    resource: Option<String>,
    /// List only tasks that WORKER runs or ran last
    #[arg(short, long, value_name = "WORKER")]
    worker: Option<String>,
    /// List only tasks dispatched since TIME: 10m (ago), 2026-01-31,
    /// 2026-01-31T12:00 (of this machine) or 2026-01-31T12:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// List the oldest first
    #[arg(long)]
    oldest: bool,
    /// List at most N tasks (default: 50)
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, hide_default_value = true)]
    limit: u32,
    /// Print no line of titles
    #[arg(long)]
    no_header: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Show the task of this number
    #[arg(value_name = "ID")]
    id: TaskId,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Cancel the tasks of these numbers
    #[arg(value_name = "ID", required = true)]
    ids: Vec<TaskId>,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait for the tasks of these numbers; exit 1 unless all complete
    #[arg(value_name = "ID", required = true)]
    ids: Vec<TaskId>,
    /// Stop waiting after TIME, such as 500ms or 2m, and exit 124
    /// (default: never)
    #[arg(short, long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// What a listing says of a task that has just changed.
#[derive(Debug, Serialize)]
struct Changed {
    id: TaskId,
    state: TaskState,
}

impl Changed {
    fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match json {
            true => json_line(&mut out, self),
            false => writeln!(out, "{} {}", self.id, self.state),
        }
    }
}

/// A moment: so long ago, or a date, or a time of this machine or of a zone.
fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = parse_duration(text) {
        let ago = jiff::SignedDuration::try_from(ago).map_err(|error| error.to_string())?;
        return Timestamp::now().checked_sub(ago).map_err(|error| error.to_string());
    }
    let zoned = |time: jiff::civil::DateTime| time.to_zoned(jiff::tz::TimeZone::system());
    text.parse()
        .or_else(|_| text.parse().and_then(zoned).map(|zoned| zoned.timestamp()))
        .map_err(|_| "expected such as 10m, 2026-01-31 or 2026-01-31T12:00Z".to_owned())
}

fn state_parser() -> impl TypedValueParser<Value = TaskState> {
    PossibleValuesParser::new(TaskState::ALL.map(TaskState::as_str))
        .map(|name| name.parse().expect("only names of states are possible values"))
}

pub(crate) fn run(global: &Global, command: TaskCommand) -> Result<ExitCode, Failure> {
    match command {
        TaskCommand::List(args) => list(global, &args),
        TaskCommand::Show(args) => show(global, &args),
        TaskCommand::Cancel(args) => cancel(global, &args),
        TaskCommand::Wait(args) => wait(global, &args),
        TaskCommand::Logs(args) => logs::run(global, &args),
    }
}

fn list(global: &Global, args: &ListArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task list")?;
    let filter = TaskFilter {
        states: args.state.clone(),
        name: args.name.clone(),
        resource: args.resource.clone(),
        worker: args.worker.clone(),
        since: args.since,
        oldest_first: args.oldest,
        limit: args.limit,
    };
    let tasks = client::list_tasks(&mut connection, &filter)?;
    let titles = ["id", "state", "name", "exclusive", "shared", "age", "run time", "worker"];
    let now = Timestamp::now();
    Listing::new(&titles, args.no_header).print(global.json, &tasks, |task| row(task, now))?;
    Ok(ExitCode::SUCCESS)
}

fn row(task: &Task, now: Timestamp) -> Vec<(String, Option<Colour>)> {
    vec![
        (task.id.to_string(), None),
        (task.state.to_string(), colour_of(task.state)),
        (short(&task.name), None),
        (short(&names(&task.exclusive)), None),
        (short(&names(&task.shared)), None),
        (seconds(between(task.created_at, now)), None),
        (run_time(task, now).unwrap_or_else(|| "-".to_owned()), None),
        (task.worker.as_deref().map_or_else(|| "-".to_owned(), short), None),
    ]
}

fn run_time(task: &Task, now: Timestamp) -> Option<String> {
    let started_at = task.started_at?;
    Some(seconds(between(started_at, task.finished_at.unwrap_or(now))))
}

fn show(global: &Global, args: &ShowArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task show")?;
    let task = client::get_task(&mut connection, args.id)?;
    let mut out = io::stdout().lock();
    if global.json {
        json_line(&mut out, &task)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let list = |list: &[String]| (!list.is_empty()).then(|| names(list));
    let ago = |at: Timestamp| {
        let shown = at.round(jiff::Unit::Second).unwrap_or(at);
        format!("{shown} ({} ago)", seconds(between(at, now)))
    };
    for (title, value) in [
        ("id", Some(task.id.to_string())),
        ("name", Some(task.name.clone())),
        ("state", Some(task.state.to_string())),
        ("error", task.error.clone()),
        ("result", text(task.result.as_ref())),
        ("progress", text(task.progress.as_ref())),
        ("args", Some(task.args.to_string())),
        ("exclusive", list(&task.exclusive)),
        ("shared", list(&task.shared)),
        ("position", text(task.position.as_ref())),
        ("worker", task.worker.clone()),
        ("fence", text(task.fence.as_ref())),
        ("attempt", Some(task.attempt.to_string())),
        ("created at", Some(ago(task.created_at))),
        ("started at", task.started_at.map(ago)),
        ("finished at", task.finished_at.map(ago)),
        ("run time", run_time(&task, now)),
    ] {
        if let Some(value) = value {
            writeln!(out, "{title:<12} {}", printable(&value))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn cancel(global: &Global, args: &CancelArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task cancel")?;
    let mut code = ExitCode::SUCCESS;
    let mut canceled = Vec::new();
    for &id in &args.ids {
        match cancel_one(&mut connection, id) {
            Ok(state) => {
                canceled.push(id);
                Changed { id, state }.print(global.json)?;
            }
            Err(error @ (Error::NotFound(_) | Error::Conflict(_))) => {
                complain(&error::chain(&error));
                code = ExitCode::FAILURE;
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !canceled.is_empty() {
        global.tell_workers(&mut connection, |waker| {
            // What waited behind one that had not started may start.
            canceled.iter().try_for_each(|id| waker.cancel(*id)).and_then(|()| waker.wake())
        });
    }
    Ok(code)
}

fn cancel_one(connection: &mut Client, id: TaskId) -> Result<TaskState, Error> {
    // The state before tells a task that was canceled long ago from one that
    // is canceled now.
    let before = client::get_task(connection, id)?.state;
    let state = if before.is_final() { before } else { client::cancel(connection, id)? };
    if before.is_final() || matches!(state, TaskState::Completed | TaskState::Failed) {
        return Err(Error::Conflict(format!("task {id} is `{state}` already; nothing to cancel")));
    }
    Ok(state)
}

fn wait(global: &Global, args: &WaitArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task wait")?;
    refuse_deadlock(&mut connection, &args.ids)?;
    let states = wait_for_tasks(global, &mut connection, &args.ids, args.timeout)?;
    for (&id, &state) in args.ids.iter().zip(&states) {
        Changed { id, state }.print(global.json)?;
    }
    Ok(code_after_wait(&args.ids, &states, args.timeout))
}

fn text(value: Option<&impl Display>) -> Option<String> {
    value.map(ToString::to_string)
}
