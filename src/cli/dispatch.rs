//! `millhand dispatch`: one task from flags, or many from JSON lines on stdin.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use millhand::config::parse_duration;
use millhand::{Error, NewTask, TaskId, TaskState, Waiter, Waker, client};
use postgres::{Client, Transaction};
use serde_json::{Value, json};

use crate::cli::output::{complain, json_line, printable};
use crate::cli::task_args::{TaskArgs, cannot_store};
use crate::cli::wait::{code_after_wait, refuse_deadlock, wait_for_tasks};
use crate::cli::{Failure, Global};

/// Tasks in one statement of a bulk dispatch: enough to make the round trip
/// cheap, few enough to keep the statement small.
const BATCH: usize = 1000;

#[derive(Debug, Args)]
pub(crate) struct DispatchArgs {
    /// Name the task's handler; - creates a task for each JSON line on stdin
    ///
    /// Each line is an object with the key "name" and, as needed, "args",
    /// "exclusive" and "shared" (lists of resources). All or none are created;
    /// their ids are printed one a line, in the same order.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    args: TaskArgs,
    /// Need RESOURCE for itself; may be given many times
    #[arg(short = 'x', long, value_name = "RESOURCE")]
    exclusive: Vec<String>,
    /// Need RESOURCE together with others; may be given many times
    #[arg(short, long, value_name = "RESOURCE")]
    shared: Vec<String>,
    /// Wait for the end and print the result; exit 1 if a task fails
    ///
    /// The result follows the id on a line of its own, as JSON; with --json,
    /// the whole task is printed instead of both. With - nothing but the ids
    /// is printed. Ctrl-C stops the waiting, not the task.
    #[arg(short, long)]
    wait: bool,
    /// Wait TIME at most, such as 500ms or 2m; exit 124 then
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "wait")]
    timeout: Option<Duration>,
}

pub(crate) fn run(global: &Global, args: &DispatchArgs) -> Result<ExitCode, Failure> {
    if args.name != "-" {
        let (exclusive, shared) = (args.exclusive.clone(), args.shared.clone());
        let task = NewTask { name: args.name.clone(), args: args.args.value()?, exclusive, shared };
        return dispatch_one(global, &task, args);
    }
    if !args.args.is_empty() || !args.exclusive.is_empty() || !args.shared.is_empty() {
        let what = "with - each line says its own arguments and resources, such as \
                    {\"name\": \"t\", \"args\": {}, \"exclusive\": [\"r\"]}";
        return Err(Error::Config(what.to_owned()).into());
    }
    dispatch_stdin(global, args)
}

fn dispatch_one(global: &Global, task: &NewTask, args: &DispatchArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand dispatch")?;
    let id = match Waiter::from_environment() {
        Some(waiter) if args.wait => dispatch_to_wait(&mut connection, task, waiter)?,
        _ => client::dispatch(&mut connection, task)?,
    };
    global.tell_workers(&mut connection, Waker::wake);
    if !(args.wait && global.json) {
        print_id(&mut io::stdout().lock(), id, global.json)?;
    }
    if !args.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let states = wait_for_tasks(global, &mut connection, &[id], args.timeout)?;
    let task = client::get_task(&mut connection, id)?;
    let mut out = io::stdout().lock();
    if global.json {
        json_line(&mut out, &task)?;
    } else if task.state == TaskState::Completed {
        writeln!(out, "{}", task.result.unwrap_or(Value::Null))?;
    }
    if states[0].is_final() && task.state != TaskState::Completed {
        let reason = task.error.map(|error| format!(": {error}")).unwrap_or_default();
        complain(&format!("task {id} {}{reason}", task.state));
    }
    Ok(code_after_wait(&[id], &states, args.timeout))
}

/// Dispatches a task that another one waits for; none if that would be for ever.
fn dispatch_to_wait(
    connection: &mut Client,
    task: &NewTask,
    waiter: Waiter,
) -> Result<TaskId, Error> {
    let fail = |error| Error::postgres("could not dispatch a task", error);
    let mut transaction = begin(connection)?;
    let id = client::dispatch(&mut transaction, task)?;
    // What stands before it can be seen now, and nothing comes before it later.
    waiter.check(&mut transaction, &[id]).map_err(nothing_dispatched)?;
    transaction.commit().map_err(fail)?;
    Ok(id)
}

/// Each statement sees what was committed before it, whatever the database's default is.
fn begin(connection: &mut Client) -> Result<Transaction<'_>, Error> {
    let level = postgres::IsolationLevel::ReadCommitted;
    let begun = connection.build_transaction().isolation_level(level).start();
    begun.map_err(|error| Error::postgres("could not dispatch tasks", error))
}

fn nothing_dispatched(error: Error) -> Error {
    match error {
        Error::Conflict(what) => Error::Conflict(format!("{what}; nothing is dispatched")),
        other => other,
    }
}

fn dispatch_stdin(global: &Global, args: &DispatchArgs) -> Result<ExitCode, Failure> {
    // All is read before the transaction begins: dispatch locks are held until
    // its end, and stdin may be slow.
    let lines = read_tasks(io::stdin().lock())?;
    let mut connection = global.connect("millhand dispatch")?;
    let ids = dispatch_all(&mut connection, &lines, args.wait)?;
    global.tell_workers(&mut connection, Waker::wake);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for &id in &ids {
        print_id(&mut out, id, global.json)?;
    }
    out.flush()?;
    if !args.wait {
        return Ok(ExitCode::SUCCESS);
    }
    let states = wait_for_tasks(global, &mut connection, &ids, args.timeout)?;
    for (id, state) in ids.iter().zip(&states) {
        if state.is_final() && *state != TaskState::Completed {
            complain(&format!("task {id} {state}"));
        }
    }
    Ok(code_after_wait(&ids, &states, args.timeout))
}

/// The tasks of all lines, and the number of each one's line.
#[derive(Debug, Default)]
struct Lines {
    tasks: Vec<NewTask>,
    numbers: Vec<usize>,
}

fn read_tasks(input: impl BufRead) -> Result<Lines, Error> {
    let mut lines = Lines::default();
    for (number, line) in (1..).zip(input.split(b'\n')) {
        let wrong =
            |what: String| Error::Config(format!("line {number}: {what}; nothing is dispatched"));
        let line = line.map_err(|error| wrong(format!("could not read stdin: {error}")))?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let task: NewTask =
            serde_json::from_slice(&line).map_err(|error| wrong(json_error(&error)))?;
        let text = std::str::from_utf8(&line).unwrap_or_default();
        if let Some(what) = cannot_store(text, &task.args) {
            return Err(wrong(what));
        }
        lines.tasks.push(task);
        lines.numbers.push(number);
    }
    Ok(lines)
}

/// Without the position that serde_json adds: it counts lines too, from 1.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("{} (column {})", printable(&text[..end]), error.column()),
        None => printable(&text),
    }
}

fn dispatch_all(connection: &mut Client, lines: &Lines, wait: bool) -> Result<Vec<TaskId>, Error> {
    let fail = |error| Error::postgres("could not dispatch tasks", error);
    let mut ids = Vec::with_capacity(lines.tasks.len());
    let mut transaction = begin(connection)?;
    // One batch takes its locks in an order that all agree on; several batches
    // one after the other would not.
    if lines.tasks.len() > BATCH {
        client::lock_places(&mut transaction, &lines.tasks)?;
    }
    for (batch, numbers) in lines.tasks.chunks(BATCH).zip(lines.numbers.chunks(BATCH)) {
        match client::dispatch_many(&mut transaction, batch) {
            Ok(batch) => ids.extend(batch),
            Err(error @ Error::Config(_)) => {
                transaction.rollback().map_err(fail)?;
                return Err(name_line(connection, batch, numbers).unwrap_or(error));
            }
            Err(error) => return Err(error),
        }
    }
    if wait {
        refuse_deadlock(&mut transaction, &ids).map_err(nothing_dispatched)?;
    }
    transaction.commit().map_err(fail)?;
    Ok(ids)
}

/// Finds out which task of a refused batch was at fault.
fn name_line(connection: &mut Client, batch: &[NewTask], numbers: &[usize]) -> Option<Error> {
    batch.iter().zip(numbers).find_map(|(task, number)| {
        match client::check_task(connection, task) {
            Err(Error::Config(what)) => {
                Some(Error::Config(format!("line {number}: {what}; nothing is dispatched")))
            }
            _ => None,
        }
    })
}

fn print_id(out: &mut impl Write, id: TaskId, json: bool) -> io::Result<()> {
    if json { writeln!(out, "{}", json!({ "id": id })) } else { writeln!(out, "{id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_as_an_editor_does() {
        let lines =
            read_tasks("\n{\"name\":\"a\"}\r\n\n{\"name\":\"b\",\"shared\":[\"r\"]}".as_bytes())
                .unwrap();
        assert_eq!(lines.numbers, [2, 4]);
        assert_eq!(lines.tasks, [NewTask::new("a"), NewTask::new("b").shared("r")]);
    }

    #[test]
    fn a_bad_line_is_named() {
        for (input, message) in [
            (
                "{\"name\":\"a\"}\n{",
                "line 2: EOF while parsing an object (column 1); nothing is dispatched",
            ),
            ("{}", "line 1: missing field `name` (column 2); nothing is dispatched"),
            (
                "{\"name\":1}",
                "line 1: invalid type: integer `1`, expected a string (column 9); nothing is dispatched",
            ),
        ] {
            assert_eq!(read_tasks(input.as_bytes()).unwrap_err().to_string(), message);
        }
    }
}
