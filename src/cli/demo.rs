//! `millhand demo`: package repositories are built from real files, by real
//! worker processes on a private Postgres, and the outcome is checked.

mod plan;
mod report;

use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use millhand::config::WorkerType;
use millhand::server::{
    GuardedChild, GuardedDirectory, PostgresOptions, PrivatePostgres, PrivateRedis,
};
use millhand::{Config, Error, Waker, client, db, migrate};
use postgres::Client;
use rustix::process::Signal;
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;

use super::Failure;
use super::dev::{catch_signals, code_of_signal, this_program};
use super::output::seconds;
use report::Expected;

/// The handlers, as they stand in examples/repository.
const FILES: [(&str, &str); 4] = [
    ("millhand.toml", include_str!("../../examples/repository/millhand.toml")),
    ("ingest.sh", include_str!("../../examples/repository/ingest.sh")),
    ("publish.sh", include_str!("../../examples/repository/publish.sh")),
    ("verify.sh", include_str!("../../examples/repository/verify.sh")),
];

/// Two, to show that it does not matter in which process a task runs.
const N_WORKER_PROCESSES: usize = 2;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long workers may take to end when there is nothing left to do.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Take the files below DIR (default: archives that cargo has downloaded)
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Build N repositories at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    repositories: u16,
    /// Run at most N tasks at once in each of two workers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=50))]
    threads: u16,
    /// Use the locks of TYPE
    #[arg(long = "type", value_name = "TYPE", default_value = "postgres")]
    worker_type: WorkerType,
}

/// Why the demo ended early.
enum Stop {
    Signal(i32),
    Failure(Failure),
}

impl<E: Into<Failure>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failure(error.into())
    }
}

pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    match build_repositories(args) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(Stop::Signal(signal)) => Ok(code_of_signal(signal)),
        Err(Stop::Failure(failure)) => Err(failure),
    }
}

fn build_repositories(args: &DemoArgs) -> Result<bool, Stop> {
    let mut signals = catch_signals()?;
    let archives = plan::find_archives(args.folder.as_deref())?;
    let n_files = archives.len();
    let repositories = usize::from(args.repositories);

    let directory = GuardedDirectory::new()?;
    let handlers = directory.path().join("handlers");
    fs::create_dir(&handlers)?;
    for (name, content) in FILES {
        fs::write(handlers.join(name), content)?;
        fs::set_permissions(handlers.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let rounds = plan::plan(&archives, repositories, &directory.path().join("repositories"));
    let n_tasks = rounds.iter().map(Vec::len).sum();
    eprintln!(
        "{n_files} files into {repositories} repositories: {n_tasks} tasks for \
         {N_WORKER_PROCESSES} workers of {} threads",
        args.threads
    );
    let postgres = PrivatePostgres::start(&PostgresOptions::default())?;
    let mut client = db::connect(&postgres.url(), "millhand demo")?;
    migrate::migrate(&mut client)?;
    let needs_redis = args.worker_type == WorkerType::Redis;
    let redis = needs_redis.then(PrivateRedis::start).transpose()?;
    let redis_url = redis.as_ref().map(PrivateRedis::url);
    obey(&mut signals)?;

    let began = Instant::now();
    let mut workers = Workers::start(args, &directory, &postgres.url(), redis_url.as_deref())?;
    let config = Config { redis_url: redis_url.clone(), ..Config::default() };
    let mut waker = redis.as_ref().map(|_| Waker::new(&config)).transpose()?;
    let progress = Progress::new(n_tasks);
    let mut expected = Vec::new();
    for round in rounds {
        obey(&mut signals)?;
        let (tasks, entries): (Vec<_>, Vec<_>) =
            round.into_iter().map(|step| (step.task, step.entries)).unzip();
        let ids = client::dispatch_many(&mut client, &tasks)?;
        if let Some(waker) = &mut waker {
            waker.wake()?;
        }
        for (id, entries) in ids.into_iter().zip(entries) {
            if let Some(entries) = entries {
                expected.push(Expected { id, entries });
            }
        }
    }
    loop {
        let n_final = count_final(&mut client)?;
        progress.show(n_final);
        if n_final == n_tasks {
            break;
        }
        obey(&mut signals)?;
        workers.check()?;
        std::thread::sleep(POLL_INTERVAL);
    }
    let took = began.elapsed();
    progress.end();

    let mut problems = workers.stop();
    problems.extend(leftovers(&mut client)?);
    if let Some(url) = redis_url {
        problems.extend(keys_left(&url)?);
    }
    writeln!(std::io::stdout(), "{n_tasks} tasks in {}\n", seconds(took.as_secs_f64()))?;
    let is_right = report::report(&mut client, n_tasks, &expected, problems)?;
    let program = std::env::args().next().unwrap_or_else(|| "millhand".to_owned());
    writeln!(
        std::io::stdout(),
        "\ntry next:\n  \
         {program} demo --repositories 8 --threads 4 ~/Downloads\n  \
         {program} dev\n  \
         {program} bench drain"
    )?;
    Ok(is_right)
}

/// Ends early when a signal asks us to.
fn obey(signals: &mut Signals) -> Result<(), Stop> {
    match signals.pending().find(|signal| *signal != SIGCHLD) {
        Some(signal) => Err(Stop::Signal(signal)),
        None => Ok(()),
    }
}

fn count_final(client: &mut Client) -> Result<usize, Error> {
    let row = client
        .query_one("SELECT count(*) FROM millhand.task WHERE finished_at IS NOT NULL", &[])
        .map_err(|error| Error::postgres("could not count the tasks", error))?;
    Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or_default())
}

/// Whether there are keys in this Redis, which nobody else uses, beside that of its
/// epoch.
fn keys_left(url: &str) -> Result<Option<String>, Error> {
    let count = || {
        let mut connection = redis::Client::open(url)?.get_connection()?;
        redis::cmd("DBSIZE").query::<usize>(&mut connection)
    };
    let n_keys = count().map_err(|error| Error::Unavailable {
        doing: "could not count the keys in Redis".to_owned(),
        source: error.into(),
    })?;
    Ok((n_keys > 1).then(|| format!("the workers left {} keys in Redis behind", n_keys - 1)))
}

/// What workers that have ended left behind, and must not.
fn leftovers(client: &mut Client) -> Result<Vec<String>, Error> {
    let deadline = Instant::now() + STOP_TIMEOUT;
    loop {
        let row = client
            .query_one(
                "SELECT (SELECT count(*) FROM millhand.worker),
                        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')",
                &[],
            )
            .map_err(|error| Error::postgres("could not look for leftovers", error))?;
        let (n_workers, n_locks): (i64, i64) = (row.get(0), row.get(1));
        if n_workers + n_locks == 0 {
            return Ok(Vec::new());
        }
        // Postgres takes a moment to notice that a connection has gone.
        if Instant::now() > deadline {
            return Ok(vec![format!(
                "the workers left {n_workers} rows and {n_locks} locks behind"
            )]);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The worker processes; none is left when this is dropped.
struct Workers {
    processes: Vec<GuardedChild>,
    logs: Vec<PathBuf>,
}

impl Workers {
    fn start(
        args: &DemoArgs,
        directory: &GuardedDirectory,
        database_url: &str,
        redis_url: Option<&str>,
    ) -> Result<Workers, Failure> {
        let program = this_program()?;
        let working_directory = directory.path().join("work");
        fs::create_dir(&working_directory)?;
        let mut workers = Workers { processes: Vec::new(), logs: Vec::new() };
        for number in 1..=N_WORKER_PROCESSES {
            let log = directory.path().join(format!("worker-{number}.log"));
            let output = fs::File::create(&log)?;
            let process = directory.spawn(&program, Signal::KILL, |command| {
                for (name, _) in std::env::vars_os() {
                    if name.as_encoded_bytes().starts_with(b"MILLHAND_") {
                        command.env_remove(name);
                    }
                }
                command
                    .arg("worker")
                    .arg("--config")
                    .arg(directory.path().join("handlers/millhand.toml"));
                command.args(["--threads", &args.threads.to_string()]);
                command.args(["--type", args.worker_type.as_str()]);
                command.env("MILLHAND_DATABASE_URL", database_url);
                command.envs(redis_url.map(|url| ("MILLHAND_REDIS_URL", url)));
                command.env("MILLHAND_WORKING_DIRECTORY", &working_directory);
                // Ctrl-C in a terminal is for us; we stop them.
                command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
            })?;
            workers.processes.push(process);
            workers.logs.push(log);
        }
        Ok(workers)
    }

    /// Fails if one of them has ended.
    fn check(&mut self) -> Result<(), Failure> {
        for (process, log) in self.processes.iter_mut().zip(&self.logs) {
            if let Some(status) = process.try_wait()? {
                let log = fs::read_to_string(log).unwrap_or_default();
                return Err(Failure::Millhand(Error::Conflict(format!(
                    "a worker ended with {status}: {}",
                    log.lines().last().unwrap_or_default()
                ))));
            }
        }
        Ok(())
    }

    /// Lets them end, and says what was wrong with that.
    fn stop(&mut self) -> Vec<String> {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> Vec<String> {
        let mut problems = Vec::new();
        for process in &self.processes {
            process.signal(signal);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for mut process in self.processes.drain(..) {
            loop {
                match process.try_wait() {
                    Ok(Some(status)) if status.success() => break,
                    Ok(Some(status)) => {
                        problems.push(format!("a worker ended with {status}"));
                        break;
                    }
                    _ if Instant::now() > deadline => {
                        process.signal(Signal::KILL);
                        let _ = process.wait();
                        problems.push("a worker did not end when it was told to".to_owned());
                        break;
                    }
                    _ => std::thread::sleep(POLL_INTERVAL),
                }
            }
        }
        problems
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end(Signal::QUIT);
    }
}

/// A bar on a terminal, a line for each fifth elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    n_tasks: usize,
    shown: std::cell::Cell<usize>,
}

impl Progress {
    fn new(n_tasks: usize) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} tasks, {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(n_tasks as u64).with_style(style)
        });
        Progress { bar, n_tasks, shown: std::cell::Cell::new(0) }
    }

    fn show(&self, n_final: usize) {
        let fifth = n_final * 5 / self.n_tasks.max(1);
        match &self.bar {
            Some(bar) => bar.set_position(n_final as u64),
            None if fifth > self.shown.replace(fifth) => {
                eprintln!("{n_final} of {} tasks done", self.n_tasks);
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
