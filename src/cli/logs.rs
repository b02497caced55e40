//! `millhand task logs`: what a task's command writes to stderr.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use millhand::client::{self, TaskLog};
use millhand::{Error, TaskId};
use postgres::Client;
use serde_json::json;

use crate::cli::output::{complain, json_line, printable_lines};
use crate::cli::wait::ask;
use crate::cli::{Failure, Global};

/// How often the table is asked for more; workers write to it as often at most.
const INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Print the log of the task of this number
    ///
    /// While the task runs, that is what its command has written up to half a
    /// second ago, or up to three where it writes much. The last 64 KiB are
    /// kept.
    #[arg(value_name = "ID")]
    id: TaskId,
    /// Go on printing until the task has ended, however it ends
    #[arg(short, long)]
    follow: bool,
}

pub(crate) fn run(global: &Global, args: &LogsArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand task logs")?;
    let mut log = client::task_log(&mut connection, args.id)?;
    print(global, args, &log.text)?;
    while args.follow && !log.state.is_final() {
        thread::sleep(INTERVAL);
        let printed = log.size;
        log = ask(global, &mut connection, None, |client| client::task_log(client, args.id))?;
        let (new, n_lost) = news(&log, printed);
        if n_lost > 0 {
            complain(&format!("{n_lost} bytes came too fast to be kept"));
        }
        print(global, args, new)?;
    }
    if args.follow {
        tell_end(&mut connection, args.id)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is new since `printed` bytes, and how many bytes of it are not kept.
fn news(log: &TaskLog, printed: u64) -> (&str, u64) {
    // A task that is run again begins a new log.
    let n_new = if log.size < printed { log.size } else { log.size - printed };
    let kept = log.text.len() as u64;
    let start = usize::try_from(kept.saturating_sub(n_new)).unwrap_or(0);
    let n_lost = n_new.saturating_sub(kept);
    // Where the beginning is lost, the next whole line begins what is there.
    let start = match log.text.find('\n') {
        Some(end) if n_lost > 0 => end + 1,
        _ => (start..=log.text.len()).find(|at| log.text.is_char_boundary(*at)).unwrap_or(0),
    };
    (&log.text[start..], n_lost)
}

fn print(global: &Global, args: &LogsArgs, text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if global.json {
        if !text.is_empty() || !args.follow {
            json_line(&mut out, &json!({ "id": args.id, "log": text }))?;
        }
    } else if out.is_terminal() {
        // A file gets what the command wrote; a terminal does not obey it.
        write!(out, "{}", printable_lines(text))?;
    } else {
        write!(out, "{text}")?;
    }
    out.flush()
}

fn tell_end(connection: &mut Client, id: TaskId) -> Result<(), Error> {
    let task = client::get_task(connection, id)?;
    let reason = task.error.map(|error| format!(": {error}")).unwrap_or_default();
    complain(&format!("task {id} {}{reason}", task.state));
    Ok(())
}

#[cfg(test)]
mod tests {
    use millhand::TaskState;

    use super::*;

    #[test]
    fn only_what_is_new_is_printed() {
        let log = |text: &str, size| TaskLog { text: text.into(), size, state: TaskState::Running };
        for (text, size, printed, expected) in [
            ("abc", 3, 0, ("abc", 0)),
            ("abc", 3, 2, ("c", 0)),
            ("abc", 3, 3, ("", 0)),
            ("yz", 26, 24, ("yz", 0)),
            ("yz", 26, 10, ("yz", 14)),
            ("y\nz\n", 26, 10, ("z\n", 12)),
            ("ab", 2, 9, ("ab", 0)),
            ("", 0, 0, ("", 0)),
        ] {
            assert_eq!(news(&log(text, size), printed), expected, "{text} {size} {printed}");
        }
    }
}
