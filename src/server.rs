//! Private Postgres and Redis servers, from the programs installed on this
//! machine: for `millhand dev`, `millhand demo` and tests.
//!
//! A private server lives in a temporary directory, is reachable by its owner
//! only, and ends with the value that stands for it. It also ends, and its
//! directory goes, when this program is killed: see [`GuardedDirectory`].

mod directory;
mod postgres;
mod programs;
mod redis;
mod standby;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

pub use directory::{GuardedChild, GuardedDirectory};
pub use postgres::{PostgresOptions, PrivatePostgres};
pub use redis::PrivateRedis;

use crate::error::Error;

/// How long a server may take to start or to stop.
const SERVER_DEADLINE: Duration = Duration::from_secs(60);

/// How often it is looked whether it has.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// An account that a server runs as instead of root.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

/// The account that Postgres, which refuses to run as root, runs as if we are
/// root; none if we are not.
fn unprivileged_account() -> Result<Option<Account>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let accounts = std::fs::read_to_string("/etc/passwd")
        .map_err(|error| Error::Config(format!("could not read /etc/passwd: {error}")))?;
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| find_account(&accounts, name))
        .map(Some)
        .ok_or_else(|| {
            Error::Config(
                "Postgres does not run as root, and there is neither a user `postgres` nor \
                 `nobody` to run it as; add one of them"
                    .to_owned(),
            )
        })
}

fn find_account(accounts: &str, name: &str) -> Option<Account> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    Some(Account { uid, gid })
}

/// Where a program of the Postgres server's package is, such as pgbench.
pub fn postgres_program(name: &str) -> Result<PathBuf, Error> {
    let program = programs::find_programs()?.join(name);
    if program.is_file() {
        return Ok(program);
    }
    find_in_path(name).ok_or_else(|| {
        Error::Config(format!(
            "{name} is not installed; it comes with Postgres' server or contrib package"
        ))
    })
}

/// The first program of this name in `$PATH`.
#[must_use]
pub fn find_in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_absolute() && candidate.is_file())
}

/// Waits for a server's end, and ends it by force when that takes too long.
fn wait_for_end(child: &mut GuardedChild) {
    let deadline = Instant::now() + SERVER_DEADLINE;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > deadline {
            child.signal(rustix::process::Signal::KILL);
            let _ = child.wait();
            return;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A server that did not start: how it ended, and the end of its log.
fn not_started(server: &str, status: Option<ExitStatus>, log: &Path) -> Error {
    let how = match status {
        Some(status) => format!("it ended with {status}"),
        None => format!("it did not answer within {} s", SERVER_DEADLINE.as_secs()),
    };
    let log = std::fs::read(log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(5)..].join("; ");
    Error::Unavailable {
        doing: format!("could not start a private {server}"),
        source: format!("{how}, its log ends with: {last}").into(),
    }
}

/// An operating system's error on the way to a server.
fn system_error(doing: impl Into<String>, error: std::io::Error) -> Error {
    Error::Unavailable { doing: doing.into(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let accounts = "root:x:0:0::/root:/bin/sh\npostgres-backup:x:5:6::/:/bin/sh\n\
                        postgres:x:101:104:PostgreSQL,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(find_account(accounts, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(find_account(accounts, "nobody"), None);
    }
}
