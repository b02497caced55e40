//! A model of a table and of what `next_task` and `dispatch` do in it, one step
//! at a time, around real crews: whatever the order of the steps, no task that
//! could run is left beside an idle worker. There is no safety poll here, and
//! no time: whoever waits for an event waits for ever.
//!
//! `MILLHAND_TEST_SEED` sets what is drawn first; a failure names its seed.

use std::collections::HashMap;
use std::time::Instant;

use super::*;
use crate::worker::inbox::Inbox;

const N_RUNS: u64 = 400;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
    Final,
}

/// Its place in the table is its position.
#[derive(Debug, Clone, Copy)]
struct Task {
    /// Those that it needs, exclusively, one a bit.
    resources: u8,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Lock {
    Task(usize),
    Resource(u8),
}

struct Worker {
    crew: usize,
    /// Within the crew.
    index: usize,
    inbox: Inbox,
    step: Step,
    /// What it ran and has not stored yet.
    ended: Option<usize>,
}

/// What a worker does next, in the order of `thread.rs` and `next_task`.
#[derive(Debug, Clone)]
enum Step {
    /// Its connection was lost: what it owned is settled, and then it joins.
    Settle,
    Settling {
        rings: bool,
    },
    Join,
    Begin,
    Prepare(Turn),
    Look(Turn),
    Claim(Turn, Vec<State>),
    Ring(Turn),
    Commit(Turn),
    LetGo(Turn),
    Answer(Turn),
    Run(usize),
    Wait {
        for_ever: bool,
    },
}

/// One call of `next_task`.
#[derive(Debug, Clone)]
struct Turn {
    plan: Plan,
    found: Found,
    task: Option<usize>,
    look_further: bool,
    others_end: bool,
    deep: bool,
    /// A NOTIFY goes out with the commit.
    rings: bool,
}

/// A transaction of somebody who is no worker.
#[derive(Debug, Clone, Copy)]
enum Dispatch {
    Inserted(Task),
    Rung(Task, bool),
    Committed,
}

struct World {
    random: fastrand::Rng,
    crews: Vec<Crew>,
    workers: Vec<Worker>,
    /// The worker whose steps take longest, so that much happens between them.
    slow: usize,
    tasks: Vec<Task>,
    dispatches: Vec<Dispatch>,
    to_dispatch: usize,
    to_fail: usize,
    /// How often a session holds it, by lock and worker.
    locks: HashMap<(Lock, usize), usize>,
    /// Who holds the bell, and who is in a transaction that others must not
    /// overlook; the dispatches are, too.
    bells: Vec<usize>,
    dispatching: Vec<usize>,
    owners: HashMap<usize, usize>,
    /// Notifications that crews have not heard yet.
    notifications: Vec<usize>,
    history: Vec<String>,
}

/// What the dice may choose next.
#[derive(Debug, Clone, Copy)]
enum Choice {
    Worker(usize),
    Dispatch(usize),
    Notification(usize),
    NewDispatch,
    EndTask(usize),
    Fail(usize),
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = fastrand::Rng::with_seed(seed);
        let n_crews = random.usize(1..=2);
        let (mut crews, mut workers) = (Vec::new(), Vec::new());
        for crew in 0..n_crews {
            let most_turns = random.usize(2..=MOST_TURNS);
            // Sometimes more than the turns that may be under way.
            let n = if random.u8(..4) == 0 { random.usize(9..=12) } else { random.usize(1..=4) };
            let mut mailboxes = Vec::new();
            for index in 0..n {
                let (mailbox, inbox) = Inbox::new().unwrap();
                mailboxes.push(mailbox);
                workers.push(Worker { crew, index, inbox, step: Step::Join, ended: None });
            }
            crews.push(Crew::with_most_turns(mailboxes, most_turns));
        }
        let slow = random.usize(..workers.len());
        let to_dispatch = random.usize(1..=20);
        let to_fail = if random.bool() { random.usize(0..=3) } else { 0 };
        World {
            random,
            crews,
            workers,
            slow,
            tasks: Vec::new(),
            dispatches: Vec::new(),
            to_dispatch,
            to_fail,
            locks: HashMap::new(),
            bells: Vec::new(),
            dispatching: Vec::new(),
            owners: HashMap::new(),
            notifications: Vec::new(),
            history: Vec::new(),
        }
    }

    fn run(&mut self) {
        loop {
            for worker in &mut self.workers {
                if matches!(worker.step, Step::Wait { for_ever: true })
                    && worker.inbox.wait_until(Instant::now())
                {
                    worker.step = Step::Wait { for_ever: false };
                }
            }
            // What happens by itself, and what is for others to begin.
            let mut choices: Vec<Choice> = (0..self.workers.len())
                .filter(|worker| {
                    let step = &self.workers[*worker].step;
                    !matches!(step, Step::Run(_) | Step::Wait { for_ever: true })
                })
                .map(Choice::Worker)
                .collect();
            choices.extend((0..self.dispatches.len()).map(Choice::Dispatch));
            choices.extend((0..self.notifications.len()).map(Choice::Notification));
            let is_quiet = choices.is_empty();
            if is_quiet {
                self.check();
            }
            if is_quiet || self.random.u8(..8) == 0 {
                if self.to_dispatch > 0 {
                    choices.push(Choice::NewDispatch);
                }
                for worker in 0..self.workers.len() {
                    if matches!(self.workers[worker].step, Step::Run(_)) {
                        choices.push(Choice::EndTask(worker));
                    }
                    if self.to_fail > 0 {
                        choices.push(Choice::Fail(worker));
                    }
                }
            }
            let n_left = self.tasks.iter().filter(|task| task.state != State::Final).count();
            if is_quiet && n_left + self.to_dispatch == 0 {
                return;
            }
            let mut choice = self.random.choice(&choices).copied().expect("a running task can end");
            if matches!(choice, Choice::Worker(worker) if worker == self.slow)
                && self.random.u8(..16) > 0
            {
                choice = self.random.choice(&choices).copied().unwrap_or(choice);
            }
            match choice {
                Choice::Worker(worker) => self.step(worker),
                Choice::Dispatch(dispatch) => self.step_dispatch(dispatch),
                Choice::Notification(notification) => {
                    let crew = self.notifications.swap_remove(notification);
                    self.note(format!("crew {crew} hears a notification"));
                    self.crews[crew].ring();
                }
                Choice::NewDispatch => {
                    self.to_dispatch -= 1;
                    let resources = self.random.u8(..16) & self.random.u8(..16);
                    self.dispatches
                        .push(Dispatch::Inserted(Task { resources, state: State::Waiting }));
                    self.note(format!("a dispatch begins, of a task on {resources:04b}"));
                }
                Choice::EndTask(worker) => {
                    if let Step::Run(task) = self.workers[worker].step {
                        self.note(format!("worker {worker} has run {task}"));
                        self.workers[worker].ended = Some(task);
                        self.workers[worker].step = Step::Begin;
                    }
                }
                Choice::Fail(worker) => self.fail(worker),
            }
        }
    }

    /// Nothing happens any more unless somebody dispatches or ends a task.
    fn check(&self) {
        let runnable = (0..self.tasks.len()).find(|task| self.is_free(*task, &self.states()));
        let idle = self.workers.iter().position(|w| matches!(w.step, Step::Wait { .. }));
        if let (Some(task), Some(worker)) = (runnable, idle) {
            let steps: Vec<_> = self.workers.iter().map(|worker| &worker.step).collect();
            panic!(
                "task {task} is left beside worker {worker}\n{}\n{steps:?}\n{:?}",
                self.history.join("\n"),
                self.tasks
            );
        }
    }

    fn states(&self) -> Vec<State> {
        self.tasks.iter().map(|task| task.state).collect()
    }

    /// Whether a snapshot shows this task as waiting for nobody.
    fn is_free(&self, task: usize, snapshot: &[State]) -> bool {
        let resources = self.tasks[task].resources;
        snapshot[task] == State::Waiting
            && (0..task).all(|earlier| {
                self.tasks[earlier].resources & resources == 0 || snapshot[earlier] == State::Final
            })
    }

    fn locks_of(&self, task: usize) -> Vec<Lock> {
        let resources = self.tasks[task].resources;
        (0..4)
            .filter(|bit| resources & 1 << bit != 0)
            .map(Lock::Resource)
            .chain([Lock::Task(task)])
            .collect()
    }

    /// All or none, as `try_locks`.
    fn try_locks(&mut self, worker: usize, task: usize) -> bool {
        let wanted = self.locks_of(task);
        if self.locks.keys().any(|(lock, holder)| wanted.contains(lock) && *holder != worker) {
            return false;
        }
        for lock in wanted {
            *self.locks.entry((lock, worker)).or_default() += 1;
        }
        true
    }

    fn unlock(&mut self, worker: usize, task: usize) {
        for lock in self.locks_of(task) {
            // They may be gone already, with a turn that failed.
            if let Some(n) = self.locks.get_mut(&(lock, worker)) {
                *n -= 1;
                if *n == 0 {
                    self.locks.remove(&(lock, worker));
                }
            }
        }
    }

    fn step(&mut self, worker: usize) {
        let step = self.workers[worker].step.clone();
        self.note(format!("worker {worker}: {step:?}"));
        let (crew, index) = (self.workers[worker].crew, self.workers[worker].index);
        let ended = self.workers[worker].ended;
        let next = match step {
            Step::Settle => {
                self.dispatching.push(worker);
                let rings = self.owners.values().any(|owner| *owner == worker) && self.bell_hangs();
                Step::Settling { rings }
            }
            Step::Settling { rings } => {
                for task in 0..self.tasks.len() {
                    if self.owners.get(&task) == Some(&worker) {
                        self.owners.remove(&task);
                        // Only a task whose handler had begun has failed.
                        let begun = ended == Some(task);
                        self.tasks[task].state = if begun { State::Final } else { State::Waiting };
                    }
                }
                self.workers[worker].ended = None;
                self.dispatching.retain(|holder| *holder != worker);
                self.notify(rings);
                Step::Join
            }
            Step::Join => self.rest(self.crews[crew].join(index)),
            Step::Begin => {
                let _ = self.workers[worker].inbox.is_draining();
                let plan = self.crews[crew].begin_turn(index, ended.is_some());
                Step::Prepare(Turn {
                    plan,
                    found: Found::default(),
                    task: None,
                    look_further: false,
                    others_end: false,
                    deep: false,
                    rings: false,
                })
            }
            Step::Prepare(mut turn) => {
                if turn.plan.take_bell_down {
                    self.bells.retain(|holder| *holder != worker);
                }
                if ended.is_some() {
                    turn.others_end = self.is_anybody_dispatching();
                    self.dispatching.push(worker);
                }
                turn.look_further = turn.plan.idle_siblings || self.bell_hangs();
                Step::Look(turn)
            }
            Step::Look(turn) => {
                let mut snapshot = self.states();
                if let Some(ended) = ended {
                    snapshot[ended] = State::Final;
                }
                Step::Claim(turn, snapshot)
            }
            Step::Claim(turn, snapshot) => self.claim(worker, turn, &snapshot),
            Step::Ring(mut turn) => {
                let causes = turn.task.is_some() || ended.is_some();
                let tells = turn.found.more || turn.found.inconclusive && turn.others_end;
                turn.rings = tells && !turn.plan.idle_siblings && causes && self.bell_hangs();
                Step::Commit(turn)
            }
            Step::Commit(turn) => {
                if let Some(ended) = ended {
                    self.tasks[ended].state = State::Final;
                    self.owners.remove(&ended);
                }
                if let Some(task) = turn.task {
                    self.tasks[task].state = State::Running;
                    self.owners.insert(task, worker);
                }
                self.notify(turn.rings);
                Step::LetGo(turn)
            }
            Step::LetGo(turn) => {
                if let Some(ended) = ended {
                    self.unlock(worker, ended);
                }
                self.dispatching.retain(|holder| *holder != worker);
                Step::Answer(turn)
            }
            Step::Answer(turn) => {
                self.workers[worker].ended = None;
                let rest = self.crews[crew].end_turn(index, turn.plan, turn.found);
                match turn.task {
                    Some(task) => Step::Run(task),
                    None => self.rest(rest),
                }
            }
            Step::Wait { .. } => Step::Begin,
            Step::Run(_) => step,
        };
        self.workers[worker].step = next;
    }

    fn rest(&self, rest: Rest) -> Step {
        match rest {
            Rest::Again => Step::Begin,
            Rest::Wait(time) => Step::Wait { for_ever: time.is_none() },
        }
    }

    /// The look of `next_task`, and what follows it.
    fn claim(&mut self, worker: usize, mut turn: Turn, snapshot: &[State]) -> Step {
        turn.found.more = false;
        let freed = self.workers[worker].ended.map(|ended| self.tasks[ended].resources);
        for task in 0..snapshot.len() {
            if !self.is_free(task, snapshot) {
                let waits = snapshot[task] == State::Waiting;
                let overlaps = freed.is_some_and(|freed| self.tasks[task].resources & freed != 0);
                if turn.others_end && turn.look_further && waits && overlaps {
                    turn.found.inconclusive = true;
                }
                continue;
            }
            if turn.task.is_some() {
                turn.found.more = true;
                turn.found.inconclusive |= turn.others_end;
                break;
            }
            // Its row may be in the hands of a claim that is being committed:
            // that one has the locks then.
            if !self.try_locks(worker, task) {
                turn.found.inconclusive = true;
            } else if self.tasks[task].state != State::Waiting {
                self.unlock(worker, task);
                turn.found.inconclusive = true;
            } else {
                turn.task = Some(task);
                // What the ended task has freed is taken again.
                let takes_all = freed.is_some_and(|freed| freed & !self.tasks[task].resources == 0);
                if !turn.look_further || takes_all {
                    break;
                }
            }
        }
        turn.found.task = turn.task.is_some();
        if turn.deep && turn.found.task {
            self.bells.retain(|holder| *holder != worker);
            turn.found.bell_hung = false;
        } else if turn.plan.hang_bell && !turn.deep && !turn.found.task {
            self.bells.push(worker);
            turn.deep = true;
            turn.found.bell_hung = true;
            turn.found.inconclusive = self.is_anybody_dispatching();
            return Step::Look(turn);
        }
        Step::Ring(turn)
    }

    fn step_dispatch(&mut self, dispatch: usize) {
        self.note(format!("a dispatch: {:?}", self.dispatches[dispatch]));
        self.dispatches[dispatch] = match self.dispatches[dispatch] {
            Dispatch::Inserted(task) => Dispatch::Rung(task, self.bell_hangs()),
            Dispatch::Rung(task, rings) => {
                self.tasks.push(task);
                self.notify(rings);
                Dispatch::Committed
            }
            Dispatch::Committed => {
                self.dispatches.swap_remove(dispatch);
                return;
            }
        };
    }

    /// The worker's connection is lost, or, if it lives on, its turn fails.
    fn fail(&mut self, worker: usize) {
        let (crew, index) = (self.workers[worker].crew, self.workers[worker].index);
        let (in_turn, committed) = match &self.workers[worker].step {
            Step::Settle | Step::Settling { .. } | Step::Join => return,
            Step::LetGo(_) | Step::Answer(_) => (true, true),
            Step::Begin | Step::Run(_) | Step::Wait { .. } => (false, false),
            _ => (true, false),
        };
        self.to_fail -= 1;
        self.locks.retain(|(_, holder), _| *holder != worker);
        self.bells.retain(|holder| *holder != worker);
        self.dispatching.retain(|holder| *holder != worker);
        if in_turn {
            self.crews[crew].drop_out(index);
        }
        if in_turn && !committed && self.random.bool() {
            self.note(format!("worker {worker}: its turn fails"));
            self.workers[worker].step = Step::Wait { for_ever: false };
            return;
        }
        self.note(format!("worker {worker}: its connection is lost"));
        if let Step::Run(task) = self.workers[worker].step {
            self.workers[worker].ended = Some(task);
        }
        self.crews[crew].drop_out(index);
        self.workers[worker].step = Step::Settle;
    }

    /// Or ending or settling a task.
    fn is_anybody_dispatching(&self) -> bool {
        !self.dispatching.is_empty() || !self.dispatches.is_empty()
    }

    fn bell_hangs(&self) -> bool {
        !self.bells.is_empty()
    }

    fn notify(&mut self, rings: bool) {
        if rings {
            self.notifications.extend(0..self.crews.len());
        }
    }

    fn note(&mut self, what: String) {
        self.history.push(what);
    }
}

#[test]
fn no_free_task_is_left_beside_an_idle_worker() {
    let first = std::env::var("MILLHAND_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let first = first.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    for seed in first..first + N_RUNS {
        // Shown only if the test fails; the last one is meant.
        println!("MILLHAND_TEST_SEED={seed}");
        World::new(seed).run();
    }
}
