//! Draws the figures of examples/figures: runs `millhand bench`, keeps what it said as CSV,
//! and draws SVG and PNG from that.
//!
//! `make figures` runs all of it, which takes an hour or so; with `--from DIR` it only
//! draws what is stored there, with `--quick` it measures little, to try it out.

mod axis;
mod bursts;
mod canvas;
mod chart;
mod drains;
mod growth;
mod look;
mod machine;
mod progress;
mod runs;
mod summary;
mod table;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use chart::Figure;
use runs::{Plan, Programs};
use table::Table;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Measure with `millhand bench`, and draw the figures of examples/figures
#[derive(Debug, Parser)]
struct Args {
    /// Draw this figure only
    #[arg(long, value_enum)]
    only: Option<Name>,
    /// Measure nothing, and draw from the CSV files in DIR
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Measure few points and small loads, to try it out; into DIR of --out
    #[arg(long, requires = "out")]
    quick: bool,
    /// Measure with this program (default: the one built beside this example)
    #[arg(long, value_name = "PATH")]
    millhand: Option<PathBuf>,
    /// Write CSV, SVG and PNG into DIR (default: the folder of this example)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measure bursts of up to N threads at once, which mostly sleep; 0 for none
    #[arg(long, value_name = "N", default_value_t = 4)]
    together: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A burst of tasks, at more and more threads
    Bursts,
    /// A full table, worked off
    Drains,
    /// What a task costs beside more and more others
    Growth,
}

impl Name {
    fn as_str(self) -> &'static str {
        match self {
            Name::Bursts => "bursts",
            Name::Drains => "drains",
            Name::Growth => "growth",
        }
    }

    fn plan(self, args: &Args, programs: &Programs) -> Plan {
        match self {
            Name::Bursts => bursts::plan(args.quick, args.together, programs),
            Name::Drains => drains::plan(args.quick),
            Name::Growth => growth::plan(args.quick),
        }
    }

    fn figure(self, table: &Table) -> Outcome<Figure> {
        match self {
            Name::Bursts => bursts::figure(table),
            Name::Drains => drains::figure(table),
            Name::Growth => growth::figure(table),
        }
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("figures: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<()> {
    let names = match args.only {
        Some(name) => vec![name],
        None => vec![Name::Bursts, Name::Drains, Name::Growth],
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join("figures");
    let out = args.out.clone().unwrap_or(folder);
    std::fs::create_dir_all(&out)
        .map_err(|error| format!("could not make the folder {}: {error}", out.display()))?;
    let tables = match &args.from {
        Some(from) => from.clone(),
        None => {
            let programs = Programs::find(args.millhand.as_deref())?;
            let plans: Vec<Plan> = names.iter().map(|name| name.plan(args, &programs)).collect();
            runs::run(&plans, &programs, &out)?;
            out.clone()
        }
    };
    canvas::register_font()?;
    for name in names {
        let path = tables.join(format!("{}.csv", name.as_str()));
        let drawn = Table::read(&path).and_then(|table| {
            let figure = name.figure(&table)?;
            canvas::draw(&figure, &out.join(name.as_str()))
        });
        drawn.map_err(|error| format!("could not draw {}: {error}", path.display()))?;
    }
    Ok(())
}
