//! `millhand dispatch`: one task from flags, or many from JSON lines on stdin.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use millhand::{Error, NewTask, TaskId, TaskState, Waker, client};
use postgres::Client;
use serde_json::{Value, json};

use crate::cli::numbers::first_changed;
use crate::cli::output::{complain, json_line, printable};
use crate::cli::wait::wait_for_tasks;
use crate::cli::{Failure, Global};

/// Tasks in one statement of a bulk dispatch: enough to make the round trip
/// cheap, few enough to keep the statement small.
const BATCH: usize = 1000;

#[derive(Debug, Args)]
pub(crate) struct DispatchArgs {
    /// Name the task's handler; - is the same as --stdin
    #[arg(value_name = "NAME", required_unless_present = "stdin")]
    name: Option<String>,
    /// Pass JSON to the handler (default: {})
    #[arg(long, value_name = "JSON", conflicts_with = "args_file")]
    args: Option<String>,
    /// Pass the JSON in FILE to the handler
    #[arg(long, value_name = "FILE")]
    args_file: Option<PathBuf>,
    /// Need RESOURCE for itself; may be given many times
    #[arg(long, value_name = "RESOURCE")]
    exclusive: Vec<String>,
    /// Need RESOURCE together with others; may be given many times
    #[arg(long, value_name = "RESOURCE")]
    shared: Vec<String>,
    /// Wait for the end and print the result; exit 1 if the task fails
    ///
    /// The result follows the id on a line of its own, as JSON. Ctrl-C stops
    /// the waiting, not the task.
    #[arg(long)]
    wait: bool,
    /// Create a task for each JSON line on stdin, all or none
    ///
    /// Each line is an object with the key "name" and, as needed, "args",
    /// "exclusive" and "shared" (lists of resources). Prints one id a line, in
    /// the same order.
    #[arg(long, conflicts_with_all = ["name", "args", "args_file", "exclusive", "shared", "wait"])]
    stdin: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(global: &Global, args: DispatchArgs) -> Result<ExitCode, Failure> {
    match &args.name {
        Some(name) if name != "-" => {
            let task = one_task(name.clone(), &args)?;
            dispatch_one(global, &task, &args)
        }
        _ => dispatch_stdin(global, &args),
    }
}

fn one_task(name: String, args: &DispatchArgs) -> Result<NewTask, Error> {
    let value = match (&args.args, &args.args_file) {
        (Some(text), _) => parse("--args", text)?,
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::Config(format!("could not read {}: {error}", path.display()))
            })?;
            parse(&path.display().to_string(), &text)?
        }
        (None, None) => json!({}),
    };
    let (exclusive, shared) = (args.exclusive.clone(), args.shared.clone());
    Ok(NewTask { name, args: value, exclusive, shared })
}

fn parse(place: &str, text: &str) -> Result<Value, Error> {
    let value = serde_json::from_str(text)
        .map_err(|error| Error::Config(format!("{place} is not valid JSON: {error}")))?;
    match changed_number(text) {
        Some(what) => Err(Error::Config(format!("{place}: {what}"))),
        None => Ok(value),
    }
}

fn changed_number(json: &str) -> Option<String> {
    let (number, held) = first_changed(json)?;
    let number: String = number.chars().take(50).collect();
    Some(format!(
        "the number {number} would become {held}; pass it as a string, or dispatch through SQL"
    ))
}

fn dispatch_one(global: &Global, task: &NewTask, args: &DispatchArgs) -> Result<ExitCode, Failure> {
    let mut connection = global.connect("millhand dispatch")?;
    let id = client::dispatch(&mut connection, task)?;
    global.tell_workers(&mut connection, Waker::wake);
    print_id(&mut io::stdout().lock(), id, args.json)?;
    if args.wait { wait_for_end(&mut connection, id, args.json) } else { Ok(ExitCode::SUCCESS) }
}

fn wait_for_end(connection: &mut Client, id: TaskId, json: bool) -> Result<ExitCode, Failure> {
    wait_for_tasks(connection, &[id], None)?;
    let task = client::get_task(connection, id)?;
    let mut out = io::stdout().lock();
    if json {
        json_line(&mut out, &task)?;
    } else if task.state == TaskState::Completed {
        writeln!(out, "{}", task.result.unwrap_or(Value::Null))?;
    }
    match task.state {
        TaskState::Completed => Ok(ExitCode::SUCCESS),
        state => {
            let reason = task.error.map(|error| format!(": {error}")).unwrap_or_default();
            complain(&format!("task {id} {state}{reason}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

fn dispatch_stdin(global: &Global, args: &DispatchArgs) -> Result<ExitCode, Failure> {
    // All is read before the transaction begins: dispatch locks are held until
    // its end, and stdin may be slow.
    let lines = read_tasks(io::stdin().lock())?;
    let mut connection = global.connect("millhand dispatch")?;
    let ids = dispatch_all(&mut connection, &lines)?;
    global.tell_workers(&mut connection, Waker::wake);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for id in ids {
        print_id(&mut out, id, args.json)?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
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
        lines.tasks.push(serde_json::from_slice(&line).map_err(|error| wrong(json_error(&error)))?);
        if let Some(what) = std::str::from_utf8(&line).ok().and_then(changed_number) {
            return Err(wrong(what));
        }
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

fn dispatch_all(connection: &mut Client, lines: &Lines) -> Result<Vec<TaskId>, Error> {
    let fail = |error| Error::postgres("could not dispatch tasks", error);
    let mut ids = Vec::with_capacity(lines.tasks.len());
    let mut transaction = connection.transaction().map_err(fail)?;
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
