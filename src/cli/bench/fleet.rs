//! The worker processes of a bench.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millhand::{Error, fleet};
use postgres::Client;
use rustix::process::{Pid, Signal};
use tempfile::NamedTempFile;

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
            let child = Command::new(&program)
                .args(["worker", "--type", load.worker_type().as_str(), "--threads"])
                .arg(load.threads.to_string())
                .arg("--config")
                .arg(config.path())
                .env("MILLHAND_DATABASE_URL", url)
                .envs(load.redis_url.iter().map(|url| ("MILLHAND_REDIS_URL", url)))
                .env("RUST_LOG", "warn")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|error| Error::Unavailable {
                    doing: "could not start a worker".to_owned(),
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

    pub(super) fn wait_until_done(&mut self, client: &mut Client) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let unfinished: bool = client
                .query_one(include_str!("../../../sql/bench/unfinished.sql"), &[])
                .map_err(|error| Error::postgres("could not look at the tasks", error))?
                .get(0);
            if !unfinished {
                return Ok(());
            }
            self.check(deadline)?;
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
