//! `millhand config`: what is in force, and whether it can work, without a worker.

use std::io::Write;
use std::process::ExitCode;

use clap::Subcommand;
use millhand::{Config, db, worker};
use serde_json::{Value, json};

use crate::cli::output::{json_line, printable};
use crate::cli::{Failure, Global};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the config file and the environment, and that this machine can
    /// run each handler; exit 1 if it cannot
    ///
    /// No server is asked. What is wrong with the settings exits with 2.
    Check,
    /// Print the settings in force, without secrets
    Show,
}

pub(crate) fn run(global: &Global, command: &ConfigCommand) -> Result<ExitCode, Failure> {
    let config = global.load_all()?;
    match command {
        ConfigCommand::Check => check(global, &config),
        ConfigCommand::Show => show(global, &config),
    }
}

fn check(global: &Global, config: &Config) -> Result<ExitCode, Failure> {
    if let Some(url) = &config.database_url {
        db::Connector::new(url, "millhand config")?;
    }
    if config.redis_url.is_some() {
        worker::redis_place(config)?;
    }
    let problems = worker::problems(config)?;
    let mut out = std::io::stdout().lock();
    let file = config.file.as_ref().map(|file| file.display().to_string());
    if global.json {
        let problems: Vec<Value> = problems
            .iter()
            .map(|(handler, problem)| json!({ "handler": handler, "problem": problem }))
            .collect();
        let n_handlers = config.handlers.len();
        let found = json!({ "file": file, "handlers": n_handlers, "problems": problems });
        json_line(&mut out, &found)?;
    } else {
        for (handler, problem) in &problems {
            writeln!(out, "handler `{}`: {}", printable(handler), printable(problem))?;
        }
        if problems.is_empty() {
            let file = file.unwrap_or_else(|| "no config file".to_owned());
            let handlers = match config.handlers.len() {
                1 => "1 handler".to_owned(),
                n => format!("{n} handlers"),
            };
            writeln!(out, "ok: {}, {handlers}", printable(&file))?;
        }
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(global: &Global, config: &Config) -> Result<ExitCode, Failure> {
    let time = |time| humantime::format_duration(time).to_string();
    // A URL may hold a password: only the place is shown.
    let database = config.database_url.as_deref().map(db::place);
    let redis = config.redis_url.as_ref().map(|_| worker::redis_place(config)).transpose()?;
    let handlers: Vec<&str> = config.handlers.keys().map(String::as_str).collect();
    let settings = [
        ("file", json!(config.file.as_ref().map(|file| file.display().to_string()))),
        ("database_url", json!(database)),
        ("redis_url", json!(redis)),
        ("redis_prefix", json!(config.redis_prefix)),
        ("worker_type", json!(config.worker_type.as_str())),
        ("threads", json!(config.threads)),
        ("pool_size", json!(config.pool_size)),
        ("poll_interval", json!(time(config.poll_interval))),
        ("ttl", json!(time(config.ttl))),
        ("task_grace_interval", json!(time(config.task_grace_interval))),
        ("stop_after", json!(config.stop_after.map(time))),
        ("cancel_grace_interval", json!(time(config.cancel_grace_interval))),
        ("name_template", json!(config.name_template)),
        ("working_directory", json!(config.working_directory)),
        ("handlers", json!(handlers)),
    ];
    let mut out = std::io::stdout().lock();
    if global.json {
        let object: serde_json::Map<String, Value> =
            settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        json_line(&mut out, &object)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (key, value) in settings {
        let shown = match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text,
            Value::Array(names) => {
                let names = names.iter().filter_map(Value::as_str).collect::<Vec<_>>();
                if names.is_empty() { "-".to_owned() } else { names.join(", ") }
            }
            other => other.to_string(),
        };
        writeln!(out, "{key:<22} {}", printable(&shown))?;
    }
    Ok(ExitCode::SUCCESS)
}
