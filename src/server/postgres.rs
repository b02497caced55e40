//! A private Postgres: durable, on a Unix socket in its own directory.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use postgres::error::SqlState;
use rustix::process::{Pid, Signal, kill_process};

use super::programs::{find_programs, has_stat_statements};
use super::{
    GuardedChild, GuardedDirectory, POLL_INTERVAL, SERVER_DEADLINE, not_started, system_error,
    unprivileged_account, wait_for_end,
};
use crate::db;
use crate::error::Error;

/// The superuser that initdb makes.
const USER: &str = "postgres";

/// The database made for the caller.
const DATABASE: &str = "millhand";

/// How a private Postgres is set up.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// How many connections it takes.
    pub max_connections: u32,
    /// Where it listens beside its socket, if anywhere; who comes from that network
    /// (/24) is let in without a password.
    pub listen: Option<SocketAddrV4>,
    /// A program and its arguments that become the server, such as `env NAME=VALUE`.
    pub wrapper: Vec<OsString>,
}

impl Default for PostgresOptions {
    fn default() -> PostgresOptions {
        PostgresOptions { max_connections: 200, listen: None, wrapper: Vec::new() }
    }
}

/// A Postgres server that lives as long as this value.
#[derive(Debug)]
pub struct PrivatePostgres {
    pub(super) programs: PathBuf,
    options: PostgresOptions,
    server: Option<GuardedChild>,
    was_killed: bool,
    directory: GuardedDirectory,
}

impl PrivatePostgres {
    /// Starts a server with an empty database.
    pub fn start(options: &PostgresOptions) -> Result<PrivatePostgres, Error> {
        let mut postgres = PrivatePostgres::without_data(options)?;
        postgres.init()?;
        postgres.start_again()?;
        Ok(postgres)
    }

    /// A server that has nothing yet but a directory.
    pub(super) fn without_data(options: &PostgresOptions) -> Result<PrivatePostgres, Error> {
        Ok(PrivatePostgres {
            programs: find_programs()?,
            options: options.clone(),
            server: None,
            was_killed: false,
            directory: GuardedDirectory::owned_by(unprivileged_account()?)?,
        })
    }

    /// A URL for psql and any other client, without a password.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    /// The same by the network, if it listens there.
    #[must_use]
    pub fn network_url(&self) -> Option<String> {
        self.options
            .listen
            .map(|address| format!("postgresql://{USER}@{address}/{DATABASE}?sslmode=disable"))
    }

    /// The directory with its data, socket and log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id of the server, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(GuardedChild::pid)
    }

    /// Ends all sessions and stops in good order.
    pub fn stop_fast(&mut self) {
        self.stop(Signal::INT);
    }

    /// Stops as after a loss of power, but in good order with the system: the
    /// next start recovers from the log.
    pub fn stop_hard(&mut self) {
        self.stop(Signal::QUIT);
    }

    /// Kills the server and all its sessions at once.
    pub fn kill_hard(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // Stopped, it starts no session that we would not see.
        server.signal(Signal::STOP);
        let sessions = children_of(server.pid());
        server.signal(Signal::KILL);
        let _ = server.wait();
        for session in &sessions {
            let _ = kill_process(*session, Signal::KILL);
        }
        // The next start refuses while one of them has the shared memory.
        let deadline = Instant::now() + SERVER_DEADLINE;
        while sessions.iter().any(|session| is_running(*session)) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
        self.was_killed = true;
    }

    /// Starts a stopped server on the data it had; nothing happens if it runs.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.server.is_some() {
            return Ok(());
        }
        let log = self.directory.path().join("log");
        let output =
            OpenOptions::new().create(true).append(true).open(&log).map_err(|error| {
                system_error("could not open the log of a private Postgres", error)
            })?;
        let mut words = self.options.wrapper.clone();
        words.push(self.programs.join("postgres").into());
        let mut server = self.run(Path::new(&words[0]), Signal::QUIT, output, |command| {
            command.args(&words[1..]).arg("-D").arg(self.data());
        })?;
        let deadline = Instant::now() + SERVER_DEADLINE;
        loop {
            let failure = match self.try_connect() {
                Ok(()) => break,
                Err(failure) => failure,
            };
            let ended = server.try_wait().ok().flatten();
            if ended.is_some() {
                return Err(not_started("Postgres", ended, &log));
            }
            // It does not answer yet, or says that it is starting up.
            if !failure.is_unavailable() || Instant::now() > deadline {
                server.signal(Signal::QUIT);
                wait_for_end(&mut server);
                return Err(if failure.is_unavailable() {
                    not_started("Postgres", None, &log)
                } else {
                    failure
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.server = Some(server);
        self.was_killed = false;
        Ok(())
    }

    fn stop(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            server.signal(signal);
            wait_for_end(&mut server);
        }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn url_of(&self, database: &str) -> String {
        let host = percent_encode(&self.directory.path().display().to_string());
        format!("postgresql://{USER}@/{database}?host={host}&port={}", self.port())
    }

    pub(super) fn port(&self) -> u16 {
        self.options.listen.map_or(5432, |address| address.port())
    }

    fn init(&self) -> Result<(), Error> {
        let log = self.directory.path().join("log");
        let output = File::create(&log).map_err(|error| {
            system_error("could not write the log of a private Postgres", error)
        })?;
        let initdb = self.programs.join("initdb");
        let mut initdb = self.run(&initdb, Signal::TERM, output, |command| {
            command
                .args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
                .arg(format!("--username={USER}"))
                .arg(self.data());
        })?;
        let status =
            initdb.wait().map_err(|error| system_error("could not wait for initdb", error))?;
        if !status.success() {
            return Err(not_started("Postgres", Some(status), &log));
        }
        if let Some(address) = self.options.listen {
            let line = format!("host all all {}/24 trust\n", address.ip());
            self.append("pg_hba.conf", &line)?;
        }
        self.configure(&self.settings())
    }

    /// Adds settings; of two with one name the later one counts.
    pub(super) fn configure(&self, settings: &[(&str, String)]) -> Result<(), Error> {
        let line =
            |(name, value): &(&str, String)| format!("{name} = '{}'\n", value.replace('\'', "''"));
        self.append("postgresql.conf", &settings.iter().map(line).collect::<String>())
    }

    fn append(&self, name: &str, text: &str) -> Result<(), Error> {
        OpenOptions::new()
            .append(true)
            .open(self.data().join(name))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| system_error(format!("could not write {name}"), error))
    }

    /// Fast, and as durable as any: fsync and synchronous commit stay on.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let mut settings: Vec<(&str, String)> = [
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("shared_buffers", "256MB"),
            ("max_wal_size", "2GB"),
            ("autovacuum", "on"),
            ("track_commit_timestamp", "on"),
        ]
        .map(|(name, value)| (name, value.to_owned()))
        .into();
        settings.push(("unix_socket_directories", self.directory.path().display().to_string()));
        let address = self.options.listen.map(|address| address.ip().to_string());
        settings.push(("listen_addresses", address.unwrap_or_default()));
        settings.push(("port", self.port().to_string()));
        settings.push(("max_connections", self.options.max_connections.to_string()));
        if has_stat_statements(&self.programs) {
            settings.push(("shared_preload_libraries", "pg_stat_statements".to_owned()));
        }
        settings
    }

    pub(super) fn run(
        &self,
        program: &Path,
        signal: Signal,
        output: File,
        setup: impl FnOnce(&mut Command),
    ) -> Result<GuardedChild, Error> {
        let errors = output.try_clone().map_err(|error| {
            system_error(format!("could not start {}", program.display()), error)
        })?;
        self.directory.spawn(program, signal, |command| {
            // Ctrl-C in a terminal is for us, and the caller's directory may
            // be closed to the account of the server.
            command.process_group(0).current_dir("/");
            command.stdin(Stdio::null()).stdout(output).stderr(errors);
            for (name, _) in std::env::vars_os() {
                if name.as_encoded_bytes().starts_with(b"PG") {
                    command.env_remove(name);
                }
            }
            setup(command);
        })
    }

    /// Succeeds when the caller's database is there to be used.
    fn try_connect(&self) -> Result<(), Error> {
        let doing = "could not create a database";
        match db::connect(&self.url(), "millhand start") {
            Err(error) if error.sqlstate() == Some(&SqlState::UNDEFINED_DATABASE) => {}
            other => return other.map(drop),
        }
        let mut client = db::connect(&self.url_of("postgres"), "millhand start")?;
        client
            .batch_execute(&format!("CREATE DATABASE {DATABASE}"))
            .map_err(|error| Error::postgres(doing, error))?;
        if has_stat_statements(&self.programs) {
            db::connect(&self.url(), "millhand start")?
                .batch_execute("CREATE EXTENSION pg_stat_statements")
                .map_err(|error| Error::postgres(doing, error))?;
        }
        Ok(())
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // A killed server has left shared memory behind, which only its next
        // start removes.
        if self.was_killed {
            let _ = self.start_again();
        }
        self.stop_hard();
    }
}

/// The processes whose parent this is.
fn children_of(parent: u32) -> Vec<Pid> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| stat_fields(*pid).get(1).is_some_and(|field| *field == parent.to_string()))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Whether a process is there and not only waits for its parent to notice.
fn is_running(pid: Pid) -> bool {
    stat_fields(pid.as_raw_nonzero().get()).first().is_some_and(|state| state != "Z")
}

/// What /proc says of a process, from its state on; empty if it is gone.
fn stat_fields(pid: i32) -> Vec<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before may contain anything.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    fields.split_whitespace().map(str::to_owned).collect()
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_directory_fits_into_a_url() {
        assert_eq!(percent_encode("/tmp/a-b c"), "%2Ftmp%2Fa-b%20c");
    }
}
