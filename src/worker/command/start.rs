//! Starts a command: its arguments, its environment, its pipes, and by what it and all
//! that it starts will be known.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use command_fds::{CommandFdExt, FdMapping};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Signal};

use super::placeholders::fill_in;
use super::{NotBegun, PROGRESS_FD, Plan, Running, Stream, kill};
use crate::context::Context;
use crate::worker::Shared;
use crate::worker::args::Args;
use crate::worker::cgroup::Cgroup;
use crate::worker::clock::Moment;
use crate::worker::mark::Mark;
use crate::worker::orphans;
use crate::worker::tail::Tail;

/// What a child that was held up until its lease had ended says instead of becoming the
/// command. No program is refused with this.
const TOO_LATE: Errno = Errno::TIME;

/// Starts the command; `Ok(Err(_))` is a reason for the task to fail, which no other
/// machine would mend.
pub(super) fn start(
    shared: &Shared,
    worker_name: &str,
    thread: usize,
    plan: &Plan,
    args: &Args,
    context: &Context<'_>,
    directory: &Path,
) -> Result<Result<Running, String>, NotBegun> {
    let filled: Result<Vec<String>, String> =
        plan.handler.command.iter().map(|part| fill_in(part, args)).collect();
    let argv = match filled {
        Ok(argv) => argv,
        Err(reason) => {
            return Ok(Err(format!(
                "{reason}, and the command of handler `{}` needs it",
                context.name()
            )));
        }
    };
    let machine = |doing: &str| {
        let doing = doing.to_owned();
        move |error: io::Error| NotBegun::Machine(format!("{doing}: {error}"))
    };
    let (progress, progress_end) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| machine("could not make a pipe")(error.into()))?;
    loop {
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .current_dir(directory)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_clear()
            .envs(&plan.environment)
            .env("MILLHAND_TASK_ID", context.id().to_string())
            .env("MILLHAND_TASK_NAME", context.name())
            .env("MILLHAND_FENCE", context.fence().to_string())
            .env("MILLHAND_ATTEMPT", context.attempt().to_string())
            .env("MILLHAND_WORKER", worker_name);
        let permit = shared.warden.permit().ok_or(NotBegun::TooLate)?;
        // In this order: a permit of a lease that began after this worker's own has ended
        // is none for it.
        if context.inbox.is_lost() {
            return Err(NotBegun::TooLate);
        }
        let mark = Mark::new(&shared.identity.process, permit.lease, thread);
        let cgroup = match &shared.cgroups {
            Some(cgroups) => Some(
                cgroups
                    .of_thread(permit.lease, thread)
                    .map_err(machine("could not make a cgroup"))?,
            ),
            None => None,
        };
        let entry = cgroup.as_ref().map(|cgroup| cgroup.entry.try_clone()).transpose();
        let entry = entry.map_err(machine("could not open a cgroup"))?;
        prepare(&mut command, shared, plan, mark, entry, permit.until);
        command
            .fd_mappings(vec![FdMapping {
                parent_fd: progress_end.try_clone().map_err(machine("could not make a pipe"))?,
                child_fd: PROGRESS_FD,
            }])
            .map_err(|error| machine("could not pass on a pipe")(io::Error::other(error)))?;
        let child = match command.spawn() {
            // The lease may have been renewed while this thread was held up.
            Err(error) if is(&error, TOO_LATE) && !context.inbox.is_lost() => continue,
            Err(error) => return not_started(error, &argv[0], plan, context, directory),
            Ok(child) => child,
        };
        // The command keeps our copy of the pipe's end; the pipe must end with
        // the child.
        drop((command, progress_end));
        shared.warden.add(Pid::from_child(&child), permit.lease);
        let log = Tail::new(shared.directories.log(context.id(), context.fence()));
        return Ok(watched(shared, child, mark, cgroup, progress, args, log));
    }
}

/// What the child does before it becomes the command, in this order.
#[expect(unsafe_code, reason = "nothing else can act in a child before it becomes its program")]
fn prepare(
    command: &mut Command,
    shared: &Shared,
    plan: &Plan,
    mark: Mark,
    entry: Option<File>,
    until: Moment,
) {
    let (limit, files, account) = (mark.limit(), shared.files, plan.account.clone());
    let act = move || -> io::Result<()> {
        if let Some(entry) = &entry {
            // Where that is refused, the mark still does.
            let _ = rustix::io::write(entry, b"0");
        }
        rustix::process::setrlimit(Resource::Rttime, limit)?;
        rustix::process::setrlimit(Resource::Nofile, files)?;
        // After what only root may do. The child has one thread, and so these are the whole
        // process's.
        if let Some(account) = &account {
            rustix::thread::set_thread_groups(&account.groups)?;
            rustix::thread::set_thread_gid(account.gid)?;
            rustix::thread::set_thread_uid(account.uid)?;
        }
        // Last: who kills what the lease covered finds this child, or it ends here. (The
        // worker may have been frozen for any time before it forked.)
        if until.has_passed() { Err(TOO_LATE.into()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec only what is safe in a signal handler may be done. The
    // closure makes a few system calls by way of rustix, which neither allocates nor locks
    // for them, and touches no memory but what it owns; its errors are bare numbers.
    // Before the mapping of descriptors, which may overwrite that of the cgroup.
    unsafe {
        command.pre_exec(act);
    }
}

/// Why a child could not be started: the task's fault, the handler's, or the machine's.
fn not_started(
    error: io::Error,
    program: &str,
    plan: &Plan,
    context: &Context<'_>,
    directory: &Path,
) -> Result<Result<Running, String>, NotBegun> {
    let user = plan.account.as_ref().map(|account| format!(" as user `{}`", account.name));
    let user = user.unwrap_or_default();
    let said = format!("could not run `{program}`{user} for handler `{}`: {error}", context.name());
    if is(&error, TOO_LATE) {
        return Err(NotBegun::TooLate);
    }
    // A NUL in an argument, or more of them than the system passes on.
    if error.kind() == ErrorKind::InvalidInput && error.raw_os_error().is_none()
        || is(&error, Errno::TOOBIG)
    {
        return Ok(Err(said));
    }
    let is_program = [
        Errno::NOENT,
        Errno::ACCESS,
        Errno::PERM,
        Errno::NOEXEC,
        Errno::NOTDIR,
        Errno::ISDIR,
        Errno::LOOP,
        Errno::NAMETOOLONG,
        Errno::TXTBSY,
        Errno::INVAL,
        Errno::LIBBAD,
        Errno::STALE,
    ];
    if plan.handler.directory.is_some() && !directory.is_dir() {
        let shown = directory.display();
        return Err(NotBegun::Program(format!("its directory {shown} is gone; make it again")));
    }
    if !directory.is_dir() || !is_program.iter().any(|errno| is(&error, *errno)) {
        return Err(NotBegun::Machine(said));
    }
    let remedy = match error.kind() {
        ErrorKind::NotFound => "; install it, or mend the handler's command",
        ErrorKind::PermissionDenied if plan.account.is_some() => {
            "; make it, and its folders, executable for that user"
        }
        ErrorKind::PermissionDenied => "; make it executable",
        _ => "",
    };
    match plan.program().contains('{') {
        // The task's arguments say which program.
        true => Ok(Err(format!("{said}{remedy}"))),
        false => Err(NotBegun::Program(format!("{said}{remedy}"))),
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The running child, with all by which it is watched.
fn watched(
    shared: &Shared,
    mut child: std::process::Child,
    mark: Mark,
    cgroup: Option<Cgroup>,
    progress: OwnedFd,
    args: &Args,
    log: Tail,
) -> Result<Running, String> {
    let group = Pid::from_child(&child);
    let take = |pipe: Option<OwnedFd>| pipe.map(File::from);
    let pipes = (
        take(child.stdin.take().map(OwnedFd::from)),
        take(child.stdout.take().map(OwnedFd::from)),
        take(child.stderr.take().map(OwnedFd::from)),
    );
    let prepared = [&pipes.0, &pipes.1, &pipes.2]
        .into_iter()
        .flatten()
        .map(AsFd::as_fd)
        .chain([progress.as_fd()])
        .try_for_each(|pipe| rustix::io::ioctl_fionbio(pipe, true))
        .and_then(|()| rustix::process::pidfd_open(group, PidfdFlags::empty()));
    let exit = match prepared {
        Ok(exit) => exit,
        Err(error) => {
            // It has begun, so it is not for others to repeat.
            kill(group, Signal::KILL);
            if let Some(cgroup) = &cgroup {
                cgroup.end();
            }
            let _ = shared.warden.take_leave(&mut child);
            orphans::end(mark, group);
            return Err(format!("could not watch the command: {error}"));
        }
    };
    Ok(Running {
        mark,
        cgroup,
        child,
        group,
        exit,
        stdin: pipes.0,
        args: args.text()?.as_bytes().to_vec(),
        n_written: 0,
        stdout: Stream::new(pipes.1),
        stderr: pipes.2,
        log: Arc::new(Mutex::new(log)),
        progress: Stream::new(Some(File::from(progress))),
    })
}
