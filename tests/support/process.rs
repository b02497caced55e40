//! `millhand` as a process: commands that end, and workers that go on.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use millhand::server::PrivatePostgres;
use millhand::task::NewTask;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::database::Database;
use super::redis::Redis;

/// In the environment of all that a test starts, so that what is left of it can
/// be found.
pub(crate) const MARKER: &str = "TEST_MARKER";

/// A folder with a config file, the working directories of tasks, and gates.
#[derive(Debug)]
pub(crate) struct Workshop {
    folder: TempDir,
    marker: String,
    url: String,
    pub(crate) redis: Redis,
}

impl Workshop {
    /// `handlers` is TOML that follows the settings, such as
    /// `[handlers.x] \n command = ["true"]`.
    pub(crate) fn new(database: &Database, handlers: &str) -> Workshop {
        Workshop::with_redis(database, Redis::new(), handlers)
    }

    /// With a Redis of its own.
    pub(crate) fn with_redis(database: &Database, redis: Redis, handlers: &str) -> Workshop {
        let folder = TempDir::with_prefix("millhand-test-").unwrap();
        fs::create_dir(folder.path().join("work")).unwrap();
        let marker = format!("{:016x}", super::random());
        let workshop = Workshop { folder, marker, url: database.url(), redis };
        workshop.configure(handlers);
        workshop
    }

    /// Writes the config file anew, in one step.
    pub(crate) fn configure(&self, handlers: &str) {
        let work = self.work().display().to_string();
        let config = format!("working_directory = {work:?}\n{handlers}\n");
        let new = self.folder.path().join("millhand.toml.new");
        fs::write(&new, config).unwrap();
        fs::rename(new, self.config_file()).unwrap();
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("millhand.toml")
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where tasks' working directories are made.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// A command that knows the database and the config file by its
    /// environment.
    pub(crate) fn millhand<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = millhand(args);
        if command.get_args().any(|arg| arg == "redis") {
            // Tests dispatch and cancel through SQL: nobody tells these workers.
            command.env("MILLHAND_POLL_INTERVAL", "20ms");
        }
        command
            // Whatever machine this is; most tests look at one worker.
            .env("MILLHAND_THREADS", "1")
            .env("MILLHAND_CONFIG", self.config_file())
            .env("MILLHAND_DATABASE_URL", &self.url)
            .env("MILLHAND_REDIS_URL", &self.redis.url)
            .env("MILLHAND_REDIS_PREFIX", &self.redis.prefix)
            .env(MARKER, &self.marker);
        command
    }

    /// A worker process with these further flags.
    pub(crate) fn worker(&self, worker_type: &str, flags: &[&str]) -> WorkerProcess {
        let mut command = self.millhand(["worker", "--type", worker_type]);
        command.args(flags);
        WorkerProcess::start(command)
    }

    /// A worker process of type redis that looks by itself only once an hour, and
    /// sweeps as seldom.
    pub(crate) fn deaf_worker(&self, flags: &[&str]) -> WorkerProcess {
        let mut command = self.millhand(["worker", "--type", "redis"]);
        command.args(flags).env("MILLHAND_POLL_INTERVAL", "1h").env("MILLHAND_TTL", "10h");
        WorkerProcess::start(command)
    }

    /// Processes that this test started and that still run, but not workers
    /// that are ours to wait for.
    pub(crate) fn processes(&self) -> Vec<String> {
        let wanted = format!("{MARKER}={}", self.marker);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            if environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
                let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                found.push(format!("{} {command}", entry.file_name().display()));
            }
        }
        found
    }

    /// Waits until the command of a task has come to this gate. Its row says
    /// `running` a moment before the command begins.
    #[track_caller]
    pub(crate) fn wait_at_gate(&self, database: &Database, name: &str) {
        let note = self.folder.path().join(format!("at-{name}"));
        super::wait_until(database, &format!("somebody at gate {name}"), super::SOON, || {
            if note.exists() { Ok(()) } else { Err("nobody") }
        });
    }

    /// Lets the tasks that wait at this gate go on; see [`GATE_HANDLERS`].
    pub(crate) fn open_gate(&self, name: &str) {
        fs::write(self.folder.path().join(format!("gate-{name}")), "").unwrap();
    }
}

/// Handlers of tasks that run until the test opens their gate. `gate` obeys
/// SIGTERM, `stubborn` does not.
pub(crate) const GATE_HANDLERS: &str = r#"
[handlers.gate]
command = ["sh", "-c", ": >\"$0/at-$1\"; while [ ! -e \"$0/gate-$1\" ]; do sleep 0.01; done", "{folder}", "{gate}"]
[handlers.stubborn]
command = ["sh", "-c", "trap '' TERM INT HUP; : >\"$0/at-$1\"; while [ ! -e \"$0/gate-$1\" ]; do sleep 0.01; done", "{folder}", "{gate}"]
"#;

/// A task that runs until [`Workshop::open_gate`] of this name.
pub(crate) fn gate_task(workshop: &Workshop, handler: &str, gate: &str) -> NewTask {
    let folder = workshop.path().display().to_string();
    NewTask::new(handler).args(serde_json::json!({ "folder": folder, "gate": gate }))
}

/// The program without any setting from the tester's own environment.
pub(crate) fn millhand<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millhand"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MILLHAND_") || text.starts_with("PG") {
            command.env_remove(name);
        }
    }
    // No config file in the working directory.
    command.current_dir("/").stdin(Stdio::null()).args(args);
    command
}

/// The same command, as what these words start.
pub(crate) fn within<S: AsRef<OsStr>>(words: &[S], command: &Command) -> Command {
    let mut all = words.iter().map(AsRef::as_ref).chain([command.get_program()]);
    let mut wrapped = Command::new(all.next().unwrap());
    wrapped.args(all).args(command.get_args()).current_dir("/").stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

/// The processes whose parent this is, the dead ones that it has not noticed included.
pub(crate) fn children_of(parent: u32) -> Vec<Pid> {
    let mut pids: Vec<Pid> = Vec::new();
    // A child is the one of the thread that started it.
    for entry in fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
        let list = fs::read_to_string(entry.path().join("children")).unwrap_or_default();
        pids.extend(list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
    }
    pids
}

/// Every process of a Postgres server, the first one first.
pub(crate) fn server_processes(server: &PrivatePostgres) -> Vec<Pid> {
    let Some(pid) = server.pid() else { return Vec::new() };
    let first = Pid::from_raw(pid.cast_signed()).unwrap();
    [first].into_iter().chain(children_of(pid)).collect()
}

/// Sends a signal to each of them that is there.
pub(crate) fn signal_all(pids: &[Pid], signal: Signal) {
    for pid in pids {
        let _ = kill_process(*pid, signal);
    }
}

/// What a command that has ended said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Said {
    let output: Output = command.output().unwrap();
    Said {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs a command to its end, with this on stdin.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Said {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, input.as_bytes()).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    run(command.stdin(file))
}

/// A worker process; killed when the test ends before it does.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    child: Child,
    status: Option<ExitStatus>,
    stderr: PathBuf,
    /// Of its database.
    url: String,
    _folder: TempDir,
}

impl WorkerProcess {
    pub(crate) fn start(mut command: Command) -> WorkerProcess {
        let folder = TempDir::with_prefix("millhand-test-").unwrap();
        let stderr = folder.path().join("stderr");
        let url = command.get_envs().find(|(name, _)| *name == "MILLHAND_DATABASE_URL");
        let url = url.and_then(|(_, value)| value?.to_str()).unwrap_or_default().to_owned();
        let child =
            command.stdout(Stdio::null()).stderr(File::create(&stderr).unwrap()).spawn().unwrap();
        WorkerProcess { child, status: None, stderr, url, _folder: folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, unless it was seen to have ended.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.status = self.child.try_wait().unwrap();
        self.status.is_some()
    }

    /// What it wrote to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// How it ended; panics, with its stderr, if it goes on for too long.
    #[track_caller]
    pub(crate) fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let (url, stderr) = (&self.url, &self.stderr);
        let progress = || {
            let n_bytes = fs::metadata(stderr).map_or(0, |stderr| stderr.len());
            format!("{n_bytes} {}", super::database::progress(url))
        };
        let child = &mut self.child;
        let ended = super::look_while(deadline, progress, || child.try_wait().unwrap().ok_or(()));
        self.status = ended.ok();
        self.status.unwrap_or_else(|| {
            panic!("the worker did not end within {deadline:?}; its stderr:\n{}", self.stderr())
        })
    }

    /// Sends a signal, waits for the end, and panics unless the exit code is 0.
    #[track_caller]
    pub(crate) fn stop(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.wait(super::SOON);
        assert!(status.success(), "the worker ended with {status}:\n{}", self.stderr());
    }

    /// Kills it as a power failure would, and reaps it.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait(super::SOON);
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("stderr of worker process {}:\n{}", self.child.id(), self.stderr());
        }
    }
}
