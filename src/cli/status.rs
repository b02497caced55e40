//! `millhand status` and `millhand workers`: the fleet at a glance.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use millhand::{TaskState, fleet};

use crate::cli::output::{json_line, printable, seconds, short, table};
use crate::cli::{Failure, Global};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WorkersArgs {
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run_status(global: &Global, args: &StatusArgs) -> Result<ExitCode, Failure> {
    let mut client = global.connect("millhand status")?;
    let status = fleet::status(&mut client)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &status).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    for state in TaskState::ALL {
        write!(out, "{state:<11}{:>9}", status.tasks[state.as_str()])?;
        match status.oldest_waiting {
            Some(age) if state == TaskState::Waiting => {
                writeln!(out, "  the eldest for {}", seconds(age))?;
            }
            _ => writeln!(out)?,
        }
    }
    writeln!(
        out,
        "{:<11}{:>9}  online, {} missing",
        "workers", status.workers_online, status.workers_missing
    )?;
    writeln!(out, "{:<11}{:>9}", "schema", status.schema_version)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn run_workers(global: &Global, args: &WorkersArgs) -> Result<ExitCode, Failure> {
    let mut client = global.connect("millhand workers")?;
    let workers = fleet::workers(&mut client)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        for worker in &workers {
            json_line(&mut out, worker)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows = workers.iter().map(|worker| {
        let task = match (worker.task, &worker.task_name) {
            (Some(id), Some(name)) => format!("{id} {}", short(name)),
            _ => "-".to_owned(),
        };
        vec![
            worker.id.to_string(),
            short(&worker.name),
            printable(&worker.r#type),
            short(&worker.hostname),
            worker.pid.to_string(),
            if worker.online { "online" } else { "missing" }.to_owned(),
            seconds(worker.heartbeat_age),
            task,
        ]
    });
    let header = ["id", "name", "type", "hostname", "pid", "state", "heartbeat", "task"];
    writeln!(out, "{}", table(&header, rows))?;
    Ok(ExitCode::SUCCESS)
}
