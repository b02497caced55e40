//! `millhand completions`: what a shell needs to complete commands and flags.

use std::io;
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::Failure;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Print for this shell
    ///
    /// For bash: `millhand completions bash >
    /// ~/.local/share/bash-completion/completions/millhand`; for zsh, into a
    /// folder of $fpath as _millhand; for fish, into
    /// ~/.config/fish/completions/millhand.fish.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "millhand", &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)?;
    Ok(ExitCode::SUCCESS)
}
