//! The handlers of a worker process: at its start, and when they are read anew.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Shared;
use super::command::{Plan, Reach};
use super::offer::{Runnable, Runnables};
use crate::config::Config;
use crate::error::{self, Error};
use crate::registry::{Handler, Registry};

/// What the handlers are made of.
pub(crate) struct Source {
    registry: Registry,
    /// Whether those of the config file are among them.
    commands: bool,
    reach: Reach,
    /// The settings in force.
    config: Config,
}

impl Source {
    /// `program` is the one that a warden is started with.
    pub(super) fn new(
        config: &Config,
        url: &str,
        registry: Registry,
        commands: bool,
        program: Option<&OsString>,
    ) -> Source {
        let mut variables = vec![
            ("MILLHAND_DATABASE_URL", url.into()),
            // All that is needed is here; the file may be for others' eyes only.
            ("MILLHAND_CONFIG", "/dev/null".into()),
        ];
        if let Some(redis_url) = &config.redis_url {
            variables.push(("MILLHAND_REDIS_URL", redis_url.into()));
            variables.push(("MILLHAND_REDIS_PREFIX", config.redis_prefix.clone().into()));
        }
        let folder = program.and_then(|program| Path::new(program).parent());
        let folder = folder.filter(|folder| folder.is_absolute()).map(PathBuf::from);
        let reach = Reach { variables, folder };
        Source { registry, commands, reach, config: config.clone() }
    }

    /// Whether there are commands, or may be after the next reading.
    pub(super) fn may_have_commands(&self) -> bool {
        self.commands || self.registry.has_commands()
    }

    /// The handlers with these settings.
    pub(super) fn runnables(&self, config: &Config) -> Result<Runnables, Error> {
        let mut all = Runnables::new();
        let plan = |name: &String, command| {
            Ok(Runnable::Command(Arc::new(Plan::new(name, command, &self.reach)?)))
        };
        for (name, handler) in self.registry.iter() {
            let runnable = match handler {
                Handler::Function(function) => Runnable::Function(function.clone()),
                Handler::Command(command) => plan(name, command)?,
            };
            all.insert(name.clone(), runnable);
        }
        if self.commands {
            for (name, command) in &config.handlers {
                all.insert(name.clone(), plan(name, command)?);
            }
            for hint in config.overlooked() {
                log::warn!("{hint}");
            }
        }
        Ok(all)
    }
}

/// Takes the handlers of these settings from now on, and says what has changed; those
/// before stay if they cannot be had.
pub(super) fn reload(shared: &Shared, config: &Config) {
    let source = &shared.source;
    let runnables = match source.runnables(config) {
        Ok(runnables) => runnables,
        Err(error) => {
            log::error!("the handlers stay as they were: {}", error::chain(&error));
            return;
        }
    };
    let changes = shared.offer.replace(runnables);
    let parts: Vec<String> =
        [("added", changes.added), ("removed", changes.removed), ("changed", changes.changed)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(what, names)| format!("{what} `{}`", names.join("`, `")))
            .collect();
    let said = if parts.is_empty() { "nothing has changed".to_owned() } else { parts.join("; ") };
    log::info!("the handlers were read anew: {said}");
    let settings = source.config.differences(config);
    if !settings.is_empty() {
        log::warn!("other settings have changed, too, and need a restart: {}", settings.join(", "));
    }
    // What waits for them can start.
    shared.back_end.ring();
}
