//! `millhand workers`: who is there, and what each runs.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use millhand::fleet::{self, WorkerInfo};

use super::output::{Colour, Listing, printable, seconds, short};
use super::{Failure, Global};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct WorkersArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List workers, oldest first (the same as `millhand workers`)
    List(ListArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print no line of titles
    #[arg(long)]
    no_header: bool,
}

pub(crate) fn run(global: &Global, args: &WorkersArgs) -> Result<ExitCode, Failure> {
    let args = match &args.what {
        Some(What::List(args)) => args,
        None => &args.list,
    };
    let mut client = global.connect("millhand workers")?;
    let workers = fleet::workers(&mut client)?;
    let titles = ["id", "name", "type", "hostname", "pid", "state", "heartbeat", "task"];
    let listing = Listing::new(&titles, args.no_header);
    listing.print(global.json, &workers, row)?;
    Ok(ExitCode::SUCCESS)
}

fn row(worker: &WorkerInfo) -> Vec<(String, Option<Colour>)> {
    let task = match (worker.task, &worker.task_name) {
        (Some(id), Some(name)) => format!("{id} {}", short(name)),
        _ => "-".to_owned(),
    };
    let (state, colour) = match (worker.online, worker.auxiliary) {
        (true, false) => ("online", Colour::Green),
        (true, true) => ("online, auxiliary", Colour::Green),
        (false, _) => ("missing", Colour::Red),
    };
    vec![
        (worker.id.to_string(), None),
        (short(&worker.name), None),
        (printable(&worker.r#type), None),
        (short(&worker.hostname), None),
        (worker.pid.to_string(), None),
        (state.to_owned(), Some(colour)),
        (seconds(worker.heartbeat_age), None),
        (task, None),
    ]
}
