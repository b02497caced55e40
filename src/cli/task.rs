//! `millhand task`: list, show, cancel, wait for tasks, read their logs.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use millhand::{Error, Task, TaskId, TaskState, client, error};
use postgres::Client;

use crate::cli::output::{
    between, complain, json_line, printable, printable_lines, seconds, short, table,
};
use crate::cli::wait::wait_for_tasks;
use crate::cli::{Failure, Global};

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
    Logs(LogsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// List only tasks in STATE; may be given many times
    #[arg(long, value_name = "STATE", value_parser = state_parser())]
    state: Vec<TaskState>,
    /// List only tasks of this name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// List at most N tasks (default: 50)
    #[arg(long, value_name = "N", default_value_t = 50, hide_default_value = true)]
    limit: u32,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Show the task of this number
    #[arg(value_name = "ID")]
    id: TaskId,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    /// Give up after TIME, such as 500ms or 2m (default: never)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Print the log of the task of this number
    #[arg(value_name = "ID")]
    id: TaskId,
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
        TaskCommand::Logs(args) => logs(global, &args),
    }
}

fn list(global: &Global, args: &ListArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task list")?;
    let limit = i64::from(args.limit);
    let tasks = client::list_tasks(&mut connection, &args.state, args.name.as_deref(), limit)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.json {
        for task in &tasks {
            json_line(&mut out, task)?;
        }
    } else {
        let header = ["id", "state", "name", "resources", "age", "run time", "worker"];
        let now = Timestamp::now();
        writeln!(out, "{}", table(&header, tasks.iter().map(|task| row(task, now))))?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn row(task: &Task, now: Timestamp) -> Vec<String> {
    vec![
        task.id.to_string(),
        task.state.to_string(),
        short(&task.name),
        short(&resources(task)),
        seconds(between(task.created_at, now)),
        run_time(task, now).unwrap_or_else(|| "-".to_owned()),
        task.worker.as_deref().map_or_else(|| "-".to_owned(), short),
    ]
}

/// `a b +c`: `a` and `b` for itself, `c` together with others.
fn resources(task: &Task) -> String {
    if task.exclusive.is_empty() && task.shared.is_empty() {
        return "-".to_owned();
    }
    let shared = task.shared.iter().map(|name| format!("+{name}"));
    task.exclusive.iter().cloned().chain(shared).collect::<Vec<_>>().join(" ")
}

fn run_time(task: &Task, now: Timestamp) -> Option<String> {
    let started_at = task.started_at?;
    Some(seconds(between(started_at, task.finished_at.unwrap_or(now))))
}

fn show(global: &Global, args: &ShowArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task show")?;
    let task = client::get_task(&mut connection, args.id)?;
    let mut out = io::stdout().lock();
    if args.json {
        json_line(&mut out, &task)?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = |names: &[String]| (!names.is_empty()).then(|| names.join(", "));
    for (title, value) in [
        ("id", Some(task.id.to_string())),
        ("name", Some(task.name.clone())),
        ("state", Some(task.state.to_string())),
        ("error", task.error.clone()),
        ("result", text(task.result.as_ref())),
        ("progress", text(task.progress.as_ref())),
        ("args", Some(task.args.to_string())),
        ("exclusive", names(&task.exclusive)),
        ("shared", names(&task.shared)),
        ("position", text(task.position.as_ref())),
        ("worker", task.worker.clone()),
        ("fence", text(task.fence.as_ref())),
        ("attempt", Some(task.attempt.to_string())),
        ("created at", Some(task.created_at.to_string())),
        ("started at", text(task.started_at.as_ref())),
        ("finished at", text(task.finished_at.as_ref())),
        ("run time", run_time(&task, Timestamp::now())),
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
                writeln!(io::stdout(), "{id} {state}")?;
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
    let states = wait_for_tasks(&mut connection, &args.ids, args.timeout)?;
    let mut out = io::stdout().lock();
    for (id, state) in args.ids.iter().zip(&states) {
        writeln!(out, "{id} {state}")?;
    }
    if let Some(position) = states.iter().position(|state| !state.is_final()) {
        let (id, state) = (args.ids[position], states[position]);
        let timeout = humantime::format_duration(args.timeout.unwrap_or_default());
        let n_others = states[position + 1..].iter().filter(|state| !state.is_final()).count();
        let others = if n_others > 0 { format!(" (and {n_others} more)") } else { String::new() };
        complain(&format!("task {id} is still `{state}` after {timeout}{others}; it goes on"));
    }
    let all_completed = states.iter().all(|state| *state == TaskState::Completed);
    Ok(if all_completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn logs(global: &Global, args: &LogsArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task logs")?;
    let log = client::task_log(&mut connection, args.id)?;
    let mut out = io::stdout().lock();
    // A file gets what the command wrote; a terminal does not obey it.
    if out.is_terminal() {
        write!(out, "{}", printable_lines(&log))?;
    } else {
        write!(out, "{log}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn text(value: Option<&impl Display>) -> Option<String> {
    value.map(ToString::to_string)
}
