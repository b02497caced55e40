//! `millhand migrate`: bring the database's schema up to this program's.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use millhand::migrate;

use crate::cli::{Failure, Global};

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Change nothing; exit 2 if the schema is not up to date
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(global: &Global, args: &MigrateArgs) -> Result<ExitCode, Failure> {
    let mut client = global.connect_unchecked("millhand migrate")?;
    let mut out = std::io::stdout().lock();
    if args.check {
        migrate::check(&mut client)?;
    } else {
        for version in migrate::migrate(&mut client)? {
            writeln!(out, "applied migration {version}")?;
        }
    }
    writeln!(out, "schema version {} is up to date", migrate::known_version())?;
    Ok(ExitCode::SUCCESS)
}
