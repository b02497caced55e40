//! The command line: flags and subcommands, and nothing that they do.
//!
//! Data goes to stdout, all else to stderr. Each subcommand is a module with
//! its flags and one `run`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use millhand::{Config, Error, Waker, db, migrate as schema};
use postgres::Client;

mod bench;
mod demo;
mod dev;
mod dispatch;
mod migrate;
mod numbers;
mod oracle;
pub(crate) mod output;
mod status;
mod task;
mod wait;
mod worker;

/// Run background tasks from one Postgres table, without a broker
#[derive(Debug, Parser)]
#[command(
    name = "millhand",
    version,
    max_term_width = 79,
    help_expected = true,
    infer_long_args = false,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every subcommand knows.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Read settings from FILE (default: ./millhand.toml or
    /// /etc/millhand/millhand.toml, MILLHAND_CONFIG)
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        help_heading = "Global options",
        env = "MILLHAND_CONFIG",
        hide_env = true
    )]
    config: Option<PathBuf>,
    /// Use the Postgres at URL (MILLHAND_DATABASE_URL)
    ///
    /// Every user of this machine can read the arguments of a program: give a
    /// password in the environment or the config file instead.
    #[arg(long, value_name = "URL", global = true, help_heading = "Global options")]
    database_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run tasks until told to stop
    Worker(worker::WorkerArgs),
    /// Create a task, or many from stdin, and print the id
    Dispatch(dispatch::DispatchArgs),
    /// List, show, cancel or wait for tasks
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Count tasks and workers
    Status(status::StatusArgs),
    /// List workers and what they run
    Workers(status::WorkersArgs),
    /// Create or upgrade the tables
    Migrate(migrate::MigrateArgs),
    /// Start private servers, and run a worker or a command on them
    Dev(dev::DevArgs),
    /// Build package repositories from real files, and check the outcome
    Demo(demo::DemoArgs),
    /// Measure what a fleet carries on this machine
    Bench(bench::BenchArgs),
    /// Outlive a worker for a moment and kill its commands
    #[command(hide = true)]
    Warden,
}

/// Why a subcommand ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of millhand: printed, and it chooses the exit code.
    Millhand(Error),
    /// Stdout could not be written.
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Millhand(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// Runs what was asked for.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    match cli.command {
        Command::Worker(args) => worker::run(&args, global.load()?),
        Command::Bench(args) => bench::run(&global, &args),
        Command::Warden => Ok(millhand::worker::warden::run().map(|()| ExitCode::SUCCESS)?),
        Command::Dispatch(args) => dispatch::run(&global, args),
        Command::Task(command) => task::run(&global, command),
        Command::Status(args) => status::run_status(&global, &args),
        Command::Workers(args) => status::run_workers(&global, &args),
        Command::Migrate(args) => migrate::run(&global, &args),
        Command::Dev(args) => dev::run(&global, &args),
        Command::Demo(args) => demo::run(&args),
    }
}

impl Global {
    /// The settings: file < environment < flags.
    pub(crate) fn load(&self) -> Result<Config, Error> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(url) = &self.database_url {
            config.database_url = Some(url.clone());
        }
        Ok(config)
    }

    /// A connection to a database whose schema may be anything.
    pub(crate) fn connect_unchecked(&self, purpose: &str) -> Result<Client, Error> {
        db::connect(self.load()?.database_url()?, purpose)
    }

    /// Tells workers that hear through Redis what was just committed. They find it
    /// without that, too, a little later.
    pub(crate) fn tell_workers(
        &self,
        client: &mut Client,
        tell: impl FnOnce(&mut Waker) -> Result<(), Error>,
    ) {
        let told = self.load().and_then(|config| match Waker::for_fleet(&config, client)? {
            Some(mut waker) => tell(&mut waker),
            None => Ok(()),
        });
        if let Err(error) = told {
            log::warn!("{}; workers find it at their next poll", millhand::error::chain(&error));
        }
    }

    /// A connection to a database with the schema that this program knows.
    pub(crate) fn connect(&self, purpose: &str) -> Result<Client, Error> {
        let mut client = self.connect_unchecked(purpose)?;
        schema::check(&mut client)?;
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn every_flag_is_well_defined_and_has_help() {
        Cli::command().debug_assert();
    }
}
