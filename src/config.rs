//! Every setting: file < `MILLHAND_*` environment < flags, checked once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::Error;

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
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
    /// A worker that could not renew its row for this long counts as missing.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long running tasks may go on after SIGINT.
    #[serde(with = "humantime_serde")]
    pub task_grace_interval: Duration,
    /// How long running tasks may go on after SIGTERM; for ever if unset.
    #[serde(with = "humantime_serde")]
    pub stop_after: Option<Duration>,
    /// How long a canceled command may take from SIGTERM to its end.
    #[serde(with = "humantime_serde")]
    pub cancel_grace_interval: Duration,
    /// Worker names; knows `{pid}`, `{hostname}`, `{fqdn}` and `{thread}`.
    pub name_template: String,
    /// Where tasks' working directories are made; the system's default if unset.
    pub working_directory: Option<PathBuf>,
    /// Command handlers, by the name of the tasks they run.
    pub handlers: BTreeMap<String, CommandHandler>,
}

/// A command that runs the tasks of one name.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandHandler {
    /// Program and arguments; `{field}` stands for a field of the task's args.
    /// A relative program with a slash is looked up from the config file's
    /// folder.
    pub command: Vec<String>,
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
        }
    }
}

/// Each key of the file but `handlers`, with the variable that overrides it.
const SETTINGS: [(&str, &str); 13] = [
    ("database_url", "MILLHAND_DATABASE_URL"),
    ("redis_url", "MILLHAND_REDIS_URL"),
    ("redis_prefix", "MILLHAND_REDIS_PREFIX"),
    ("worker_type", "MILLHAND_WORKER_TYPE"),
    ("threads", "MILLHAND_THREADS"),
    ("pool_size", "MILLHAND_POOL_SIZE"),
    ("poll_interval", "MILLHAND_POLL_INTERVAL"),
    ("ttl", "MILLHAND_TTL"),
    ("task_grace_interval", "MILLHAND_TASK_GRACE_INTERVAL"),
    ("stop_after", "MILLHAND_STOP_AFTER"),
    ("cancel_grace_interval", "MILLHAND_CANCEL_GRACE_INTERVAL"),
    ("name_template", "MILLHAND_NAME_TEMPLATE"),
    ("working_directory", "MILLHAND_WORKING_DIRECTORY"),
];

/// Variables of Postgres that say where a database is. Alone they do not name it: they may
/// have been set for something else.
const SAY_WHERE: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGDATABASE", "PGSERVICE"];

/// Where a config file is looked for if none is named.
const DEFAULT_FILES: [&str; 2] = ["millhand.toml", "/etc/millhand/millhand.toml"];

impl Config {
    /// Reads the config file (the one named, or the first default that exists)
    /// and lets the environment override it.
    pub fn load(named_file: Option<&Path>) -> Result<Config, Error> {
        let file = match named_file {
            Some(path) => Some(path.to_owned()),
            None => DEFAULT_FILES.map(PathBuf::from).into_iter().find(|path| path.exists()),
        };
        let mut table = toml::Table::new();
        if let Some(path) = &file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::Config(format!("could not read config file {}: {error}", path.display()))
            })?;
            table = text.parse().map_err(|error: toml::de::Error| {
                Error::Config(format!(
                    "{}: {}",
                    path.display(),
                    error.to_string().replace('\n', " ").trim_end()
                ))
            })?;
            check_keys(path, &table)?;
        }
        let mut sources: BTreeMap<&str, String> = BTreeMap::new();
        for (key, variable) in SETTINGS {
            let Ok(value) = std::env::var(variable) else { continue };
            let value = match key {
                "threads" | "pool_size" => {
                    value.parse().map(toml::Value::Integer).unwrap_or(value.into())
                }
                _ => toml::Value::String(value),
            };
            table.insert(key.to_owned(), value);
            sources.insert(key, variable.to_owned());
        }
        // One key at a time, so that an error names what it is about.
        let mut config = Config::default();
        let file_name = file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        for (key, value) in table.clone() {
            let single = toml::Table::from_iter([(key.clone(), value)]);
            if let Err(error) = Config::deserialize(single) {
                let place =
                    sources.get(key.as_str()).cloned().unwrap_or(format!("{file_name}: {key}"));
                let reason = error.message().replace('\n', " ");
                return Err(Error::Config(format!("{place}: {reason}")));
            }
        }
        if !table.is_empty() {
            config = Config::deserialize(table)
                .map_err(|error| Error::Config(error.message().to_owned()))?;
        }
        // The folder of a bare file name is empty: make the name absolute first.
        let file = file.and_then(|file| std::path::absolute(file).ok());
        if let Some(folder) = file.as_deref().and_then(Path::parent) {
            config.resolve_programs(folder);
        }
        config.check()?;
        Ok(config)
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
        if self.pool_size == 0 {
            return Err(Error::Config("pool_size must be at least 1".to_owned()));
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
        for (name, handler) in &self.handlers {
            if handler.command.is_empty() || handler.command[0].is_empty() {
                return Err(Error::Config(format!("handler `{name}` has an empty command")));
            }
        }
        Ok(())
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

    fn resolve_programs(&mut self, folder: &Path) {
        for handler in self.handlers.values_mut() {
            let Some(program) = handler.command.first_mut() else { continue };
            if program.contains('/') && !program.starts_with('/') {
                *program = folder.join(&program).display().to_string();
            }
        }
    }
}

fn check_keys(path: &Path, table: &toml::Table) -> Result<(), Error> {
    for key in table.keys() {
        let known = SETTINGS.iter().map(|(key, _)| *key).chain(["handlers"]);
        if known.clone().any(|known| known == key) {
            continue;
        }
        let nearest = known
            .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)));
        return Err(Error::Config(format!(
            "{}: unknown key `{key}`; did you mean `{}`?",
            path.display(),
            nearest.unwrap_or_default()
        )));
    }
    Ok(())
}
