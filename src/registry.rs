//! Task names and the handlers behind them.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::{RawValue, to_raw_value};

use crate::config::CommandHandler;
use crate::context::Context;

/// A handler that is a function of JSON text: its result, or why it failed.
pub(crate) type Function =
    dyn Fn(&Context<'_>, &str) -> Result<Box<RawValue>, String> + Send + Sync;

/// What runs the tasks of one name.
#[derive(Clone)]
pub(crate) enum Handler {
    Function(Arc<Function>),
    Command(CommandHandler),
}

/// The handlers that a worker has, by the name of the tasks they run.
///
/// A worker takes only tasks whose name it has a handler for; others keep
/// their place until a worker comes that has.
#[derive(Clone)]
pub struct Registry {
    handlers: BTreeMap<String, Handler>,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registry {
    /// A registry with the built-in handlers `millhand.noop`,
    /// `millhand.sleep` (`{"seconds": 0.5}`), `millhand.fail`
    /// (`{"message": "..."}`) and `millhand.clock`, which returns the Unix
    /// time in microseconds at which it began.
    #[must_use]
    pub fn new() -> Registry {
        let mut registry = Registry { handlers: BTreeMap::new() };
        registry.register("millhand.noop", |_: &Context<'_>, _: Value| Ok::<_, String>(()));
        registry.register("millhand.sleep", sleep);
        registry.register("millhand.fail", |_: &Context<'_>, args: FailArgs| {
            Err::<(), _>(args.message)
        });
        registry.register("millhand.clock", |_: &Context<'_>, _: Value| {
            Ok::<_, String>(jiff::Timestamp::now().as_microsecond())
        });
        registry
    }

    /// Adds a function for the tasks of this name, replacing what was there.
    ///
    /// Arguments that do not fit `A` fail the task, as do an `Err` and a
    /// panic. The function runs on a worker thread and should look at
    /// [`Context::is_canceled`] from time to time.
    pub fn register<A, R, E>(
        &mut self,
        name: impl Into<String>,
        function: impl Fn(&Context<'_>, A) -> Result<R, E> + Send + Sync + 'static,
    ) where
        A: DeserializeOwned,
        R: Serialize,
        E: Display,
    {
        let erased = move |context: &Context<'_>, args: &str| {
            // From the text: a type of the caller's may hold more than a `Value`.
            let args = serde_json::from_str(args).map_err(|error| unfit(&error))?;
            let result = function(context, args).map_err(|error| error.to_string())?;
            to_raw_value(&result)
                .map_err(|error| format!("the result cannot be written as JSON: {error}"))
        };
        self.handlers.insert(name.into(), Handler::Function(Arc::new(erased)));
    }

    /// Adds a command for the tasks of this name, replacing what was there.
    pub fn register_command(&mut self, name: impl Into<String>, command: CommandHandler) {
        self.handlers.insert(name.into(), Handler::Command(command));
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.handlers.keys().map(String::as_str)
    }

    pub(crate) fn has_commands(&self) -> bool {
        self.handlers.values().any(|handler| matches!(handler, Handler::Command(_)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Handler)> {
        self.handlers.iter()
    }
}

/// Why arguments are none for this function. Where in their text is no help: nobody
/// has seen that.
fn unfit(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let what = said.rfind(" at line ").map_or(said.as_str(), |end| &said[..end]);
    match error.classify() {
        Category::Data => format!("the arguments do not fit: {what}"),
        _ => format!("the arguments cannot be read: {what}"),
    }
}

#[derive(Deserialize)]
struct SleepArgs {
    seconds: f64,
}

#[derive(Deserialize)]
struct FailArgs {
    #[serde(default = "default_message")]
    message: String,
}

fn default_message() -> String {
    "told to fail".to_owned()
}

fn sleep(context: &Context<'_>, args: SleepArgs) -> Result<(), String> {
    let duration = Duration::try_from_secs_f64(args.seconds)
        .map_err(|error| format!("`seconds` is {}: {error}", args.seconds))?;
    if context.wait(duration) { Ok(()) } else { Err("canceled while it slept".to_owned()) }
}
