//! Every setting: file < `MILLHAND_*` environment < flags, checked once.

mod duration;
mod file;
mod handler;
pub(crate) mod placeholders;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::Error;
pub use duration::parse_duration;
pub use handler::CommandHandler;
use placeholders::Piece;

/// The settings of a program that uses millhand.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// A URL, or words such as `host=db`, as psql takes it, with the rest from the `PG*`
    /// variables: see [`Connector`](crate::db::Connector). May hold a password: never print
    /// it.
    pub database_url: Option<String>,
    /// A Redis URL, with `rediss://` for TLS. May hold a password: never print it.
    pub redis_url: Option<String>,
    /// What the names of all keys in Redis begin with, as a hash tag: one for each
    /// database.
    pub redis_prefix: String,
    /// Which locks a worker uses.
    pub worker_type: WorkerType,
    /// Worker threads of a process; each runs one task at a time. One for each processor if
    /// unset.
    pub threads: usize,
    /// Connections to Postgres that the threads of a process share, with worker
    /// type `redis`.
    pub pool_size: u32,
    /// How often a process looks for what no message told it of.
    #[serde(deserialize_with = "duration::read")]
    pub poll_interval: Duration,
    /// A worker that could not renew its row for this long counts as missing.
    #[serde(deserialize_with = "duration::read")]
    pub ttl: Duration,
    /// How long running tasks may go on after SIGINT.
    #[serde(deserialize_with = "duration::read")]
    pub task_grace_interval: Duration,
    /// How long running tasks may go on after SIGTERM; for ever if unset.
    #[serde(deserialize_with = "duration::read_some")]
    pub stop_after: Option<Duration>,
    /// How long a canceled command may take from SIGTERM to its end.
    #[serde(deserialize_with = "duration::read")]
    pub cancel_grace_interval: Duration,
    /// Worker names; knows `{pid}`, `{hostname}`, `{fqdn}` and `{thread}`.
    pub name_template: String,
    /// Where tasks' working directories are made; the system's default if unset.
    pub working_directory: Option<PathBuf>,
    /// Command handlers, by the name of the tasks they run.
    pub handlers: BTreeMap<String, CommandHandler>,
    /// The config file that was read, if there was one.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// What is longer can only be a slip, and a clock that adds centuries overflows.
const MAX_DURATION: Duration = Duration::from_secs(366 * 86_400);

/// Which locks a worker uses, and how it finds tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WorkerType {
    /// Postgres session advisory locks on the thread's own connection.
    Postgres,
    /// Locks in Redis; the threads of a process share a few connections to Postgres.
    Redis,
    /// The older design, to compare with: one worker at a time marks the tasks that may start.
    Pulpcore,
}

impl WorkerType {
    /// The name, as in the configuration and the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerType::Postgres => "postgres",
            WorkerType::Redis => "redis",
            WorkerType::Pulpcore => "pulpcore",
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            database_url: None,
            redis_url: None,
            redis_prefix: "millhand".to_owned(),
            worker_type: WorkerType::Postgres,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            pool_size: 8,
            poll_interval: Duration::from_secs(1),
            ttl: Duration::from_secs(30),
            task_grace_interval: Duration::from_secs(600),
            stop_after: None,
            cancel_grace_interval: Duration::from_secs(5),
            name_template: "{pid}@{hostname}/{thread}".to_owned(),
            working_directory: None,
            handlers: BTreeMap::new(),
            file: None,
        }
    }
}

/// Each key of the file but `handlers`, with the variable that overrides it and what is
/// expected there.
const SETTINGS: [(&str, &str, &str); 13] = [
    ("database_url", "MILLHAND_DATABASE_URL", "a URL"),
    ("redis_url", "MILLHAND_REDIS_URL", "a URL"),
    ("redis_prefix", "MILLHAND_REDIS_PREFIX", "a name"),
    ("worker_type", "MILLHAND_WORKER_TYPE", "one of `postgres`, `redis`, `pulpcore`"),
    ("threads", "MILLHAND_THREADS", "a number from 1 to 1000"),
    ("pool_size", "MILLHAND_POOL_SIZE", "a number from 1 to 1000"),
    ("poll_interval", "MILLHAND_POLL_INTERVAL", duration::EXPECTED),
    ("ttl", "MILLHAND_TTL", duration::EXPECTED),
    ("task_grace_interval", "MILLHAND_TASK_GRACE_INTERVAL", duration::EXPECTED),
    ("stop_after", "MILLHAND_STOP_AFTER", duration::EXPECTED),
    ("cancel_grace_interval", "MILLHAND_CANCEL_GRACE_INTERVAL", duration::EXPECTED),
    ("name_template", "MILLHAND_NAME_TEMPLATE", "a text"),
    ("working_directory", "MILLHAND_WORKING_DIRECTORY", "a path"),
];

/// What a name template knows.
const NAME_FIELDS: [&str; 4] = ["pid", "hostname", "fqdn", "thread"];

/// Variables of Postgres that say where a database is. Alone they do not name it: they may
/// have been set for something else.
const SAY_WHERE: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE"];

impl Config {
    /// Reads the config file (the one named, or the first default that exists)
    /// and lets the environment override it.
    pub fn load(named_file: Option<&Path>) -> Result<Config, Error> {
        file::load(named_file, true)
    }

    /// The same without the handlers, for a program that runs none: a slip in one is no
    /// reason not to cancel a task.
    pub fn load_settings(named_file: Option<&Path>) -> Result<Config, Error> {
        file::load(named_file, false)
    }

    /// What must hold between values, after flags have been applied too.
    pub fn check(&self) -> Result<(), Error> {
        if self.threads == 0 || self.threads > 1000 {
            return Err(Error::Config(format!("threads is {}, expected 1 to 1000", self.threads)));
        }
        let durations = [
            ("ttl", Some(self.ttl)),
            ("poll_interval", Some(self.poll_interval)),
            ("task_grace_interval", Some(self.task_grace_interval)),
            ("stop_after", self.stop_after),
            ("cancel_grace_interval", Some(self.cancel_grace_interval)),
        ];
        for (name, duration) in durations {
            if duration.is_some_and(|duration| duration > MAX_DURATION) {
                return Err(Error::Config(format!("{name} must be at most 1year")));
            }
        }
        if self.ttl < Duration::from_secs(1) {
            return Err(Error::Config("ttl must be at least 1s".to_owned()));
        }
        if self.pool_size == 0 || self.pool_size > 1000 {
            let is = format!("pool_size is {}, expected 1 to 1000", self.pool_size);
            return Err(Error::Config(is));
        }
        if self.poll_interval < Duration::from_millis(10) {
            return Err(Error::Config("poll_interval must be at least 10ms".to_owned()));
        }
        if self.redis_prefix.is_empty() || self.redis_prefix.contains(['{', '}']) {
            return Err(Error::Config(format!(
                "redis_prefix is `{}`, expected a name without braces",
                self.redis_prefix
            )));
        }
        self.check_name_template()?;
        for (name, handler) in &self.handlers {
            handler.check(name)?;
        }
        Ok(())
    }

    fn check_name_template(&self) -> Result<(), Error> {
        let wrong = |what: String| {
            let template = &self.name_template;
            Err(Error::Config(format!("in the name template `{template}`, {what}")))
        };
        let pieces = match placeholders::pieces(&self.name_template) {
            Ok(pieces) => pieces,
            Err(reason) => return wrong(reason),
        };
        let unknown = pieces.into_iter().find_map(|piece| match piece {
            Piece::Field(field) if !NAME_FIELDS.contains(&field) => Some(field),
            _ => None,
        });
        match unknown {
            None => Ok(()),
            Some(field) => wrong(format!(
                "`{{{field}}}` is not known; it may have {{pid}}, {{hostname}}, {{fqdn}} and {{thread}}"
            )),
        }
    }

    /// The database's URL, or what to do without one.
    pub fn database_url(&self) -> Result<&str, Error> {
        let refused = |what: &str| Err(Error::Config(what.to_owned()));
        match self.database_url.as_deref() {
            Some(url) if !url.trim().is_empty() => Ok(url),
            Some(_) => refused(
                "MILLHAND_DATABASE_URL, `database_url` or --database-url is empty; name a \
                 database, as in postgresql:///mydb",
            ),
            None if SAY_WHERE.iter().any(|name| std::env::var_os(name).is_some()) => refused(
                "no database is named; set MILLHAND_DATABASE_URL=postgresql:/// to use the one of \
                 the PG* variables",
            ),
            None => refused(
                "no database is named; set MILLHAND_DATABASE_URL, or `database_url` in \
                 millhand.toml, or try `millhand dev -- COMMAND`",
            ),
        }
    }

    /// The Redis URL, or what to do without one.
    pub fn redis_url(&self) -> Result<&str, Error> {
        self.redis_url.as_deref().ok_or_else(|| {
            Error::Config(
                "no Redis is named, and workers of type redis need one; set MILLHAND_REDIS_URL, or \
                 `redis_url` in millhand.toml"
                    .to_owned(),
            )
        })
    }

    /// The settings but the handlers in which another configuration differs.
    pub(crate) fn differences(&self, other: &Config) -> Vec<&'static str> {
        let is_same = |key| match key {
            "database_url" => self.database_url == other.database_url,
            "redis_url" => self.redis_url == other.redis_url,
            "redis_prefix" => self.redis_prefix == other.redis_prefix,
            "worker_type" => self.worker_type == other.worker_type,
            "threads" => self.threads == other.threads,
            "pool_size" => self.pool_size == other.pool_size,
            "poll_interval" => self.poll_interval == other.poll_interval,
            "ttl" => self.ttl == other.ttl,
            "task_grace_interval" => self.task_grace_interval == other.task_grace_interval,
            "stop_after" => self.stop_after == other.stop_after,
            "cancel_grace_interval" => self.cancel_grace_interval == other.cancel_grace_interval,
            "name_template" => self.name_template == other.name_template,
            "working_directory" => self.working_directory == other.working_directory,
            _ => true,
        };
        SETTINGS.iter().map(|(key, ..)| *key).filter(|key| !is_same(key)).collect()
    }

    /// Arguments of commands that may be meant for files beside the config file and are not
    /// taken for them, in words.
    pub(crate) fn overlooked(&self) -> impl Iterator<Item = String> {
        let folder = self.file.as_deref().and_then(Path::parent);
        let handlers = folder.into_iter().flat_map(|folder| {
            self.handlers
                .iter()
                .filter_map(|(name, handler)| Some((name, handler.overlooked(folder)?)))
        });
        handlers.map(|(name, argument)| {
            format!(
                "handler `{name}`: the argument `{argument}` is not taken for the file of that \
                 name beside the config file; write `./{argument}` for that"
            )
        })
    }
}
