//! A private Redis: nothing on disk, on a loopback port behind a password.
//!
//! A Unix socket would do without both, but redis-cli takes no URL for one.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use rustix::process::Signal;

use super::{
    GuardedChild, GuardedDirectory, POLL_INTERVAL, SERVER_DEADLINE, find_in_path, not_started,
    system_error, wait_for_end,
};
use crate::error::Error;

/// How often another port is tried when somebody else was faster.
const N_ATTEMPTS: u32 = 5;

/// A Redis server that lives as long as this value.
#[derive(Debug)]
pub struct PrivateRedis {
    program: PathBuf,
    address: Ipv4Addr,
    port: u16,
    password: String,
    server: Option<GuardedChild>,
    directory: GuardedDirectory,
}

impl PrivateRedis {
    /// Starts an empty server.
    pub fn start() -> Result<PrivateRedis, Error> {
        PrivateRedis::start_on(Ipv4Addr::LOCALHOST)
    }

    /// The same on another address of this machine.
    pub fn start_on(address: Ipv4Addr) -> Result<PrivateRedis, Error> {
        let program = find_program()?;
        let directory = GuardedDirectory::new()?;
        let password = random_password()?;
        let mut redis =
            PrivateRedis { program, address, port: 0, password, server: None, directory };
        let mut attempt = 1;
        loop {
            redis.port = free_port(address)?;
            match redis.start_again() {
                Err(error) if error.is_unavailable() && attempt < N_ATTEMPTS => attempt += 1,
                other => return other.map(|()| redis),
            }
        }
    }

    /// Whether the program is installed.
    #[must_use]
    pub fn is_installed() -> bool {
        find_program().is_ok()
    }

    /// A URL for redis-cli and any other client. It holds a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://default:{}@{}:{}/0", self.password, self.address, self.port)
    }

    /// The process id of the server, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(GuardedChild::pid)
    }

    /// Stops; what was in it is lost.
    pub fn stop_fast(&mut self) {
        self.stop(Signal::TERM);
    }

    /// Kills the server at once.
    pub fn kill_hard(&mut self) {
        self.stop(Signal::KILL);
    }

    /// Starts a stopped server, empty, on the same port; nothing happens if it
    /// runs.
    pub fn start_again(&mut self) -> Result<(), Error> {
        if self.server.is_some() {
            return Ok(());
        }
        let doing = "could not set up a private Redis";
        let fail = |error| system_error(doing, error);
        let folder = self.directory.path();
        // In a file, because anyone may read the arguments of a process.
        let settings = format!(
            "bind {}\nport {}\nprotected-mode yes\nrequirepass {}\nsave \"\"\n\
             appendonly no\nmaxmemory-policy noeviction\n",
            self.address, self.port, self.password
        );
        std::fs::write(folder.join("redis.conf"), settings).map_err(fail)?;
        let log = folder.join("log");
        let output = File::create(&log).map_err(fail)?;
        let errors = output.try_clone().map_err(fail)?;
        let mut server = self.directory.spawn(&self.program, Signal::TERM, |command| {
            command.arg(folder.join("redis.conf")).process_group(0).current_dir(folder);
            command.stdin(Stdio::null()).stdout(output).stderr(errors);
        })?;
        let deadline = Instant::now() + SERVER_DEADLINE;
        while !self.answers() {
            let ended = server.try_wait().ok().flatten();
            if ended.is_some() {
                return Err(not_started("Redis", ended, &log));
            }
            if Instant::now() > deadline {
                server.signal(Signal::KILL);
                wait_for_end(&mut server);
                return Err(not_started("Redis", None, &log));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.server = Some(server);
        Ok(())
    }

    fn stop(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            server.signal(signal);
            wait_for_end(&mut server);
        }
    }

    fn answers(&self) -> bool {
        let connection = redis::Client::open(self.url()).and_then(|client| client.get_connection());
        connection
            .is_ok_and(|mut connection| redis::cmd("PING").query::<String>(&mut connection).is_ok())
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill_hard();
    }
}

fn find_program() -> Result<PathBuf, Error> {
    find_in_path("redis-server").or_else(|| find_in_path("valkey-server")).ok_or_else(|| {
        Error::Config(
            "could not find the program `redis-server`; install the package redis-server (Debian, \
             Ubuntu) or redis (Fedora, openSUSE)"
                .to_owned(),
        )
    })
}

fn free_port(address: Ipv4Addr) -> Result<u16, Error> {
    TcpListener::bind((address, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| system_error("could not find a free port", error))
}

fn random_password() -> Result<String, Error> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| system_error("could not read /dev/urandom", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
