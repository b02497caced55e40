//! A temporary directory, and processes, that do not outlive this program,
//! however it ends.
//!
//! A guard, a small shell process in a process group of its own, makes the
//! directory and then reads a pipe from us. When the pipe ends, because the
//! value was dropped or because this program is gone, it ends the processes
//! that are noted in the directory, and whatever they have started, and removes
//! it.
//!
//! A process notes itself, before it becomes the program to run: there is no
//! moment at which it runs and is not noted. If the directory is gone by then,
//! it ends. What it starts is known by a mark in its environment.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::{Account, system_error};
use crate::error::Error;

/// In the environment of processes: the directory that they belong to.
const MARK: &str = "MILLHAND_DIRECTORY";

/// What the guard runs; its arguments are two places for the directory and the
/// name of the mark.
const GUARD: &str = r#"
trap '' HUP INT QUIT TERM PIPE
umask 077
directory=$(mktemp -d "$1/millhand-XXXXXX" 2>/dev/null) ||
    directory=$(mktemp -d "$2/millhand-XXXXXX") || exit 1
printf '%s\n' "$directory"
while read -r line; do :; done
for file in "$directory"/*.process; do
    read -r signal pid <"$file" || continue
    kill "-$signal" "$pid" || continue
    n=0
    while kill -0 "$pid" && [ $n -lt 200 ]; do
        # Dead, and nobody has noticed yet.
        read -r state <"/proc/$pid/stat" && case $state in *") Z "*) break ;; esac
        sleep 0.05
        n=$((n + 1))
    done
    kill -9 "$pid"
done 2>/dev/null
n=0
while [ $n -lt 100 ]; do
    marked=$(grep -l "$3=$directory" /proc/[0-9]*/environ)
    [ "$marked" ] || break
    for file in $marked; do
        pid=${file#/proc/}
        kill -9 "${pid%/environ}"
    done
    sleep 0.02
    n=$((n + 1))
done 2>/dev/null
rm -rf "$directory" 2>/dev/null && exit
# Somebody was still writing.
sleep 1
rm -rf "$directory"
"#;

/// What a process runs before it becomes its program.
const NOTE: &str = r#"echo "$1 $$" >"$2" && shift 2 && exec "$@""#;

/// The longest name of a directory that leaves room for a socket in it: the
/// whole path of a Unix socket has at most 107 bytes.
const PATH_MAX: usize = 80;

/// A temporary directory that is gone, and whose processes are gone, when this
/// value is dropped or this program ends, by `kill -9` too.
#[derive(Debug)]
pub struct GuardedDirectory {
    path: PathBuf,
    guard: Child,
    account: Option<Account>,
    n_processes: AtomicU32,
}

impl GuardedDirectory {
    /// Makes a directory that only its owner may enter.
    pub fn new() -> Result<GuardedDirectory, Error> {
        GuardedDirectory::owned_by(None)
    }

    pub(super) fn owned_by(account: Option<Account>) -> Result<GuardedDirectory, Error> {
        let doing = "could not make a temporary directory";
        let mut folder = std::env::temp_dir();
        if folder.as_os_str().len() > PATH_MAX - "/millhand-XXXXXX".len() || !folder.is_absolute() {
            folder = PathBuf::from("/tmp");
        }
        let mut command = Command::new("sh");
        command.args(["-c", GUARD, "millhand-guard"]).arg(&folder).args(["/tmp", MARK]);
        // If we ourselves belong to a directory, its guard must not take ours.
        command.env_remove(MARK);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        run_as(&mut command, account.as_ref());
        // Ctrl-C in a terminal is for us, not for the guard.
        command.process_group(0).current_dir("/");
        let mut guard = command.spawn().map_err(|error| system_error(doing, error))?;
        let mut path = String::new();
        let stdout = guard.stdout.take().expect("it is a pipe");
        BufReader::new(stdout).read_line(&mut path).map_err(|error| system_error(doing, error))?;
        if path.pop() != Some('\n') {
            let mut reason = String::new();
            let mut stderr = guard.stderr.take().expect("it is a pipe");
            let _ = stderr.read_to_string(&mut reason);
            let _ = guard.wait();
            let source = reason.trim_end().to_owned().into();
            return Err(Error::Unavailable { doing: doing.to_owned(), source });
        }
        Ok(GuardedDirectory { path: path.into(), guard, account, n_processes: AtomicU32::new(0) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a program that the guard will end with this signal (and with
    /// SIGKILL 10 s later); what the program leaves running is killed.
    /// `setup` adds arguments, environment and the rest.
    pub fn spawn(
        &self,
        program: &Path,
        signal: Signal,
        setup: impl FnOnce(&mut Command),
    ) -> Result<GuardedChild, Error> {
        let number = self.n_processes.fetch_add(1, Ordering::Relaxed);
        let note = self.path.join(format!("{number}.process"));
        let mut command = Command::new("sh");
        command.args(["-c", NOTE, "millhand-start", &signal.as_raw().to_string()]);
        command.arg(&note).arg(program);
        run_as(&mut command, self.account.as_ref());
        setup(&mut command);
        command.env(MARK, &self.path);
        let child = command.spawn().map_err(|error| {
            system_error(format!("could not start {}", program.display()), error)
        })?;
        Ok(GuardedChild { child, note })
    }
}

impl Drop for GuardedDirectory {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        // In case that somebody killed the guard.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn run_as(command: &mut Command, account: Option<&Account>) {
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
}

/// A process that its directory's guard ends if we cannot.
#[derive(Debug)]
pub struct GuardedChild {
    child: Child,
    note: PathBuf,
}

impl GuardedChild {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.forget();
        }
        Ok(status)
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait()?;
        self.forget();
        Ok(status)
    }

    /// Its number may be another process's soon.
    fn forget(&self) {
        let _ = std::fs::remove_file(&self.note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_directory_takes_along_what_its_processes_started() {
        let directory = GuardedDirectory::new().unwrap();
        let pid_file = directory.path().join("pid");
        let mut parent = directory
            .spawn(Path::new("sh"), Signal::TERM, |command| {
                command.args(["-c", "setsid sleep 1000 & echo $! >$0"]).arg(&pid_file);
            })
            .unwrap();
        parent.wait().unwrap();
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        drop(directory);
        // A dead process that nobody has waited for has no command line.
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command_line.is_empty());
    }

    #[test]
    fn a_dropped_directory_takes_its_processes_along() {
        let directory = GuardedDirectory::new().unwrap();
        let path = directory.path().to_owned();
        let mut sleeper = directory
            .spawn(Path::new("sleep"), Signal::TERM, |command| {
                command.arg("1000");
            })
            .unwrap();
        // It is noted right after its start; wait for that.
        while std::fs::read_to_string(path.join("0.process")).unwrap_or_default().is_empty() {
            std::thread::yield_now();
        }
        let reaper = std::thread::spawn(move || sleeper.wait().unwrap());
        drop(directory);
        assert!(!path.exists());
        assert!(!reaper.join().unwrap().success());
    }
}
