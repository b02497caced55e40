//! The one error type, split by what the caller does next, and the one place
//! that decides exit codes.

pub(crate) mod passing;

use std::any::Any;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What went wrong, by what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input, a flag or the configuration is wrong: fix it.
    #[error("{0}")]
    Config(String),
    /// The database's schema is missing, older or newer than this program.
    #[error("{0}")]
    Schema(String),
    /// A server is not reachable, the connection to it was lost, or it or this
    /// machine could not do it at the moment: try again.
    #[error("{doing}")]
    Unavailable {
        /// What was being done, as in "could not reach Postgres".
        doing: String,
        /// What the server or the system said.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The task is not in the expected state, or a check failed.
    #[error("{0}")]
    Conflict(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// A broken invariant: a bug of millhand, or a table changed by hand.
    #[error("{doing}")]
    Bug {
        /// What was being done.
        doing: String,
        /// What came back instead of an answer.
        source: Box<dyn StdError + Send + Sync>,
    },
}

impl Error {
    /// The exit code of a program that ends with this error: 1 conflict or not
    /// found, 2 configuration or schema, 70 a bug, 75 what waiting may mend (the
    /// last two as in sysexits.h).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Conflict(_) | Error::NotFound(_) => 1,
            Error::Config(_) | Error::Schema(_) => 2,
            Error::Bug { .. } => 70,
            Error::Unavailable { .. } => 75,
        }
    }

    /// Turns an error of the Postgres client into ours: trouble that passes is
    /// `Unavailable`, refused values are `Config`, a missing table is `Schema`,
    /// anything else a `Bug`.
    #[must_use]
    pub fn postgres(doing: &str, error: postgres::Error) -> Error {
        use postgres::error::SqlState;
        let Some(db) = error.as_db_error() else {
            if passing::of_client(&error) {
                return Error::Unavailable { doing: doing.to_owned(), source: error.into() };
            }
            return Error::Config(format!("{doing}: {}", chain(&error)));
        };
        let code = db.code();
        if passing::of_postgres(code.code()) {
            return Error::Unavailable { doing: doing.to_owned(), source: error.into() };
        }
        // A value that is refused, or too large to be stored.
        if *code == SqlState::CHECK_VIOLATION || ["22", "54"].contains(&&code.code()[..2]) {
            return Error::Config(db.message().to_owned());
        }
        if [SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_FUNCTION]
            .contains(code)
        {
            return Error::Schema(format!(
                "the database has no millhand tables of this version ({}); run `millhand migrate`",
                db.message()
            ));
        }
        if *code == SqlState::INSUFFICIENT_PRIVILEGE && db.message().contains(" for database ") {
            return Error::Config(format!(
                "{doing}: {}; its owner says GRANT CREATE ON DATABASE ... TO ...",
                db.message()
            ));
        }
        if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            return Error::Config(format!(
                "{doing}: {}; what `millhand grants ROLE --for KIND` prints gives a role its rights",
                db.message()
            ));
        }
        Error::Bug { doing: doing.to_owned(), source: error.into() }
    }

    /// Turns an error of the operating system into ours: a shortage passes, anything
    /// else wants somebody to change something.
    #[must_use]
    pub fn system(doing: &str, error: std::io::Error) -> Error {
        if passing::of_system(&error) {
            return Error::Unavailable { doing: doing.to_owned(), source: error.into() };
        }
        Error::Config(format!("{doing}: {error}"))
    }

    /// Turns a panic into an error. Libraries that take threads and descriptors for
    /// granted panic where there are none, and that passes; else it is a `Bug`.
    #[must_use]
    pub fn panicked(doing: &str, panic: &(dyn Any + Send)) -> Error {
        let message = panic_text(panic);
        if let Some(shortage) = passing::of_panic(message) {
            return Error::Unavailable { doing: doing.to_owned(), source: shortage.into() };
        }
        Error::Bug { doing: doing.to_owned(), source: format!("panicked: {message}").into() }
    }

    /// What the database said, if it did, as an SQLSTATE.
    pub(crate) fn sqlstate(&self) -> Option<&postgres::error::SqlState> {
        let (Error::Unavailable { source, .. } | Error::Bug { source, .. }) = self else {
            return None;
        };
        source.downcast_ref::<postgres::Error>()?.code()
    }

    /// The same for another worker that it concerns, with the words of its causes.
    pub(crate) fn copy(&self) -> Error {
        let said = |source: &(dyn StdError + Send + Sync + 'static)| chain(source).into();
        match self {
            Error::Config(text) => Error::Config(text.clone()),
            Error::Schema(text) => Error::Schema(text.clone()),
            Error::Conflict(text) => Error::Conflict(text.clone()),
            Error::NotFound(text) => Error::NotFound(text.clone()),
            Error::Unavailable { doing, source } => {
                Error::Unavailable { doing: doing.clone(), source: said(&**source) }
            }
            Error::Bug { doing, source } => {
                Error::Bug { doing: doing.clone(), source: said(&**source) }
            }
        }
    }

    /// Whether the connection that said this is of no more use.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }
}

/// Runs this; a panic in it is an error.
pub fn guard<T>(doing: &str, run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(Error::panicked(doing, &*panic)))
}

/// Whether this panic only tells of a shortage of the machine, which becomes an error.
#[must_use]
pub fn is_shortage(panic: &(dyn Any + Send)) -> bool {
    passing::of_panic(panic_text(panic)).is_some()
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The error and its causes on one line, each said once.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = words(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = words(error);
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text.replace('\n', " ")
}

/// What the error says, without its causes. Of what a server said only the
/// message: the client puts "db error" and the severity before it.
fn words(error: &(dyn StdError + 'static)) -> String {
    let said = match error.downcast_ref::<postgres::Error>() {
        Some(error) => error.as_db_error(),
        None => error.downcast_ref::<postgres::error::DbError>(),
    };
    said.map_or_else(|| error.to_string(), |said| said.message().to_owned())
}
