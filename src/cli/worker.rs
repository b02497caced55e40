//! `millhand worker`: run tasks until told to stop.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use millhand::config::WorkerType;
use millhand::worker::{Control, Shutdown};
use millhand::{Config, Error, Registry, Worker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Failure;

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// Run at most N tasks at once (default: 1, MILLHAND_THREADS)
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Use the locks of TYPE (default: postgres, MILLHAND_WORKER_TYPE)
    #[arg(long = "type", value_name = "TYPE")]
    worker_type: Option<WorkerType>,
    /// Exit when no task is left that could run
    #[arg(long)]
    burst: bool,
    /// Leave housekeeping to other workers
    #[arg(long)]
    auxiliary: bool,
    /// Write the process id to FILE while running
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Name workers after TEMPLATE (default: {pid}@{hostname}/{thread},
    /// MILLHAND_NAME_TEMPLATE)
    ///
    /// Knows {pid}, {hostname}, {fqdn} and {thread}, the number of the thread.
    #[arg(long, value_name = "TEMPLATE")]
    name_template: Option<String>,
    /// After SIGTERM let tasks run TIME at most (default: no limit,
    /// MILLHAND_STOP_AFTER)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_after: Option<Duration>,
    /// After SIGINT let tasks run TIME at most (default: 10m,
    /// MILLHAND_TASK_GRACE_INTERVAL)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    task_grace_interval: Option<Duration>,
}

impl WorkerArgs {
    /// Lets the flags override the settings.
    fn apply(&self, config: &mut Config) {
        if let Some(threads) = self.threads {
            config.threads = threads;
        }
        if let Some(worker_type) = self.worker_type {
            config.worker_type = worker_type;
        }
        if let Some(name_template) = &self.name_template {
            config.name_template.clone_from(name_template);
        }
        if self.stop_after.is_some() {
            config.stop_after = self.stop_after;
        }
        if let Some(interval) = self.task_grace_interval {
            config.task_grace_interval = interval;
        }
    }
}

/// Runs tasks until a signal says to stop, or, with `--burst`, until nothing
/// is left.
pub(crate) fn run(args: &WorkerArgs, mut config: Config) -> Result<ExitCode, Failure> {
    args.apply(&mut config);
    let _pid_file = args.pid_file.as_deref().map(PidFile::write).transpose()?;
    let program = std::env::current_exe().map_err(|error| Error::Unavailable {
        doing: "could not find the program's own file".to_owned(),
        source: error.into(),
    })?;
    let worker = Worker::new(config, Registry::new())
        .burst(args.burst)
        .auxiliary(args.auxiliary)
        .owns_process(true)
        .warden(vec![program.into_os_string(), "warden".into()]);
    obey_signals(worker.control())?;
    worker.run()?;
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGHUP drain, SIGINT gives running tasks a grace period, a
/// second SIGINT and SIGQUIT end them now.
fn obey_signals(control: Control) -> Result<(), Error> {
    let unavailable = |error: std::io::Error| Error::Unavailable {
        doing: "could not set up signals".to_owned(),
        source: error.into(),
    };
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT]).map_err(unavailable)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                control.stop(match signal {
                    SIGQUIT => Shutdown::Now,
                    SIGINT => Shutdown::Grace,
                    _ => Shutdown::Drain,
                });
            }
        })
        .map_err(unavailable)?;
    Ok(())
}

/// A file that holds our process id for as long as we run.
struct PidFile<'a>(&'a Path);

impl PidFile<'_> {
    fn write(path: &Path) -> Result<PidFile<'_>, Error> {
        std::fs::write(path, format!("{}\n", std::process::id())).map_err(|error| {
            Error::Config(format!("could not write the pid file {}: {error}", path.display()))
        })?;
        Ok(PidFile(path))
    }
}

impl Drop for PidFile<'_> {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(self.0) {
            log::warn!("could not remove the pid file {}: {error}", self.0.display());
        }
    }
}
