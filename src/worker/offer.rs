//! Which handlers a process offers: those that it can run at the moment.
//!
//! A machine on which a program is missing, or that is out of room or processes, is no
//! reason for a task to fail: others may be able to run it. What could not begin here
//! goes back to its place, and this process stops asking for its like. It asks again when
//! the program and the working directory look right and a while has passed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::{NotBegun, Plan};
use super::directories::Directories;
use crate::registry::Function;

/// Pauses before a handler is offered again: first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// A handler as this process runs it.
#[derive(Clone)]
pub(crate) enum Runnable {
    Function(Arc<Function>),
    Command(Arc<Plan>),
}

/// The handlers of a process, by the name of the tasks they run.
pub(crate) type Runnables = BTreeMap<String, Runnable>;

pub(crate) struct Offer {
    directories: Arc<Directories>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    all: Runnables,
    /// The names of those that are offered.
    handlers: Arc<Vec<String>>,
    /// What is the matter with which handler.
    troubles: BTreeMap<String, Trouble>,
    /// What keeps any command from beginning.
    machine: Option<Trouble>,
}

/// In what handlers differ from those before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
    pub(crate) changed: Vec<String>,
}

struct Trouble {
    /// When it is looked at again; none while it is offered again and has yet to begin.
    next_look: Option<Instant>,
    pause: Duration,
}

impl Offer {
    /// Looks at every handler once, and says what cannot run.
    pub(super) fn new(all: Runnables, directories: Arc<Directories>) -> Offer {
        let offer = Offer { directories, state: Mutex::default() };
        offer.replace(all);
        offer
    }

    /// From now on these are the handlers. What runs is not touched; each that is new or has
    /// changed is looked at.
    pub(super) fn replace(&self, all: Runnables) -> Changes {
        let before = self.lock().all.clone();
        let mut changes = Changes::default();
        for name in before.keys().filter(|name| !all.contains_key(*name)) {
            changes.removed.push(name.clone());
        }
        for (name, runnable) in &all {
            match before.get(name) {
                None => changes.added.push(name.clone()),
                Some(before) if !before.is_same(runnable) => changes.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        // File systems may hang: nobody waits behind a lock meanwhile.
        let new: Vec<&String> = changes.added.iter().chain(&changes.changed).collect();
        let look =
            |name: &&String| Some(((*name).clone(), all[*name].plan().and_then(cannot_run)?));
        let broken: Vec<(String, String)> = new.iter().filter_map(look).collect();
        let has_commands = |all: &Runnables| all.values().any(|runnable| runnable.plan().is_some());
        let no_room = (has_commands(&all) && !has_commands(&before))
            .then(|| self.directories.fresh().err())
            .flatten();
        {
            let mut state = self.lock();
            state.troubles.retain(|name, _| all.contains_key(name) && !new.contains(&name));
            state.all = all;
            choose(&mut state);
        }
        for (name, reason) in broken {
            self.withdraw(&name, NotBegun::Program(reason));
        }
        if let Some(reason) = no_room {
            self.withdraw("", NotBegun::Machine(reason));
        }
        changes
    }

    /// What runs the tasks of this name.
    pub(crate) fn get(&self, name: &str) -> Option<Runnable> {
        self.lock().all.get(name).cloned()
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
            NotBegun::TooLate | NotBegun::Gone => return,
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
        choose(&mut state);
    }

    /// One has begun: what was the matter has passed.
    pub(super) fn has_begun(&self, handler: &str) {
        let mut state = self.lock();
        if state.all.get(handler).is_none_or(|runnable| runnable.plan().is_none()) {
            return;
        }
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
            let handlers: Vec<(String, Runnable)> = due
                .filter_map(|(name, _)| Some((name.clone(), state.all.get(name)?.clone())))
                .collect();
            (state.machine.as_ref().is_some_and(is_due), handlers)
        };
        // File systems may hang: nobody waits behind a lock meanwhile.
        let is_able = machine.then(|| self.directories.fresh().is_ok());
        let can_run = |runnable: Runnable| runnable.plan().and_then(cannot_run).is_none();
        let handlers: Vec<(String, bool)> =
            handlers.into_iter().map(|(name, runnable)| (name, can_run(runnable))).collect();
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
            choose(&mut state);
        }
        is_better
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes what is offered.
fn choose(state: &mut State) {
    let is_out = |trouble: Option<&Trouble>| trouble.is_some_and(|t| t.next_look.is_some());
    let no_commands = is_out(state.machine.as_ref());
    let offered = state.all.iter().filter(|(name, runnable)| {
        runnable.plan().is_none() || !no_commands && !is_out(state.troubles.get(*name))
    });
    state.handlers = Arc::new(offered.map(|(name, _)| name.clone()).collect());
}

impl Runnable {
    fn plan(&self) -> Option<&Plan> {
        match self {
            Runnable::Function(_) => None,
            Runnable::Command(plan) => Some(plan),
        }
    }

    fn is_same(&self, other: &Runnable) -> bool {
        match (self, other) {
            (Runnable::Function(one), Runnable::Function(other)) => Arc::ptr_eq(one, other),
            (Runnable::Command(one), Runnable::Command(other)) => one == other,
            _ => false,
        }
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

/// Why this command cannot run here, as far as that can be seen without running it.
pub(super) fn cannot_run(plan: &Plan) -> Option<String> {
    if let Some(directory) = &plan.handler.directory
        && !directory.is_dir()
    {
        let shown = directory.display();
        return Some(format!("its directory {shown} does not exist; make it, or mend `directory`"));
    }
    let program = plan.program();
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
    let path = plan.path();
    let found =
        std::env::split_paths(OsStr::new(&path)).any(|folder| is_executable(&folder.join(program)));
    (!found).then(|| {
        format!("`{program}` is not in the PATH; install it, or mend the handler's command")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CommandHandler;
    use crate::registry::{Handler, Registry};
    use crate::worker::command::Reach;

    fn plans(programs: &[(&str, &str)]) -> Runnables {
        let plan = |name: &str, program: &str| {
            Plan::new(name, &CommandHandler::new([program]), &Reach::default())
                .expect("it is sound")
        };
        let runnable = |name, program| Runnable::Command(Arc::new(plan(name, program)));
        programs
            .iter()
            .map(|(name, program)| ((*name).to_owned(), runnable(name, program)))
            .collect()
    }

    fn offer(folder: &Path) -> Offer {
        let directories = Arc::new(Directories::new(folder.to_owned(), "p"));
        let mut all = plans(&[("good", "true"), ("bad", "no-such-program"), ("any", "{x}")]);
        for (name, handler) in Registry::new().iter() {
            if let Handler::Function(function) = handler {
                all.insert(name.clone(), Runnable::Function(function.clone()));
            }
        }
        Offer::new(all, directories)
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
    fn other_handlers_take_their_place() {
        let folder = tempfile::tempdir().expect("there is room");
        let offer = offer(folder.path());
        let changes =
            offer.replace(plans(&[("good", "sh"), ("bad", "no-such-program"), ("new", "true")]));
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(changes.added, names(&["new"]));
        assert_eq!((changes.removed[0].as_str(), changes.removed.len()), ("any", 5));
        assert_eq!(changes.changed, names(&["good"]));
        assert_eq!(commands(&offer), ["good", "new"]);
        assert!(offer.get("any").is_none());
        let same = offer.lock().all.clone();
        assert_eq!(offer.replace(same), Changes::default());
        assert_eq!(commands(&offer), ["good", "new"], "what cannot run still cannot");
    }

    #[test]
    fn without_a_folder_for_working_directories_no_command_is_offered() {
        let folder = tempfile::tempdir().expect("there is room");
        let offer = offer(&folder.path().join("gone"));
        assert_eq!(commands(&offer), Vec::<String>::new());
        assert!(!offer.handlers().is_empty(), "functions need none");
    }
}
