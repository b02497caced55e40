//! A model of a table and of what `next_task` and `dispatch` do in it, one step
//! at a time, around real crews: whatever the order of the steps, no task that
//! could run is left beside an idle worker. There is no safety poll here, and
//! no time: whoever waits for an event waits for ever.
//!
//! `MILLHAND_TEST_SEED` sets what is drawn first; a failure names its seed.

mod step;
mod table;

use std::collections::HashMap;
use std::time::Instant;

use self::step::Step;
use self::table::{Lock, State, Task};
use super::*;
use crate::worker::inbox::Inbox;

const N_RUNS: u64 = 400;

struct Worker {
    crew: usize,
    /// Within the crew.
    index: usize,
    inbox: Inbox,
    step: Step,
    /// What it ran and has not stored yet.
    ended: Option<usize>,
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
