//! `millhand worker`: run tasks until told to stop.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use millhand::config::{WorkerType, parse_duration};
use millhand::worker::{Control, Shutdown};
use millhand::{Config, Error, Registry, Worker, error};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{Failure, Global};

#[derive(Debug, Clone, Args)]
pub(crate) struct WorkerArgs {
    /// Run at most N tasks at once (default: one for each processor,
    /// MILLHAND_THREADS)
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
    /// Use the locks of TYPE (default: postgres, MILLHAND_WORKER_TYPE)
    #[arg(long = "type", value_name = "TYPE")]
    worker_type: Option<WorkerType>,
    /// Exit when no task is left that could run; with 1 if any failed
    #[arg(long)]
    burst: bool,
    /// Leave housekeeping to other workers
    ///
    /// That is to sweep workers that have died, whose tasks keep their
    /// resources until then, and, with type pulpcore, to mark what may start.
    /// At least one worker online should keep house; this one says if none
    /// does.
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
    /// Count a worker as missing after TIME without a heartbeat (default: 30s,
    /// MILLHAND_TTL)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Look for missed work every TIME (default: 1s, MILLHAND_POLL_INTERVAL)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    poll_interval: Option<Duration>,
    /// Share N connections to Postgres, with type redis (default: 8,
    /// MILLHAND_POOL_SIZE)
    #[arg(long, value_name = "N")]
    pool_size: Option<u32>,
    /// Begin all keys in Redis with PREFIX (default: millhand,
    /// MILLHAND_REDIS_PREFIX)
    #[arg(long, value_name = "PREFIX")]
    redis_prefix: Option<String>,
    /// Make tasks' working directories in DIR (default: the system's,
    /// MILLHAND_WORKING_DIRECTORY)
    #[arg(long, value_name = "DIR")]
    working_directory: Option<PathBuf>,
    /// After SIGTERM let tasks run TIME at most (default: no limit,
    /// MILLHAND_STOP_AFTER)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    stop_after: Option<Duration>,
    /// After SIGINT let tasks run TIME at most (default: 10m,
    /// MILLHAND_TASK_GRACE_INTERVAL)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    task_grace_interval: Option<Duration>,
    /// Give canceled commands TIME from SIGTERM to SIGKILL (default: 5s,
    /// MILLHAND_CANCEL_GRACE_INTERVAL)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    cancel_grace_interval: Option<Duration>,
}

impl WorkerArgs {
    /// Lets the flags override the settings.
    fn apply(&self, config: &mut Config) {
        fn set<T: Clone>(setting: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                setting.clone_from(value);
            }
        }
        set(&mut config.threads, &self.threads);
        set(&mut config.worker_type, &self.worker_type);
        set(&mut config.name_template, &self.name_template);
        set(&mut config.ttl, &self.ttl);
        set(&mut config.poll_interval, &self.poll_interval);
        set(&mut config.pool_size, &self.pool_size);
        set(&mut config.redis_prefix, &self.redis_prefix);
        set(&mut config.task_grace_interval, &self.task_grace_interval);
        set(&mut config.cancel_grace_interval, &self.cancel_grace_interval);
        config.working_directory =
            self.working_directory.clone().or(config.working_directory.take());
        config.stop_after = self.stop_after.or(config.stop_after);
    }
}

/// Runs tasks until a signal says to stop, or, with `--burst`, until nothing
/// is left.
pub(crate) fn run(global: &Global, args: &WorkerArgs) -> Result<ExitCode, Failure> {
    let mut config = global.load_all()?;
    args.apply(&mut config);
    let _pid_file = args.pid_file.as_deref().map(PidFile::write).transpose()?;
    let program = std::env::current_exe().map_err(|error| Error::Unavailable {
        doing: "could not find the program's own file".to_owned(),
        source: error.into(),
    })?;
    let mut warden = vec![program.into_os_string(), "warden".into()];
    warden.extend(global.log_flags().map(OsString::from));
    let mut global = global.clone();
    // The same file, whatever else lies about by then.
    global.config = global.config.or_else(|| config.file.clone());
    let worker = Worker::new(config, Registry::new())
        .commands(true)
        .burst(args.burst)
        .auxiliary(args.auxiliary)
        .owns_process(true)
        .warden(warden);
    let flags = args.clone();
    let read_anew = move || {
        let mut config = global.load_all()?;
        flags.apply(&mut config);
        config.check()?;
        Ok(config)
    };
    obey_signals(worker.control(), read_anew)?;
    let tally = worker.run()?;
    // Whoever runs what there is, as in a test, wants to know how it went.
    Ok(if args.burst && tally.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// SIGTERM drains, SIGINT gives running tasks a grace period, a second SIGINT and SIGQUIT
/// end them now. SIGHUP reads the handlers anew, unless the terminal is gone.
fn obey_signals(
    control: Control,
    read_anew: impl Fn() -> Result<Config, Error> + Send + 'static,
) -> Result<(), Error> {
    let unavailable = |error: std::io::Error| Error::Unavailable {
        doing: "could not set up signals".to_owned(),
        source: error.into(),
    };
    // Before the signals are caught, which ends the ignoring.
    let ends_with_terminal = has_terminal() && !ignores_hangup();
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT, SIGQUIT]).map_err(unavailable)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                match signal {
                    SIGQUIT => control.stop(Shutdown::Now),
                    SIGINT => control.stop(Shutdown::Grace),
                    SIGHUP if !ends_with_terminal || has_terminal() => match read_anew() {
                        Ok(config) => control.reload(config),
                        Err(error) => {
                            log::error!("the handlers stay as they were: {}", error::chain(&error));
                        }
                    },
                    _ => control.stop(Shutdown::Drain),
                }
            }
        })
        .map_err(unavailable)?;
    Ok(())
}

/// Whether this process has a terminal that could hang up.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether SIGHUP is ignored, as under nohup(1).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
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
