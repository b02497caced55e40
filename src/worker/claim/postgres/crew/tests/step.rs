//! What a worker does, one step after another.

use super::*;

/// What a worker does next, in the order of `thread.rs` and `next_task`.
#[derive(Debug, Clone)]
pub(super) enum Step {
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
pub(super) struct Turn {
    plan: Plan,
    found: Found,
    task: Option<usize>,
    look_further: bool,
    others_end: bool,
    deep: bool,
    /// A NOTIFY goes out with the commit.
    rings: bool,
}

impl World {
    pub(super) fn step(&mut self, worker: usize) {
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

    /// The worker's connection is lost, or, if it lives on, its turn fails.
    pub(super) fn fail(&mut self, worker: usize) {
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
}
