//! Reads settings: file < `MILLHAND_*` environment, with messages that name what is wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Once;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{Config, SETTINGS, handler};
use crate::error::Error;

/// Where a config file is looked for if none is named.
const DEFAULT_FILES: [&str; 2] = ["millhand.toml", "/etc/millhand/millhand.toml"];

/// Variables that are no settings: where those are, and what a command or a warden is told.
const OTHER_VARIABLES: [&str; 8] = [
    "MILLHAND_CONFIG",
    "MILLHAND_TASK_ID",
    "MILLHAND_TASK_NAME",
    "MILLHAND_FENCE",
    "MILLHAND_ATTEMPT",
    "MILLHAND_WORKER",
    "MILLHAND_WARDEN_OF",
    "MILLHAND_DIRECTORY",
];

pub(super) fn load(named_file: Option<&Path>, with_handlers: bool) -> Result<Config, Error> {
    let file = match named_file {
        Some(path) => Some(path.to_owned()),
        None => DEFAULT_FILES.map(PathBuf::from).into_iter().find(|path| path.exists()),
    };
    let mut settings = match &file {
        Some(path) => parse(path)?,
        None => Table::new(),
    };
    let shown = file.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let known: Vec<&str> = SETTINGS.iter().map(|(key, ..)| *key).chain(["handlers"]).collect();
    check_keys(&settings, &known, &format!("{shown}:"))?;
    let handlers = settings.remove("handlers");

    let mut places: BTreeMap<&str, &str> = BTreeMap::new();
    for (key, variable, _) in SETTINGS {
        let Ok(value) = std::env::var(variable) else { continue };
        // As where a unit or a script sets one to nothing. (Of the database that is a slip.)
        if value.is_empty() && key != "database_url" {
            continue;
        }
        let value = match key {
            "threads" | "pool_size" => value.parse().map_or(Value::String(value), Value::Integer),
            _ => Value::String(value),
        };
        settings.insert(key.to_owned(), value);
        places.insert(key, variable);
    }
    name_unknown_variables();
    let mut config: Config = read(&settings, |key, value| {
        let expected =
            SETTINGS.iter().find(|(known, ..)| *known == key).map_or("", |known| known.2);
        let place = places.get(key).map_or_else(|| format!("{shown}: {key}"), |s| (*s).to_owned());
        // A URL may hold a password.
        let value =
            if key.ends_with("_url") { "not readable".to_owned() } else { value.to_string() };
        format!("{place} is {value}, expected {expected}")
    })?;
    // The folder of a bare file name is empty: make the name absolute first.
    config.file = file.and_then(|file| std::path::absolute(file).ok());
    match handlers.filter(|_| with_handlers) {
        None => {}
        Some(Value::Table(handlers)) => read_handlers(&mut config, &handlers, &shown)?,
        Some(_) => {
            return Err(Error::Config(format!(
                "{shown}: handlers are tables, such as [handlers.hello]"
            )));
        }
    }
    config.check()?;
    Ok(config)
}

/// The file's keys and values.
fn parse(path: &Path) -> Result<Table, Error> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Config(format!("could not read config file {shown}: {error}")))?;
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let what = error.message().replace('\n', "; ");
        Error::Config(format!("{shown}:{line}:{column}: {what}"))
    })
}

fn read_handlers(config: &mut Config, handlers: &Table, shown: &str) -> Result<(), Error> {
    let folder = config.file.as_deref().and_then(Path::parent);
    for (name, keys) in handlers {
        let place = format!("{shown}: handler `{name}`:");
        let Value::Table(keys) = keys else {
            return Err(Error::Config(format!(
                "{place} expected a table, such as [handlers.{name}] with a `command`"
            )));
        };
        check_keys(keys, &handler::KEYS.map(|(key, _)| key), &place)?;
        let mut handler: super::CommandHandler = read(keys, |key, value| {
            let known = handler::KEYS.iter().find(|(known, _)| *known == key);
            // Variables may hold secrets.
            let value = if key == "environment" { "not readable" } else { &value.to_string() };
            format!("{place} `{key}` is {value}, expected {}", known.map_or("", |known| known.1))
        })?;
        if let Some(folder) = folder {
            handler.resolve(folder);
        }
        config.handlers.insert(name.clone(), handler);
    }
    Ok(())
}

/// Reads one key at a time, so that an error names what it is about.
fn read<T: DeserializeOwned>(
    table: &Table,
    wrong: impl Fn(&str, &Value) -> String,
) -> Result<T, Error> {
    for (key, value) in table {
        let single = Table::from_iter([(key.clone(), value.clone())]);
        T::deserialize(single).map_err(|_| Error::Config(wrong(key, value)))?;
    }
    T::deserialize(table.clone()).map_err(|error| Error::Config(error.message().to_owned()))
}

fn check_keys(table: &Table, known: &[&str], place: &str) -> Result<(), Error> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Error::Config(format!(
            "{place} unknown key `{key}`; did you mean `{}`?",
            nearest(key, known.iter().copied())
        ))),
    }
}

/// A slip in the name of a variable would change nothing, and nobody would know.
fn name_unknown_variables() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let known = || SETTINGS.iter().map(|(_, name, _)| *name).chain(OTHER_VARIABLES);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("MILLHAND_") && !known().any(|known| known == name) {
                let nearest = nearest(&name, known());
                log::warn!("{name} is no setting, and is ignored; did you mean {nearest}?");
            }
        }
    });
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    let likeness = |known: &&str| strsim::jaro_winkler(known, name);
    known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or_default()
}
