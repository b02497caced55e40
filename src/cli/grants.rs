//! `millhand grants`: what a role needs, as SQL for the owner of the tables.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use millhand::Error;

use crate::cli::Failure;

#[derive(Debug, Args)]
pub(crate) struct GrantsArgs {
    /// Print what this role needs; it need not exist yet
    #[arg(value_name = "ROLE")]
    role: String,
    /// Print what it needs for KIND; may be given many times
    #[arg(long = "for", value_name = "KIND", required = true)]
    kinds: Vec<Kind>,
}

/// What a role is for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// Creates tasks, and reads none
    Dispatcher,
    /// Runs tasks
    Worker,
    /// Sees tasks and workers, and cancels
    Operator,
    /// Sees tasks and workers
    Reader,
}

impl Kind {
    fn sql(self) -> &'static str {
        match self {
            Kind::Dispatcher => include_str!("../../sql/grants/dispatcher.sql"),
            Kind::Worker => include_str!("../../sql/grants/worker.sql"),
            Kind::Operator => include_str!("../../sql/grants/operator.sql"),
            Kind::Reader => include_str!("../../sql/grants/reader.sql"),
        }
    }
}

pub(crate) fn run(args: &GrantsArgs) -> Result<ExitCode, Failure> {
    if args.role.is_empty() {
        return Err(Error::Config("a role needs a name".to_owned()).into());
    }
    let role = quoted(&args.role);
    let mut out = io::stdout().lock();
    for kind in &args.kinds {
        write!(out, "{}", kind.sql().replace(":\"role\"", &role))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The name as SQL takes it, whatever is in it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
