//! Which handlers a process offers: those that it can run at the moment.
//!
//! A machine on which a program is missing, or that is out of room or processes, is no
//! reason for a task to fail: others may be able to run it. What could not begin here
//! goes back to its place, and this process stops asking for its like. It asks again when
//! the program and the working directory look right and a while has passed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::NotBegun;
use super::shared::working_directory;
use crate::registry::{Handler, Registry};

/// Pauses before a handler is offered again: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

pub(crate) struct Offer {
    /// Every handler, and the program that it needs.
    all: BTreeMap<String, Option<String>>,
    folder: PathBuf,
    process: String,
    state: Mutex<State>,
}

struct State {
    handlers: Arc<Vec<String>>,
    /// What is the matter with which handler.
    troubles: BTreeMap<String, Trouble>,
    /// What keeps any command from beginning.
    machine: Option<Trouble>,
}

struct Trouble {
    /// When it is looked at again; none while it is offered again and has yet to begin.
    next_look: Option<Instant>,
    pause: Duration,
}

impl Offer {
    /// Looks at every handler once, and says what cannot run.
    pub(super) fn new(registry: &Registry, folder: &Path, process: &str) -> Offer {
        let program = |name: &str| match registry.get(name) {
            Some(Handler::Command(command)) => command.command.first().cloned(),
            _ => None,
        };
        let all: BTreeMap<String, Option<String>> =
            registry.names().map(|name| (name.to_owned(), program(name))).collect();
        let handlers = Arc::new(all.keys().cloned().collect());
        let state = State { handlers, troubles: BTreeMap::new(), machine: None };
        let offer = Offer {
            all,
            folder: folder.to_owned(),
            process: process.to_owned(),
            state: Mutex::new(state),
        };
        for (name, program) in &offer.all {
            if let Some(reason) = program.as_deref().and_then(cannot_run) {
                offer.withdraw(name, NotBegun::Program(reason));
            }
        }
        if offer.all.values().any(Option::is_some)
            && let Err(reason) = working_directory(&offer.folder, process)
        {
            offer.withdraw("", NotBegun::Machine(reason));
        }
        offer
    }

    /// The handlers that are offered now.
    pub(crate) fn handlers(&self) -> Arc<Vec<String>> {
        self.lock().handlers.clone()
    }

    /// A task of this handler could not begin here.
    pub(super) fn withdraw(&self, handler: &str, reason: NotBegun) {
        let mut state = self.lock();
        let again = |trouble: Option<&Trouble>| {
            let pause = trouble.map_or(FIRST_PAUSE, |trouble| (trouble.pause * 2).min(LAST_PAUSE));
            Trouble { next_look: Some(Instant::now() + pause), pause }
        };
        match reason {
            NotBegun::TooLate => return,
            NotBegun::Program(reason) => {
                let last = state.troubles.get(handler);
                // Several threads may have tried at once.
                if last.is_none_or(|trouble| trouble.next_look.is_none()) {
                    log::error!("handler `{handler}` is not offered: {reason}");
                    let trouble = again(last);
                    state.troubles.insert(handler.to_owned(), trouble);
                }
            }
            NotBegun::Machine(reason) => {
                let last = state.machine.as_ref();
                if last.is_none_or(|trouble| trouble.next_look.is_none()) {
                    log::error!("no command can begin here, and none is taken: {reason}");
                    state.machine = Some(again(last));
                }
            }
        }
        self.choose(&mut state);
    }

    /// One has begun: what was the matter has passed.
    pub(super) fn has_begun(&self, handler: &str) {
        if self.all.get(handler).is_none_or(Option::is_none) {
            return;
        }
        let mut state = self.lock();
        // One that began before the trouble says nothing of it.
        if state.troubles.get(handler).is_some_and(|trouble| trouble.next_look.is_none()) {
            state.troubles.remove(handler);
        }
        state.machine.take_if(|trouble| trouble.next_look.is_none());
    }

    /// Looks whether what could not begin might now; true if something is offered again.
    pub(super) fn look(&self) -> bool {
        let (machine, handlers) = {
            let state = self.lock();
            let is_due =
                |trouble: &Trouble| trouble.next_look.is_some_and(|next| next <= Instant::now());
            let due = state.troubles.iter().filter(|(_, trouble)| is_due(trouble));
            let handlers: Vec<String> = due.map(|(handler, _)| handler.clone()).collect();
            (state.machine.as_ref().is_some_and(is_due), handlers)
        };
        // File systems may hang: nobody waits behind a lock meanwhile.
        let is_able = machine.then(|| working_directory(&self.folder, &self.process).is_ok());
        let can_run =
            |handler: &String| self.all[handler].as_deref().and_then(cannot_run).is_none();
        let handlers: Vec<(String, bool)> =
            handlers.into_iter().map(|handler| (handler.clone(), can_run(&handler))).collect();
        let mut state = self.lock();
        let mut is_better = false;
        if let (Some(is_able), Some(trouble)) = (is_able, &mut state.machine) {
            is_better |= trouble.seen(is_able);
            if is_able {
                log::info!("commands are taken again");
            }
        }
        for (handler, can_run) in handlers {
            if let Some(trouble) = state.troubles.get_mut(&handler) {
                is_better |= trouble.seen(can_run);
                if can_run {
                    log::info!("handler `{handler}` is offered again");
                }
            }
        }
        if is_better {
            self.choose(&mut state);
        }
        is_better
    }

    fn choose(&self, state: &mut State) {
        let is_out = |trouble: Option<&Trouble>| trouble.is_some_and(|t| t.next_look.is_some());
        let no_commands = is_out(state.machine.as_ref());
        let offered = self.all.iter().filter(|(name, program)| {
            program.is_none() || !no_commands && !is_out(state.troubles.get(*name))
        });
        state.handlers = Arc::new(offered.map(|(name, _)| name.clone()).collect());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trouble {
    /// It was looked at, and may be over; the same is returned.
    fn seen(&mut self, may_be_over: bool) -> bool {
        self.next_look = if may_be_over {
            None
        } else {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
            Some(Instant::now() + self.pause)
        };
        may_be_over
    }
}

/// Why this program cannot run here, as far as that can be seen without running it.
fn cannot_run(program: &str) -> Option<String> {
    if program.contains('{') {
        // The task says which.
        return None;
    }
    let is_executable = |path: &Path| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if program.contains('/') {
        let path = Path::new(program);
        if path.is_relative() || is_executable(path) {
            return None;
        }
        return Some(match path.exists() {
            true => format!("`{program}` cannot be run; make it executable"),
            false => {
                format!("`{program}` does not exist; install it, or mend the handler's command")
            }
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    let found = std::env::split_paths(&path).any(|folder| is_executable(&folder.join(program)));
    (!found).then(|| {
        format!("`{program}` is not in the PATH; install it, or mend the handler's command")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CommandHandler;

    fn offer(folder: &Path) -> Offer {
        let mut registry = Registry::new();
        for (name, program) in [("good", "true"), ("bad", "no-such-program"), ("any", "{x}")] {
            registry.register_command(name, CommandHandler::new([program]));
        }
        Offer::new(&registry, folder, "p")
    }

    fn commands(offer: &Offer) -> Vec<String> {
        offer.handlers().iter().filter(|name| !name.starts_with("millhand.")).cloned().collect()
    }

    #[test]
    fn what_cannot_run_is_not_offered_until_it_can() {
        let folder = tempfile::tempdir().expect("there is room");
        let offer = offer(folder.path());
        assert_eq!(commands(&offer), ["any", "good"]);
        offer.withdraw("any", NotBegun::Machine("no processes".to_owned()));
        assert_eq!(commands(&offer), Vec::<String>::new());
        assert!(!offer.look(), "too early");
        offer.lock().machine.as_mut().expect("it was withdrawn").next_look = Some(Instant::now());
        assert!(offer.look());
        assert_eq!(commands(&offer), ["any", "good"]);
        // The next pause is longer, until one begins.
        offer.withdraw("any", NotBegun::Machine("no processes".to_owned()));
        assert_eq!(
            offer.lock().machine.as_ref().map(|trouble| trouble.pause),
            Some(FIRST_PAUSE * 2)
        );
        assert_eq!(commands(&offer), Vec::<String>::new());
    }

    #[test]
    fn without_a_folder_for_working_directories_no_command_is_offered() {
        let folder = tempfile::tempdir().expect("there is room");
        let offer = offer(&folder.path().join("gone"));
        assert_eq!(commands(&offer), Vec::<String>::new());
        assert!(!offer.handlers().is_empty(), "functions need none");
    }
}
