//! Which troubles pass by themselves, or when somebody mends a server: waiting may help.
//! All others want a person who changes what this program was told, or a bug report.

use std::error::Error as _;
use std::io;

use rustix::io::Errno;

/// Of Postgres: an SQLSTATE, or the class that it begins with.
const POSTGRES: [(&str, &str); 12] = [
    ("08", "the connection"),
    ("25006", "read-only: for maintenance, in recovery, or no primary any more"),
    ("25P02", "a transaction that failed before, for such a reason"),
    ("28", "a role, its password or the rule that lets it in is not there yet"),
    ("3D000", "a database that is not there yet"),
    ("40", "a deadlock or a lost race"),
    ("53", "out of disk, memory or connections"),
    ("55000", "in recovery, or a database that lets nobody in"),
    ("55006", "workers of another type are online, or a database is being copied"),
    ("55P03", "a lock that somebody else has"),
    ("57", "the server starts or stops, the session was ended, the statement canceled"),
    ("58030", "a disk that fails"),
];

/// Of Redis, which says in one word what is wrong: what does not pass. A login that is
/// refused may be one that is not there yet, as with Postgres.
const REDIS_NEVER: [&str; 1] = ["NOPERM"];

/// Of the operating system.
const SYSTEM: [Errno; 9] = [
    Errno::AGAIN,
    Errno::MFILE,
    Errno::NFILE,
    Errno::NOMEM,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::NOBUFS,
    Errno::USERS,
    Errno::TXTBSY,
];

pub(super) fn of_postgres(code: &str) -> bool {
    POSTGRES.iter().any(|(class, _)| code.starts_with(class))
}

pub(crate) fn of_redis(code: Option<&str>) -> bool {
    !code.is_some_and(|code| REDIS_NEVER.contains(&code))
}

/// Whether this is a shortage of the machine.
pub(super) fn of_system(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| SYSTEM.contains(&errno))
}

/// Whether the client itself could not go on: a connection that is gone or was never
/// made passes; values that cannot be sent or read, and settings, do not.
pub(super) fn of_client(error: &postgres::Error) -> bool {
    let said = error.to_string();
    if is_of_handshake(error) {
        return is_cut(error);
    }
    let never = [
        "error serializing",
        "error deserializing",
        "error encoding",
        "invalid",
        "expected",
        "query",
    ];
    !never.iter().any(|start| said.starts_with(start))
}

/// Whether encryption could not begin.
pub(crate) fn is_of_handshake(error: &postgres::Error) -> bool {
    error.to_string().starts_with("error performing TLS")
}

/// Whether the connection broke, with whatever else the error says.
pub(crate) fn is_cut(error: &postgres::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        [BrokenPipe, ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof]
            .contains(&cause.kind())
    })
}

/// The shortage of the machine that a panic with this message tells of, if it is one: of
/// a library that takes threads and descriptors for granted.
pub(super) fn of_panic(message: &str) -> Option<io::Error> {
    SYSTEM.iter().map(|errno| io::Error::from(*errno)).find(|error| {
        let code = error.raw_os_error().unwrap_or_default();
        message.contains(&format!("code: {code},")) || message.contains(&error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_of_libraries_that_had_no_thread_or_descriptor_are_known() {
        for message in [
            r#"called `Result::unwrap()` on an `Err` value: Os { code: 24, kind: Uncategorized, message: "Too many open files" }"#,
            "failed to spawn thread: Resource temporarily unavailable (os error 11)",
        ] {
            assert!(of_panic(message).is_some(), "{message}");
        }
        for message in ["index out of bounds: the len is 24", "code: 240,"] {
            assert!(of_panic(message).is_none(), "{message}");
        }
    }
}
