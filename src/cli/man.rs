//! `millhand man`: manual pages, from the same definition as the help.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap_mangen::Man;
use millhand::Error;

use super::Failure;

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write millhand.1 and a page for each subcommand into DIR
    ///
    /// Without DIR the page of `millhand` itself is printed, as in
    /// `millhand man | man -l -`.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs) -> Result<ExitCode, Failure> {
    let mut command = super::command();
    command.build();
    match &args.folder {
        None => io::stdout().lock().write_all(&page(&command)?)?,
        Some(folder) => write_pages(folder, &command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn write_pages(folder: &Path, command: &clap::Command) -> Result<(), Failure> {
    let unwritable = |path: &Path, error: &io::Error| {
        Error::Config(format!("could not write {}: {error}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    let mut commands = vec![command];
    while let Some(command) = commands.pop() {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page(command)?).map_err(|error| unwritable(&path, &error))?;
        let subcommands = command.get_subcommands();
        commands.extend(subcommands.filter(|c| !c.is_hide_set()));
    }
    Ok(())
}

fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}
