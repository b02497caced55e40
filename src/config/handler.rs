//! A handler that is a command, as `[handlers.NAME]` says it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use super::placeholders::pieces;
use crate::error::Error;

/// A command that runs the tasks of one name: a table `[handlers.NAME]` of the config file.
/// What it gets, and what is made of what it does, is said by `millhand help handlers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CommandHandler {
    /// Program and arguments; `{field}` stands for a field of the task's args.
    pub command: Vec<String>,
    /// Where it runs; if unset, in a fresh directory that is gone when the task has ended.
    pub directory: Option<PathBuf>,
    /// Variables that it gets beside the worker's.
    pub environment: BTreeMap<String, String>,
    /// Whether it gets none of the worker's variables but those that every program needs.
    pub clean_environment: bool,
    /// The user that it runs as, by name or number; only a worker that is root can have
    /// other users than itself. The worker's if unset.
    #[serde(deserialize_with = "name_or_number")]
    pub user: Option<String>,
    /// Whether it gets what `millhand dispatch` needs, the database's URL above all.
    pub can_dispatch: bool,
}

/// The keys of a handler, and what is expected there.
pub(super) const KEYS: [(&str, &str); 6] = [
    ("command", r#"a list of strings, such as ["echo", "hi"]"#),
    ("directory", "a path"),
    ("environment", r#"a table of strings, such as { LANG = "C" }"#),
    ("clean_environment", "true or false"),
    ("user", "the name or the number of a user"),
    ("can_dispatch", "true or false"),
];

impl CommandHandler {
    /// A handler of this program and these arguments.
    pub fn new(command: impl IntoIterator<Item = impl Into<String>>) -> CommandHandler {
        CommandHandler {
            command: command.into_iter().map(Into::into).collect(),
            ..CommandHandler::default()
        }
    }

    /// Fails unless it could run, whatever the machine is like.
    pub(crate) fn check(&self, name: &str) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Config(format!("handler `{name}`: {what}")));
        if self.command.first().is_none_or(String::is_empty) {
            return wrong(r#"`command` names no program; such as ["echo", "hi"]"#.to_owned());
        }
        for argument in &self.command {
            if let Err(reason) = pieces(argument) {
                return wrong(format!("in the argument `{argument}`, {reason}"));
            }
        }
        for (variable, value) in &self.environment {
            if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
                return wrong(format!("`environment` has `{variable}`, which can be no variable"));
            }
        }
        Ok(())
    }

    /// Relative paths are looked up from the folder of the config file, which is that of no
    /// command: a program with a slash, the directory, and an argument that says so (`./` or
    /// `../`) if something of that name is there. A bare word stays what it is: whether
    /// `build` is a file or a target of make must not depend on what lies about.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let absolute = |path: &str| folder.join(path.strip_prefix("./").unwrap_or(path));
        for (place, argument) in self.command.iter_mut().enumerate() {
            let is_meant = match place {
                0 => argument.contains('/') && !argument.starts_with(['/', '{']),
                _ => {
                    (argument.starts_with("./") || argument.starts_with("../"))
                        && absolute(argument).exists()
                }
            };
            if is_meant {
                *argument = absolute(argument).display().to_string();
            }
        }
        if let Some(directory) = &mut self.directory {
            *directory = folder.join(&*directory);
        }
    }

    /// An argument that may be meant for a file of the config file's folder, and is not
    /// taken for it.
    pub(super) fn overlooked(&self, folder: &Path) -> Option<&str> {
        let is_there = |folder: &Path, name: &str| folder.join(name).is_file();
        self.command.iter().skip(1).map(String::as_str).find(|argument| {
            !argument.starts_with(['/', '.', '-'])
                && is_there(folder, argument)
                && !self.directory.as_deref().is_some_and(|own| is_there(own, argument))
        })
    }
}

fn name_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum User {
        Number(u32),
        Name(String),
    }
    Ok(Some(match User::deserialize(deserializer)? {
        User::Number(number) => number.to_string(),
        User::Name(name) => name,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_the_config_file_is_found_if_it_is_asked_for() {
        let folder = tempfile::tempdir().expect("there is room");
        for name in ["job.py", "build"] {
            std::fs::write(folder.path().join(name), "").expect("there is room");
        }
        let at = |name: &str| folder.path().join(name).display().to_string();
        for (command, expected) in [
            (["python3", "./job.py"], ["python3".to_owned(), at("job.py")]),
            (["./job.py", "./gone"], [at("job.py"), "./gone".to_owned()]),
            (["make", "build"], ["make".to_owned(), "build".to_owned()]),
            (["bin/x", "/job.py"], [at("bin/x"), "/job.py".to_owned()]),
        ] {
            let mut handler = CommandHandler::new(command);
            handler.resolve(folder.path());
            assert_eq!(handler.command, expected);
        }
        let overlooked = |command| CommandHandler::new(command).overlooked(folder.path()).is_some();
        assert!(overlooked(["python3", "job.py"]));
        assert!(!overlooked(["python3", "./job.py"]) && !overlooked(["python3", "other.py"]));
    }
}
