//! How many threads fit: descriptors of this process, connections of the server.

use postgres::Client;
use rustix::process::{Resource, Rlimit};

use crate::config::WorkerType;
use crate::error::Error;

/// What a thread of type `postgres` needs while it starts a command: its connection and
/// its inbox, the pipes of the command with both of their ends, and some for files that are
/// open for a moment. (Counted in `/proc/PID/fd`: 418 of 80 idle threads, and 5 more for
/// each command that runs.)
const FILES_A_THREAD: u64 = 16;
/// And what the process needs beside them.
const FILES: u64 = 64;

/// Raises the soft limit of open files to the hard one, says if that is too low for this
/// many threads, and returns what the limit was, for commands: some programs break beyond
/// 1,024 (`select(2)`).
pub(super) fn raise_files(threads: usize) -> Rlimit {
    let before = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    let needed = threads as u64 * FILES_A_THREAD + FILES;
    if before.maximum.is_some_and(|most| most < needed) {
        log::warn!(
            "{threads} threads may need {needed} open files, and the limit is {}; raise it \
             (ulimit -n, LimitNOFILE) or run fewer threads",
            before.maximum.unwrap_or_default()
        );
    }
    before
}

/// Says if this many threads need more connections than the server takes.
pub(super) fn check_connections(
    client: &mut Client,
    worker_type: WorkerType,
    threads: usize,
) -> Result<(), Error> {
    if worker_type == WorkerType::Redis {
        return Ok(());
    }
    let row = client
        .query_one(include_str!("../../sql/queries/max_connections.sql"), &[])
        .map_err(|error| Error::postgres("could not read the server's settings", error))?;
    let most: i32 = row.get(0);
    // A listener, a housekeeper and a reporter beside them.
    let needed = threads + 3;
    if i64::from(most) < needed as i64 {
        log::warn!(
            "{threads} threads need {needed} connections, and the server takes {most} \
             (max_connections less those of superusers); raise that or run fewer threads"
        );
    }
    Ok(())
}
