//! A second Postgres that follows a first one, by streaming replication.

use std::fs::OpenOptions;
use std::time::Instant;

use rustix::process::Signal;

use super::{
    POLL_INTERVAL, PostgresOptions, PrivatePostgres, SERVER_DEADLINE, not_started, system_error,
};
use crate::db;
use crate::error::Error;

impl PrivatePostgres {
    /// Starts a standby that follows this server: a copy of it that can be read.
    pub fn start_standby(&self, options: &PostgresOptions) -> Result<PrivatePostgres, Error> {
        let mut standby = PrivatePostgres::without_data(options)?;
        let log = standby.directory().join("log");
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|error| system_error("could not write the log of a standby", error))?;
        let backup = standby.programs.join("pg_basebackup");
        let mut backup = standby.run(&backup, Signal::TERM, output, |command| {
            command.args([
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
                "--write-recovery-conf",
            ]);
            command.args(["--username=postgres", "--port", &self.port().to_string()]);
            command.arg("--host").arg(self.directory()).arg("--pgdata").arg(standby.data());
        })?;
        let status = backup
            .wait()
            .map_err(|error| system_error("could not wait for pg_basebackup", error))?;
        if !status.success() {
            return Err(not_started("standby", Some(status), &log));
        }
        // Its own socket and address; the rest is as the primary has it.
        standby.configure(&standby.settings())?;
        standby.start_again()?;
        Ok(standby)
    }

    /// Makes a primary of a standby, and waits until it can be written to.
    pub fn promote(&self) -> Result<(), Error> {
        let doing = "could not promote a standby";
        let mut client = db::connect(&self.url(), "millhand promote")?;
        let deadline = Instant::now() + SERVER_DEADLINE;
        client
            .execute("SELECT pg_promote()", &[])
            .map_err(|error| Error::postgres(doing, error))?;
        loop {
            let row = client
                .query_one("SELECT pg_is_in_recovery()", &[])
                .map_err(|error| Error::postgres(doing, error))?;
            if !row.get::<_, bool>(0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(not_started("primary", None, &self.directory().join("log")));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}
