//! `millhand status`: the fleet at a glance, for people and for monitoring.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use millhand::TaskState;
use millhand::config::parse_duration;
use millhand::fleet::{self, Status};

use crate::cli::output::{json_line, seconds};
use crate::cli::{Failure, Global};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print one line and exit 1 unless all is well: a worker is online, and
    /// none is missing
    #[arg(long)]
    check: bool,
    /// With --check: no task may have waited longer than TIME, such as 5m
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "check")]
    max_wait: Option<Duration>,
    /// With --check: no task may have run longer than TIME
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "check")]
    max_run: Option<Duration>,
}

pub(crate) fn run(global: &Global, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let mut client = global.connect("millhand status")?;
    let status = fleet::status(&mut client)?;
    let complaints = if args.check { complaints(&status, args) } else { Vec::new() };
    let mut out = std::io::stdout().lock();
    if global.json {
        let mut object = serde_json::to_value(&status).map_err(std::io::Error::from)?;
        if args.check {
            object["ok"] = complaints.is_empty().into();
            object["problems"] = complaints.clone().into();
        }
        json_line(&mut out, &object)?;
    } else if !args.check {
        print(&mut out, &status)?;
    } else if complaints.is_empty() {
        writeln!(out, "ok: {}", summary(&status))?;
    } else {
        writeln!(out, "{}; {}", complaints.join(", "), summary(&status))?;
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(out: &mut impl Write, status: &Status) -> std::io::Result<()> {
    for state in TaskState::ALL {
        let aside = match state {
            TaskState::Waiting => status.oldest_waiting.map(|age| ("the oldest for", age)),
            TaskState::Running => status.longest_running.map(|age| ("the longest for", age)),
            _ => None,
        };
        let aside = aside.map(|(what, age)| format!("  {what} {}", seconds(age)));
        let last_hour = status.last_hour.get(state.as_str()).filter(|n| **n > 0);
        let aside = aside.or_else(|| last_hour.map(|n| format!("  {n} in the last hour")));
        let n = status.tasks[state.as_str()];
        writeln!(out, "{:<11}{n:>9}{}", state.as_str(), aside.unwrap_or_default())?;
    }
    let (online, missing) = (status.workers_online, status.workers_missing);
    writeln!(out, "{:<11}{online:>9}  online, {missing} missing", "workers")?;
    writeln!(out, "{:<11}{:>9}", "schema", status.schema_version)
}

fn summary(status: &Status) -> String {
    let count = |state: TaskState| status.tasks[state.as_str()];
    format!(
        "online workers: {}, waiting tasks: {}, running: {}",
        status.workers_online,
        count(TaskState::Waiting),
        count(TaskState::Running),
    )
}

/// What is not well.
fn complaints(status: &Status, args: &StatusArgs) -> Vec<String> {
    let mut complaints = Vec::new();
    if status.workers_online == 0 {
        complaints.push("no worker is online".to_owned());
    }
    if status.workers_missing > 0 {
        complaints.push(format!("workers missing: {}", status.workers_missing));
    }
    for (limit, age, what) in [
        (args.max_wait, status.oldest_waiting, "waits"),
        (args.max_run, status.longest_running, "runs"),
    ] {
        if let (Some(limit), Some(age)) = (limit, age)
            && age > limit.as_secs_f64()
        {
            complaints.push(format!("a task {what} for {}", seconds(age)));
        }
    }
    complaints
}
