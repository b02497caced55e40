//! The worker processes of a bench.

use std::io::{IsTerminal, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use millhand::{Error, fleet};
use postgres::Client;
use rustix::process::{Pid, Signal};
use tempfile::NamedTempFile;

use super::starts::Starts;
use super::{Load, PATIENCE};
use crate::cli::dev::this_program;

/// How often the table is asked whether all is done.
const LOOK: Duration = Duration::from_millis(25);

/// Commands that a fleet may be asked to run.
const COMMANDS: &str = "[handlers]\n\
    \"bench.sleep\" = { command = [\"sleep\", \"600\"] }\n\
    \"bench.true\" = { command = [\"true\"] }\n";

pub(super) struct Fleet {
    processes: Vec<Child>,
    n_workers: usize,
    /// Settings of the user's own workers are none of the bench's.
    _config: NamedTempFile,
}

impl Fleet {
    /// Starts the processes; they come online by themselves.
    pub(super) fn start(url: &str, load: &Load) -> Result<Fleet, Error> {
        Fleet::configured(url, load, "")
    }

    /// Starts processes that can run the commands `bench.sleep` and `bench.true`.
    pub(super) fn with_commands(url: &str, load: &Load) -> Result<Fleet, Error> {
        Fleet::configured(url, load, COMMANDS)
    }

    fn configured(url: &str, load: &Load, settings: &str) -> Result<Fleet, Error> {
        let program = this_program()?;
        let unwritable = |error: std::io::Error| Error::Unavailable {
            doing: "could not write the workers' settings".to_owned(),
            source: error.into(),
        };
        let mut config = NamedTempFile::new().map_err(unwritable)?;
        config.write_all(settings.as_bytes()).map_err(unwritable)?;
        let mut processes = Vec::new();
        for _ in 0..load.processes {
            let mut command = match &load.program {
                Some(program) => Command::new(program),
                None => Command::new(&program),
            };
            if load.program.is_none() {
                command.args(["worker", "--type", load.worker_type().as_str()]);
                command.arg("--config").arg(config.path());
            }
            let child = command
                .arg("--threads")
                .arg(load.threads.to_string())
                .env("MILLHAND_DATABASE_URL", url)
                .envs(load.redis_url.iter().map(|url| ("MILLHAND_REDIS_URL", url)))
                .env("RUST_LOG", "warn")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|error| Error::Unavailable {
                    doing: format!("could not start {}", command.get_program().display()),
                    source: error.into(),
                })?;
            processes.push(child);
        }
        Ok(Fleet { processes, n_workers: load.processes * load.threads, _config: config })
    }

    /// The processes' ids.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Child::id).collect()
    }

    pub(super) fn wait_until_online(&mut self, client: &mut Client) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        while fleet::workers(client)?.len() < self.n_workers {
            self.check(deadline)?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits for the end of these tasks; on a terminal it shows how many have started.
    pub(super) fn wait_until_done(
        &mut self,
        client: &mut Client,
        n_tasks: usize,
    ) -> Result<(), Error> {
        self.feed_until_done(client, n_tasks, |_, _| Ok(false))
    }

    /// The same while more of them come: `feed`, which is told whether all that came so
    /// far has ended, dispatches some, and says whether any are left.
    pub(super) fn feed_until_done(
        &mut self,
        client: &mut Client,
        n_tasks: usize,
        mut feed: impl FnMut(&mut Client, bool) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut progress = Progress::new(n_tasks, self.n_workers);
        let mut unfinished = true;
        loop {
            let more_come = feed(client, !unfinished)?;
            unfinished = client
                .query_one(include_str!("../../../sql/bench/unfinished.sql"), &[])
                .map_err(|error| Error::postgres("could not look at the tasks", error))?
                .get(0);
            if !unfinished && !more_come {
                return Ok(());
            }
            self.check(deadline)?;
            progress.show(client)?;
            std::thread::sleep(LOOK);
        }
    }

    fn check(&mut self, deadline: Instant) -> Result<(), Error> {
        for process in &mut self.processes {
            if let Ok(Some(status)) = process.try_wait() {
                return Err(Error::Conflict(format!("a worker ended before its time, {status}")));
            }
        }
        if Instant::now() > deadline {
            return Err(Error::Conflict(format!(
                "the workers were not done in {} s",
                PATIENCE.as_secs()
            )));
        }
        Ok(())
    }

    /// Stops the processes in good order.
    pub(super) fn stop(mut self) -> Result<(), Error> {
        self.signal(Signal::TERM);
        for process in &mut self.processes {
            let status = process.wait().map_err(|error| Error::Unavailable {
                doing: "could not wait for a worker".to_owned(),
                source: error.into(),
            })?;
            if !status.success() {
                return Err(Error::Conflict(format!("a worker did not end well, {status}")));
            }
        }
        self.processes.clear();
        Ok(())
    }

    /// Kills the processes at once.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        for process in &mut self.processes {
            let _ = process.wait();
        }
        self.processes.clear();
    }

    fn signal(&self, signal: Signal) {
        for process in &self.processes {
            let _ = rustix::process::kill_process(Pid::from_child(process), signal);
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.signal(Signal::QUIT);
        for process in &mut self.processes {
            let _ = process.wait();
        }
    }
}

/// A bar on a terminal; elsewhere nothing, and nothing is asked for it.
struct Progress {
    bar: Option<ProgressBar>,
    starts: Starts,
}

impl Progress {
    fn new(n_tasks: usize, n_workers: usize) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{wide_bar} {pos}/{len} tasks started, {elapsed}, {eta} left",
            );
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(n_tasks as u64).with_style(style)
        });
        Progress { bar, starts: Starts::new(n_workers) }
    }

    fn show(&mut self, client: &mut Client) -> Result<(), Error> {
        if let Some(bar) = &self.bar {
            bar.set_position(self.starts.count(client)? as u64);
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
