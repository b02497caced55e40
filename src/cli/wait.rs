//! Wait for the ends of tasks: by polling, since nobody announces them.

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use millhand::{Error, TaskId, TaskState, Waiter, client, error};
use postgres::{Client, GenericClient};
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;

use crate::cli::Global;
use crate::cli::output::{complain, short};

/// The first pause between two looks; each is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// As for any program that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// As timeout(1) has it.
const EXIT_TIMED_OUT: u8 = 124;

/// The exit code of a wait that ended so: 0 if all tasks completed, 1 if one did not, 124
/// if `timeout` came first, which is said.
pub(crate) fn code_after_wait(
    ids: &[TaskId],
    states: &[TaskState],
    timeout: Option<Duration>,
) -> ExitCode {
    if let Some(position) = states.iter().position(|state| !state.is_final()) {
        let (id, state) = (ids[position], states[position]);
        let timeout = humantime::format_duration(timeout.unwrap_or_default());
        let n_others = states[position + 1..].iter().filter(|state| !state.is_final()).count();
        let others = if n_others > 0 { format!(", and {n_others} more") } else { String::new() };
        complain(&format!("stopped waiting after {timeout}; task {id} is `{state}`{others}"));
        return ExitCode::from(EXIT_TIMED_OUT);
    }
    let all_completed = states.iter().all(|state| *state == TaskState::Completed);
    if all_completed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Fails if this program is a part of a task's command, and one of these tasks cannot start
/// before that has ended.
pub(crate) fn refuse_deadlock(
    client: &mut impl GenericClient,
    ids: &[TaskId],
) -> Result<(), Error> {
    Waiter::from_environment().map_or(Ok(()), |waiter| waiter.check(client, ids))
}

/// Waits until all these tasks are final, or until `timeout` has passed, and
/// returns the states then, in the order of `ids`. On a terminal a line on
/// stderr shows how they fare; Ctrl-C ends the program, not the tasks.
pub(crate) fn wait_for_tasks(
    global: &Global,
    client: &mut Client,
    ids: &[TaskId],
    timeout: Option<Duration>,
) -> Result<Vec<TaskState>, Error> {
    let bar = progress_line();
    leave_on_interrupt(&bar, ids)?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut pause = FIRST_PAUSE;
    loop {
        let found = ask(global, client, deadline, |client| client::task_states(client, ids))?;
        let mut states = Vec::with_capacity(ids.len());
        let mut doing = String::new();
        for id in ids {
            let Some((_, state, progress)) = found.iter().find(|(found, ..)| found == id) else {
                return Err(Error::NotFound(format!("there is no task {id}")));
            };
            if !state.is_final() && doing.is_empty() {
                doing = format!("task {id} {state}");
                if let Some(progress) = progress {
                    doing.push_str(&format!(" {}", short(&progress.to_string())));
                }
            }
            states.push(*state);
        }
        let n_final = states.iter().filter(|state| state.is_final()).count();
        if n_final == ids.len() || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            bar.finish_and_clear();
            return Ok(states);
        }
        if ids.len() > 1 {
            doing.push_str(&format!(" ({n_final} of {} are final)", ids.len()));
        }
        bar.set_message(doing);
        let left = deadline.map_or(pause, |deadline| deadline - Instant::now());
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Asks until the server answers, on new connections, or until the deadline has passed:
/// whoever waits for a task should not dispatch it again because a server was restarted.
pub(crate) fn ask<T>(
    global: &Global,
    client: &mut Client,
    deadline: Option<Instant>,
    mut ask: impl FnMut(&mut Client) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut told = false;
    loop {
        let error = match ask(client) {
            Err(error) if error.is_unavailable() => error,
            other => return other,
        };
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            complain(&format!("{}; asking again until it answers", error::chain(&error)));
        }
        thread::sleep(LAST_PAUSE);
        match global.connect("millhand wait") {
            Ok(connected) => *client = connected,
            Err(error) if error.is_unavailable() => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hidden by itself where stderr is no terminal.
fn progress_line() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}")
            .expect("the template is well formed"),
    );
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn leave_on_interrupt(bar: &ProgressBar, ids: &[TaskId]) -> Result<(), Error> {
    let mut signals = Signals::new([SIGINT])
        .map_err(|error| Error::system("could not watch for SIGINT", error))?;
    let bar = bar.clone();
    let remedy = match ids {
        [id] => format!("task {id} stays; `millhand task cancel {id}` ends it"),
        _ => format!("the {} tasks stay", ids.len()),
    };
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            bar.finish_and_clear();
            complain(&format!("stopped waiting; {remedy}"));
            std::process::exit(EXIT_INTERRUPTED);
        }
    });
    Ok(())
}
