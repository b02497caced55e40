//! The one error type, split by what the caller does next, and the one place
//! that decides exit codes.

use std::error::Error as StdError;

/// What went wrong, by what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The input, a flag or the configuration is wrong: fix it.
    #[error("{0}")]
    Config(String),
    /// The database's schema is missing, elder or newer than this program.
    #[error("{0}")]
    Schema(String),
    /// A server is not reachable, the connection to it was lost, or it could
    /// not do it at the moment: try again.
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
    /// found, 2 configuration or schema, 70 a bug, 75 not reachable (the last
    /// two as in sysexits.h).
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
            return Error::Unavailable { doing: doing.to_owned(), source: error.into() };
        };
        let code = db.code();
        // Class 08 connection, 57 shutdown of the server or the session, or the
        // statement canceled, 53 out of connections, memory or disk, 40 deadlock
        // or lost race, 55P03 lock not available, 55006 workers of another type are
        // online: all pass with time.
        if ["08", "57", "53", "40", "55P03", "55006"]
            .iter()
            .any(|class| code.code().starts_with(class))
        {
            return Error::Unavailable { doing: doing.to_owned(), source: error.into() };
        }
        if *code == SqlState::CHECK_VIOLATION || code.code().starts_with("22") {
            return Error::Config(db.message().to_owned());
        }
        if code.code().starts_with("28") || *code == SqlState::UNDEFINED_DATABASE {
            return Error::Config(format!("{doing}: {}", db.message()));
        }
        if [SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_FUNCTION]
            .contains(code)
        {
            return Error::Schema(format!(
                "the database has no millhand tables of this version ({}); run `millhand migrate`",
                db.message()
            ));
        }
        if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            return Error::Config(format!("{doing}: {}; grant it to this role", db.message()));
        }
        Error::Bug { doing: doing.to_owned(), source: error.into() }
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
