//! `millhand help`: the help of a subcommand, or on a topic that none has.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use millhand::Error;

use super::Failure;

/// What a command gets, and what is made of what it does: also in README and in the
/// documentation of the module that does it.
const CONTRACT: &str = include_str!("../worker/command/contract.md");

const HANDLERS: &str = "\
Handlers are named in the config file, each by the name of its tasks:

  [handlers.checksum]
  command = [\"sha256sum\", \"{file}\"]

Beside `command` they take `directory`, `environment`, `clean_environment`,
`user` and `can_dispatch`. SIGHUP has a worker read them anew.
";

const SECRETS: &str = "\
A command that runs as the worker's user can read what the worker can, its
settings too: `user` is what keeps them apart.
";

#[derive(Debug, Args)]
pub(crate) struct HelpArgs {
    /// Print the help of this subcommand, or `handlers`: what a command gets
    #[arg(value_name = "TOPIC")]
    topic: Vec<String>,
}

pub(crate) fn run(args: &HelpArgs) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    if args.topic == ["handlers"] {
        write!(out, "{HANDLERS}\n{}\n\n{SECRETS}", contract())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = super::command();
    command.build();
    let mut found = &mut command;
    for name in &args.topic {
        let known: Vec<String> =
            found.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        found = match found.find_subcommand_mut(name) {
            Some(subcommand) => subcommand,
            None => return Err(unknown(name, known).into()),
        };
    }
    write!(out, "{}", found.render_long_help())?;
    Ok(ExitCode::SUCCESS)
}

fn unknown(topic: &str, mut known: Vec<String>) -> Error {
    known.push("handlers".to_owned());
    let likeness = |name: &String| strsim::jaro_winkler(name, topic);
    let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    Error::Config(format!(
        "there is no help on `{topic}`; did you mean `{}`?",
        nearest.map(String::as_str).unwrap_or_default()
    ))
}

/// The table as text of two columns.
fn contract() -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(79);
    for line in CONTRACT.lines().skip(2) {
        let cells = line.trim_matches('|').splitn(2, " | ");
        table.add_row(cells.map(|cell| cell.trim().replace('`', "")));
    }
    table.trim_fmt()
}
