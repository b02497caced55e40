//! What is known of a handler's command before a task comes: whom it runs as, where, and
//! which variables it gets.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::config::CommandHandler;
use crate::error::Error;
use crate::worker::account::{self, Account};

/// Of the worker's variables, what a program with a clean environment gets; and `LC_*`.
const NEEDED: [&str; 6] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ"];

/// What the service manager tells the worker, and is none of a command's business: one that
/// says `READY=1` or `WATCHDOG=1` says it for the worker.
const OF_SERVICE: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
];

/// What a private server marks its processes with (`server/directory.rs`): no setting.
const MARK: &str = "MILLHAND_DIRECTORY";

/// What `millhand dispatch` needs, for the commands that may.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reach {
    pub(crate) variables: Vec<(&'static str, OsString)>,
    /// Where the program is.
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) handler: CommandHandler,
    /// None if it is the worker's.
    pub(crate) account: Option<Account>,
    pub(crate) environment: BTreeMap<OsString, OsString>,
}

impl Plan {
    /// For the handler of this name; fails if it could not run, whatever this machine is like
    /// later.
    pub(crate) fn new(name: &str, handler: &CommandHandler, reach: &Reach) -> Result<Plan, Error> {
        handler.check(name)?;
        let account = match &handler.user {
            Some(user) => account::find(user)
                .map_err(|reason| Error::Config(format!("handler `{name}`: {reason}")))?,
            None => None,
        };
        let environment = environment(handler, account.as_ref(), reach, std::env::vars_os());
        Ok(Plan { handler: handler.clone(), account, environment })
    }

    pub(crate) fn program(&self) -> &str {
        &self.handler.command[0]
    }

    /// Where its program is looked for.
    pub(crate) fn path(&self) -> OsString {
        self.environment.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| "/bin:/usr/bin".into())
    }
}

/// The variables of a command but those that tell it of its task.
fn environment(
    handler: &CommandHandler,
    account: Option<&Account>,
    reach: &Reach,
    own: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<OsString, OsString> {
    let is_passed_on = |name: &str| {
        if name == MARK {
            true
        } else if name.starts_with("PG") {
            // They say how to connect, with which password. A URL may rest on them.
            handler.can_dispatch
        } else if name.starts_with("MILLHAND_") || OF_SERVICE.contains(&name) {
            // The settings hold passwords.
            false
        } else {
            !handler.clean_environment || NEEDED.contains(&name) || name.starts_with("LC_")
        }
    };
    let mut variables: BTreeMap<OsString, OsString> =
        own.filter(|(name, _)| is_passed_on(&name.to_string_lossy())).collect();
    if let Some(account) = account {
        for (name, value) in [
            ("HOME", account.home.clone().into_os_string()),
            ("USER", account.name.clone().into()),
            ("LOGNAME", account.name.clone().into()),
        ] {
            variables.insert(name.into(), value);
        }
    }
    if handler.can_dispatch {
        for (name, value) in &reach.variables {
            variables.insert(name.into(), value.clone());
        }
    }
    for (name, value) in &handler.environment {
        variables.insert(name.into(), value.into());
    }
    if let (true, Some(folder)) = (handler.can_dispatch, &reach.folder) {
        let path = variables.entry("PATH".into()).or_insert_with(|| "/bin:/usr/bin".into());
        let folders = std::env::split_paths(path).chain([folder.clone()]);
        if let Ok(longer) = std::env::join_paths(folders) {
            *path = longer;
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(handler: &CommandHandler) -> BTreeMap<String, String> {
        let own = [
            ("PATH", "/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "C"),
            ("AWS_KEY", "k"),
            ("PGPASSWORD", "p"),
            ("MILLHAND_DATABASE_URL", "postgresql://old"),
            ("MILLHAND_CONFIG", "c"),
            ("MILLHAND_WHATEVER", "w"),
            ("NOTIFY_SOCKET", "n"),
            ("MILLHAND_DIRECTORY", "d"),
        ];
        let own = own.into_iter().map(|(name, value)| (name.into(), value.into()));
        let reach = Reach {
            variables: vec![("MILLHAND_DATABASE_URL", "postgresql://new".into())],
            folder: Some("/opt/millhand".into()),
        };
        let given = environment(handler, None, &reach, own).into_iter();
        let text = |text: OsString| text.into_string().expect("it was text");
        given.map(|(name, value)| (text(name), text(value))).collect()
    }

    fn names(given: &BTreeMap<String, String>) -> String {
        given.keys().cloned().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_command_gets_no_settings_unless_it_may_dispatch() {
        let mut handler = CommandHandler::new(["true"]);
        assert_eq!(names(&given(&handler)), "AWS_KEY HOME LC_ALL MILLHAND_DIRECTORY PATH");
        handler.clean_environment = true;
        handler.environment.insert("PGPASSWORD".to_owned(), "own".to_owned());
        assert_eq!(names(&given(&handler)), "HOME LC_ALL MILLHAND_DIRECTORY PATH PGPASSWORD");
        handler.environment.clear();
        handler.can_dispatch = true;
        let given = given(&handler);
        assert_eq!(
            names(&given),
            "HOME LC_ALL MILLHAND_DATABASE_URL MILLHAND_DIRECTORY PATH PGPASSWORD"
        );
        assert_eq!(given["MILLHAND_DATABASE_URL"], "postgresql://new");
        assert_eq!(given["PATH"], "/bin:/opt/millhand");
    }
}
