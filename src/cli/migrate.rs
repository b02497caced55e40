//! `millhand migrate`: bring the database's schema up to this program's.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use millhand::migrate;
use serde_json::json;

use crate::cli::output::json_line;
use crate::cli::{Failure, Global};

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Change nothing; exit 2 if the schema is not up to date
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(global: &Global, args: &MigrateArgs) -> Result<ExitCode, Failure> {
    let mut client = global.connect_unchecked("millhand migrate")?;
    let applied = match args.check {
        true => migrate::check(&mut client).map(|()| Vec::new())?,
        false => migrate::migrate(&mut client)?,
    };
    let mut out = std::io::stdout().lock();
    if global.json {
        let version = migrate::known_version();
        json_line(&mut out, &json!({ "applied": applied, "schema_version": version }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for version in applied {
        writeln!(out, "applied migration {version}")?;
    }
    writeln!(out, "schema version {} is up to date", migrate::known_version())?;
    Ok(ExitCode::SUCCESS)
}
