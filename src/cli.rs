//! The command line: flags and subcommands, and nothing that they do.
//!
//! Data goes to stdout, all else to stderr. Each subcommand is a module with
//! its flags and one `run`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;
use millhand::{Config, Error, Waker, db, migrate as schema};
use postgres::Client;

mod bench;
mod completions;
mod config;
mod demo;
mod dev;
mod dispatch;
mod grants;
mod help;
mod logs;
mod man;
mod migrate;
mod numbers;
mod oracle;
pub(crate) mod output;
mod status;
mod task;
mod task_args;
mod wait;
mod worker;
mod workers;

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

/// Flags that many subcommands know: before the subcommand or after it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Read settings from FILE (default: ./millhand.toml or
    /// /etc/millhand/millhand.toml, MILLHAND_CONFIG)
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Use the Postgres at URL (MILLHAND_DATABASE_URL)
    ///
    /// Every user of this machine can read the arguments of a program: give a
    /// password in the environment or the config file instead.
    #[arg(long, value_name = "URL", global = true)]
    database_url: Option<String>,
    /// Use the Redis at URL (MILLHAND_REDIS_URL)
    ///
    /// Passwords: as with --database-url.
    #[arg(long, value_name = "URL", global = true)]
    redis_url: Option<String>,
    /// Print JSON, one object a line
    #[arg(short, long, global = true)]
    json: bool,
    /// Log more: what is done; twice, also what the drivers do
    ///
    /// Logs go to stderr. RUST_LOG chooses in more detail, such as
    /// RUST_LOG=millhand=debug,tokio_postgres=debug; -v and -q win over it.
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "quiet")]
    verbose: u8,
    /// Log less: warnings and errors; twice, errors alone
    #[arg(short, long, action = ArgAction::Count, global = true)]
    quiet: u8,
}

/// Global flags that say nothing to these subcommands, and are not offered with them.
const INAPPLICABLE: [(&str, &[&str]); 7] = [
    ("worker", &["json"]),
    ("grants", &["json", "config", "database_url", "redis_url"]),
    ("dev", &["json", "database_url", "redis_url"]),
    ("demo", &["json", "config", "database_url", "redis_url"]),
    ("help", &["json", "config", "database_url", "redis_url"]),
    ("completions", &["json", "config", "database_url", "redis_url"]),
    ("man", &["json", "config", "database_url", "redis_url"]),
];

#[derive(Debug, Subcommand)]
enum Command {
    /// Run tasks until told to stop
    Worker(worker::WorkerArgs),
    /// Create a task, or many from stdin, and print the id
    Dispatch(dispatch::DispatchArgs),
    /// List, show, cancel or wait for tasks, and read their logs
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Count tasks and workers, or check that all is well
    Status(status::StatusArgs),
    /// List workers and what they run
    Workers(workers::WorkersArgs),
    /// Check the settings and handlers, or show what is in force
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Create or upgrade the tables
    Migrate(migrate::MigrateArgs),
    /// Print the SQL that gives a role the rights it needs
    Grants(grants::GrantsArgs),
    /// Start private servers, and run a worker or a command on them
    Dev(dev::DevArgs),
    /// Build package repositories from real files, and check the outcome
    Demo(demo::DemoArgs),
    /// Measure what a fleet carries on this machine
    Bench(bench::BenchArgs),
    /// Print the help of a subcommand, or what a handler's command gets
    Help(help::HelpArgs),
    /// Print what a shell needs to complete commands and flags
    Completions(completions::CompletionsArgs),
    /// Print the manual, or write a page for each subcommand
    Man(man::ManArgs),
    /// What a worker starts beside itself; not for people.
    #[command(skip)]
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

/// The whole command line, as clap knows it.
pub(crate) fn command() -> clap::Command {
    let mut command = Cli::command();
    for (name, flags) in INAPPLICABLE {
        command = command.mut_subcommand(name, |mut subcommand| {
            for &flag in flags {
                // One of the same id is in the way of the global one.
                let arg = Arg::new(flag).hide(true).help("Does not apply here");
                subcommand = subcommand.arg(match flag {
                    "json" => arg.long(flag).short('j').action(ArgAction::SetTrue),
                    "config" => arg.long(flag).short('c'),
                    "database_url" => arg.long("database-url"),
                    _ => arg.long("redis-url"),
                });
            }
            subcommand
        });
    }
    command
}

/// `millhand warden`, which is in no help and no completion.
#[derive(Debug, Parser)]
struct WardenCli {
    #[command(flatten)]
    global: Global,
}

/// Reads the arguments; prints help, or what is wrong with them, and ends the program.
pub(crate) fn parse() -> Cli {
    if std::env::args_os().nth(1).is_some_and(|subcommand| subcommand == "warden") {
        let global = WardenCli::parse_from(std::env::args_os().skip(1)).global;
        return Cli { global, command: Command::Warden };
    }
    let mut command = command();
    let matches = command.get_matches_mut();
    let is_given =
        |flag: &str| matches.value_source(flag) == Some(clap::parser::ValueSource::CommandLine);
    for (name, flags) in INAPPLICABLE {
        if matches.subcommand_name() != Some(name) {
            continue;
        }
        if let Some(flag) = flags.iter().find(|flag| is_given(flag)) {
            let flag = flag.replace('_', "-");
            let what = format!("--{flag} does not apply to `millhand {name}`");
            command.error(clap::error::ErrorKind::ArgumentConflict, what).exit();
        }
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Runs what was asked for.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    match cli.command {
        Command::Worker(args) => worker::run(&global, &args),
        Command::Bench(args) => bench::run(&global, &args),
        Command::Dispatch(args) => dispatch::run(&global, &args),
        Command::Task(command) => task::run(&global, command),
        Command::Status(args) => status::run(&global, &args),
        Command::Workers(args) => workers::run(&global, &args),
        Command::Config(command) => config::run(&global, &command),
        Command::Migrate(args) => migrate::run(&global, &args),
        Command::Grants(args) => grants::run(&args),
        Command::Dev(args) => dev::run(&global, &args),
        Command::Demo(args) => demo::run(&args),
        Command::Help(args) => help::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Warden => Ok(millhand::worker::warden::run().map(|()| ExitCode::SUCCESS)?),
    }
}

impl Cli {
    /// How much is logged, if flags say so.
    pub(crate) fn log_levels(&self) -> Option<(LevelFilter, LevelFilter)> {
        match (self.global.verbose, self.global.quiet) {
            (0, 0) => None,
            (1, _) => Some((LevelFilter::Debug, LevelFilter::Warn)),
            (2.., _) => Some((LevelFilter::Trace, LevelFilter::Debug)),
            (_, 1) => Some((LevelFilter::Warn, LevelFilter::Warn)),
            (_, 2..) => Some((LevelFilter::Error, LevelFilter::Error)),
        }
    }
}

impl Global {
    /// The flags that say how much is logged, for another process of ours.
    fn log_flags(&self) -> impl Iterator<Item = &'static str> {
        let flags = [("-v", self.verbose), ("-q", self.quiet)];
        flags.into_iter().flat_map(|(flag, n)| (0..n).map(move |_| flag))
    }

    /// The settings: file < environment < flags; without handlers.
    pub(crate) fn load(&self) -> Result<Config, Error> {
        self.apply(Config::load_settings(self.file().as_deref())?)
    }

    /// The same with the handlers.
    pub(crate) fn load_all(&self) -> Result<Config, Error> {
        self.apply(Config::load(self.file().as_deref())?)
    }

    fn file(&self) -> Option<PathBuf> {
        let named = std::env::var_os("MILLHAND_CONFIG").filter(|file| !file.is_empty());
        self.config.clone().or(named.map(PathBuf::from))
    }

    fn apply(&self, mut config: Config) -> Result<Config, Error> {
        if let Some(url) = &self.database_url {
            config.database_url = Some(url.clone());
        }
        if let Some(url) = &self.redis_url {
            config.redis_url = Some(url.clone());
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
    #[test]
    fn every_flag_is_well_defined_and_has_help() {
        super::command().debug_assert();
    }
}
