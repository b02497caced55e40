//! Runs a task that is a command: a child process in a process group of its
//! own, watched from the worker's thread in one poll(2) loop.
//!
#![doc = include_str!("command/contract.md")]
//!
//! When the child has ended, all that it started and left behind is killed, also what has
//! left its process group (`mark.rs`, `orphans.rs`, `cgroup.rs`).

mod place;
mod placeholders;
mod plan;
mod start;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};
use serde_json::value::RawValue;

use super::args::Args;
use super::cgroup::Cgroup;
use super::claim::{Outcome, text_as_json};
use super::mark::Mark;
use super::reports::lock;
use super::tail::Tail;
use super::{Shared, orphans};
use crate::context::Context;
use place::Place;
pub(crate) use plan::{Plan, Reach};
use start::start;

/// Most of stdout that can become a result.
const MAX_RESULT: usize = 1 << 20;
/// Longest line of progress that is read.
const MAX_PROGRESS: usize = 64 << 10;
/// The descriptor on which a command reports progress.
const PROGRESS_FD: i32 = 3;

/// Why a command did not begin, though its task was claimed.
#[derive(Debug)]
pub(crate) enum NotBegun {
    /// The lease has ended, or there is no warden.
    TooLate,
    /// This machine cannot run the handler's program.
    Program(String),
    /// This machine cannot run any command at the moment.
    Machine(String),
    /// This process has the handler no more.
    Gone,
}

/// Runs the command to its end, unless it could not begin.
pub(crate) fn run(
    shared: &Shared,
    worker_name: &str,
    thread: usize,
    plan: &Plan,
    args: &Args,
    context: &Context<'_>,
) -> Result<Outcome, NotBegun> {
    let place = Place::of(plan, &shared.directories)?;
    let started = start(shared, worker_name, thread, plan, args, context, place.path());
    let outcome = match started? {
        Ok(running) => running.watch(shared, context),
        Err(reason) => Outcome::failed(reason),
    };
    // Before the final state is stored: whoever waits for it finds no remains.
    if let Err(error) = place.leave() {
        log::warn!("could not remove the working directory of task {}: {error}", context.id());
    }
    Ok(outcome)
}

struct Running {
    mark: Mark,
    cgroup: Option<Cgroup>,
    child: Child,
    group: Pid,
    exit: OwnedFd,
    stdin: Option<File>,
    args: Vec<u8>,
    n_written: usize,
    stdout: Stream,
    stderr: Option<File>,
    log: Arc<Mutex<Tail>>,
    progress: Stream,
}

/// One pipe from the child, and what has come out of it.
struct Stream {
    pipe: Option<File>,
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Running {
    /// Watches the child until it has ended, ending it when it has to.
    fn watch(mut self, shared: &Shared, context: &Context<'_>) -> Outcome {
        let mut kill_at: Option<Instant> = None;
        let mut killed = false;
        loop {
            if context.is_canceled() && !killed {
                let gently = !context.inbox.is_aborting() && !context.inbox.is_lost();
                match kill_at {
                    None if gently => {
                        kill(self.group, Signal::TERM);
                        kill_at = Some(Instant::now() + shared.cancel_grace);
                    }
                    Some(deadline) if gently && Instant::now() < deadline => {}
                    _ => {
                        kill(self.group, Signal::KILL);
                        killed = true;
                    }
                }
            }
            let deadline = if killed { None } else { kill_at };
            if self.poll(context, deadline) {
                break;
            }
            self.write_args();
            self.read(context);
        }
        // The leader is dead but not yet reaped, so its number, which is the
        // group's, cannot be anyone else's: kill the rest of the group now.
        kill(self.group, Signal::KILL);
        if let Some(cgroup) = &self.cgroup {
            cgroup.end();
        }
        orphans::end(self.mark, self.group);
        self.read(context);
        let status = shared.warden.take_leave(&mut self.child);
        // (With its lease, the warden killed it.)
        self.outcome(status, killed || context.inbox.is_lost())
    }

    /// Sleeps until something happens; true when the child has ended.
    fn poll(&self, context: &Context<'_>, deadline: Option<Instant>) -> bool {
        let exit = self.exit.as_fd();
        let mut fds = vec![
            PollFd::from_borrowed_fd(exit, PollFlags::IN),
            PollFd::from_borrowed_fd(context.inbox.readiness(), PollFlags::IN),
        ];
        let reads = [&self.stdout.pipe, &self.stderr, &self.progress.pipe];
        let reads: Vec<BorrowedFd<'_>> = reads.into_iter().flatten().map(AsFd::as_fd).collect();
        fds.extend(reads.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        if let Some(stdin) = &self.stdin {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::OUT));
        }
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, lest the last millisecond be spent spinning.
            let left = left + Duration::from_millis(1);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        // An interrupted poll is as good as a wake-up: the loop looks at everything.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        fds[0].revents().contains(PollFlags::IN)
    }

    fn write_args(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        match stdin.write(&self.args[self.n_written..]) {
            Ok(n) => {
                self.n_written += n;
                if self.n_written == self.args.len() {
                    self.stdin = None;
                }
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // A command need not read its arguments.
            Err(_) => self.stdin = None,
        }
    }

    fn read(&mut self, context: &Context<'_>) {
        self.stdout.read(MAX_RESULT, false);
        let mut wrote = false;
        drain(&mut self.stderr, |bytes| {
            lock(&self.log).push(bytes);
            wrote = true;
        });
        if wrote {
            context.reports.wrote(context.id, context.fence, &self.log);
        }
        self.progress.read(MAX_PROGRESS, true);
        self.report(context);
    }

    /// Stores the newest complete line of progress.
    fn report(&mut self, context: &Context<'_>) {
        let bytes = &mut self.progress.bytes;
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return };
        let lines: Vec<u8> = bytes.drain(..=end).collect();
        let newest = lines
            .split(|byte| *byte == b'\n')
            .rev()
            .find_map(|line| serde_json::from_slice::<Box<RawValue>>(line).ok());
        if let Some(value) = newest {
            context.progress(&value);
        }
    }

    /// `killed`: whether that was us.
    fn outcome(self, status: io::Result<ExitStatus>, killed: bool) -> Outcome {
        lock(&self.log).finish();
        let log = lock(&self.log).text();
        let last_words = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let last_words: String = last_words.trim().chars().take(500).collect();
        let failure = match status {
            Ok(status) if status.success() && self.stdout.overflowed => Some(format!(
                "wrote more than {MAX_RESULT} bytes to stdout; a result is 1 MiB at most"
            )),
            Ok(status) if status.success() => None,
            Ok(status) => Some(match (status.code(), status.signal()) {
                (None, Some(signal)) if signal == Signal::KILL.as_raw() && !killed => {
                    "killed by SIGKILL (often because memory ran out)".to_owned()
                }
                _ => how_it_ended(status),
            }),
            Err(error) => Some(format!("could not wait for the command: {error}")),
        };
        let mut outcome = match failure {
            None => {
                let mut text = self.stdout.text();
                let result = match serde_json::from_str(&text) {
                    Ok(value) => value,
                    Err(_) if text.is_empty() => RawValue::NULL.to_owned(),
                    Err(_) => {
                        // As $(...) in a shell, but only one line's end.
                        if text.ends_with('\n') {
                            text.pop();
                        }
                        text_as_json(&text)
                    }
                };
                Outcome::completed(result)
            }
            Some(reason) if last_words.is_empty() => Outcome::failed(reason),
            Some(reason) => Outcome::failed(format!("{reason}: {last_words}")),
        };
        outcome.log_size = (!log.is_empty()).then(|| lock(&self.log).size().cast_signed());
        outcome.log = (!log.is_empty()).then_some(log);
        outcome.tail = Some(self.log);
        outcome
    }
}

impl Stream {
    fn new(pipe: Option<File>) -> Stream {
        Stream { pipe, bytes: Vec::new(), overflowed: false }
    }

    /// Reads what is there. Of more than `limit` bytes the end is kept if
    /// `keep_end`, else the beginning.
    fn read(&mut self, limit: usize, keep_end: bool) {
        drain(&mut self.pipe, |bytes| {
            self.bytes.extend_from_slice(bytes);
            if self.bytes.len() > limit {
                self.overflowed = true;
                if keep_end {
                    self.bytes.drain(..self.bytes.len() - limit);
                } else {
                    self.bytes.truncate(limit);
                }
            }
        });
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Reads what is there; without a pipe there is nothing, and none is left at its end.
fn drain(pipe: &mut Option<File>, mut take: impl FnMut(&[u8])) {
    let mut buffer = [0u8; 16 << 10];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(n) => take(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => *pipe = None,
        }
    }
}

/// The exit code of a process, or the signal that killed it.
pub(super) fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match signal_hook::low_level::signal_name(signal) {
            Some(name) => format!("killed by {name}"),
            None => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

/// Signals every process of the group; one that is gone already is fine.
fn kill(group: Pid, signal: Signal) {
    let _ = rustix::process::kill_process_group(group, signal);
}
