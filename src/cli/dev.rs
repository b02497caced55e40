//! `millhand dev`: private servers for a command, or for a worker.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use clap::Args;
use millhand::server::{self, GuardedDirectory, PostgresOptions, PrivatePostgres, PrivateRedis};
use millhand::{Error, db, migrate};
use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::output::complain;
use super::{Failure, Global};

/// As a shell has it.
const EXIT_NOT_FOUND: u8 = 127;

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Run COMMAND instead of a worker, and exit with its code
    ///
    /// It finds the servers in MILLHAND_DATABASE_URL and MILLHAND_REDIS_URL,
    /// and this program as `millhand`. What it leaves running is killed.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) fn run(global: &Global, args: &DevArgs) -> Result<ExitCode, Failure> {
    if let Some(program) = args.command.first().and_then(|program| program.to_str())
        && !program.contains('/')
        && server::find_in_path(program).is_none()
    {
        complain(&format!("`{program}` is not in the PATH"));
        return Ok(ExitCode::from(EXIT_NOT_FOUND));
    }
    // Before the servers start, so that a signal does not skip their end.
    let mut signals = catch_signals()?;
    let postgres = PrivatePostgres::start(&PostgresOptions::default())?;
    let redis = match PrivateRedis::is_installed() {
        true => Some(PrivateRedis::start()?),
        false => {
            complain("goes on without Redis: redis-server is not installed");
            None
        }
    };
    migrate::migrate(&mut db::connect(&postgres.url(), "millhand dev")?)?;
    if let Some(signal) = signals.pending().find(|signal| *signal != SIGCHLD) {
        return Ok(code_of_signal(signal));
    }
    let this_program = this_program()?;
    let setup = |command: &mut Command| {
        command.env("MILLHAND_DATABASE_URL", postgres.url());
        match &redis {
            Some(redis) => command.env("MILLHAND_REDIS_URL", redis.url()),
            None => command.env_remove("MILLHAND_REDIS_URL"),
        };
    };
    let directory = GuardedDirectory::new()?;
    let mut child = if let Some((program, arguments)) = args.command.split_first() {
        directory.spawn(Path::new(program), Signal::TERM, |command| {
            setup(command);
            command.args(arguments);
            if let Some(path) = path_with(&this_program) {
                command.env("PATH", path);
            }
        })?
    } else {
        eprintln!("export MILLHAND_DATABASE_URL='{}'", postgres.url());
        if let Some(redis) = &redis {
            eprintln!("export MILLHAND_REDIS_URL='{}'", redis.url());
        }
        directory.spawn(&this_program, Signal::KILL, |command| {
            setup(command);
            // Its own group: Ctrl-C reaches it through us, once.
            command.args(["worker", "--threads", "4"]).process_group(0);
            if let Some(file) = &global.config {
                command.arg("--config").arg(file);
            }
        })?
    };
    // A command shares our terminal, whose Ctrl-C reaches it directly.
    let has_ctrl_c = !args.command.is_empty() && std::io::stdin().is_terminal();
    for signal in signals.forever() {
        if signal == SIGCHLD {
            if let Some(status) = child.try_wait()? {
                return Ok(code_of(status));
            }
        } else if !(signal == SIGINT && has_ctrl_c)
            && let Some(signal) = Signal::from_named_raw(signal)
        {
            // A worker would only read its handlers anew.
            let is_hangup = signal == Signal::HUP && args.command.is_empty();
            let signal = if is_hangup { Signal::TERM } else { signal };
            child.signal(signal);
        }
    }
    Ok(ExitCode::FAILURE)
}

/// Signals that ask us to end, and news of our children.
pub(crate) fn catch_signals() -> Result<Signals, Error> {
    Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD]).map_err(|error| Error::Unavailable {
        doing: "could not catch signals".to_owned(),
        source: error.into(),
    })
}

/// The exit code of a program that ended because of a signal, as in a shell.
pub(crate) fn code_of_signal(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

/// The file of the program that runs.
pub(crate) fn this_program() -> Result<PathBuf, Error> {
    std::env::current_exe().map_err(|error| Error::Unavailable {
        doing: "could not find this program's file".to_owned(),
        source: error.into(),
    })
}

fn code_of(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => ExitCode::FAILURE,
    }
}

/// `$PATH` with this program's folder before the others, if it has to be added.
fn path_with(program: &Path) -> Option<OsString> {
    let folder = program.parent()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if folders.iter().any(|known| known == folder) {
        return None;
    }
    std::env::join_paths(std::iter::once(folder.to_owned()).chain(folders)).ok()
}
