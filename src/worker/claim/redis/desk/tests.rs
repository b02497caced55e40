//! The desk in random orders of the steps, without a safety poll: two processes work
//! at one model of the table, and a wake-up that is lost shows as a task that stays.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::*;
use crate::task::TaskId;
use crate::worker::args::Args;
use crate::worker::claim::{Claimed, Outcome};

/// Long enough for a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);
const N_PROCESSES: usize = 2;
const N_THREADS: usize = 3;
const N_TASKS: usize = 30;
const N_RESOURCES: u64 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Waiting,
    Running,
    Final,
}

/// A task is known by its place; it needs its resources exclusively.
#[derive(Clone)]
struct Row {
    stage: Stage,
    needs: Vec<u64>,
}

struct Model {
    table: Mutex<Vec<Row>>,
    desks: Vec<Desk>,
    random: AtomicU64,
}

impl Model {
    fn random(&self, n: u64) -> u64 {
        // Knuth's multiplier for linear congruential generators (MMIX).
        let step = |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let next = |seed| Some(step(seed));
        let seed = self.random.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        (step(seed.unwrap()) >> 33) % n
    }

    /// Lets others go on, for shorter or longer.
    fn pause(&self) {
        match self.random(4) {
            0 => {}
            1 => std::thread::sleep(Duration::from_micros(self.random(300))),
            _ => std::thread::yield_now(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Vec<Row>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_all(&self) {
        for desk in &self.desks {
            self.pause();
            desk.ring();
        }
    }
}

/// Those that may start if these have ended.
fn free(table: &[Row], ending: &[usize]) -> Vec<usize> {
    let mut reserved = HashSet::new();
    let mut free = Vec::new();
    for (place, row) in table.iter().enumerate() {
        if row.stage == Stage::Final || ending.contains(&place) {
            continue;
        }
        if row.stage == Stage::Waiting && row.needs.iter().all(|name| !reserved.contains(name)) {
            free.push(place);
        }
        reserved.extend(row.needs.iter().copied());
    }
    free
}

/// Takes turns as a leader of type `redis` does, with a table that is the model's.
struct ModelLead<'a> {
    model: &'a Model,
    process: usize,
    panics: bool,
    panics_late: bool,
}

impl Lead for ModelLead<'_> {
    fn take_turn(&mut self, joint: &Joint) -> Done {
        assert!(!self.panics, "as it should");
        let ending: Vec<usize> = joint.ends.iter().map(|end| end.ended.id.0 as usize).collect();
        let seen = self.model.table().clone();
        self.model.pause();
        let chosen = free(&seen, &ending);
        let mut done = Done { conclusive: true, ..Done::default() };
        let hands: Vec<&Hand> = joint.hands().collect();
        {
            let mut table = self.model.table();
            for place in &ending {
                assert_eq!(table[*place].stage, Stage::Running);
                table[*place].stage = Stage::Final;
                done.fates.push(Fate::Stored);
            }
            for (hand, place) in hands.iter().zip(&chosen) {
                if table[*place].stage != Stage::Waiting {
                    // The other process was faster: nobody looks again for that alone.
                    continue;
                }
                assert!(free(&table, &[]).contains(place), "task {place} starts out of order");
                table[*place].stage = Stage::Running;
                let task = Claimed {
                    id: TaskId(*place as i64),
                    name: String::new(),
                    args: Args::new(None),
                    fence: 1,
                    attempt: 1,
                    exclusive: Vec::new(),
                    shared: Vec::new(),
                };
                done.started.push((hand.index, Answer::Turn(Turn::Task(task))));
            }
        }
        self.model.pause();
        let all_have_one = done.started.len() == hands.len();
        done.more = all_have_one && chosen.len() > hands.len();
        done.unfinished = done.started.len() < hands.len().min(chosen.len());
        if all_have_one && (done.more || !joint.ends.is_empty()) {
            for (process, desk) in self.model.desks.iter().enumerate() {
                if process != self.process {
                    desk.ring();
                }
            }
        }
        done
    }

    fn tidy_up(&mut self) {
        assert!(!self.panics_late, "as it should");
        self.model.pause();
    }
}

fn hand(process: usize, index: usize) -> Hand {
    Hand { index, worker: (process * N_THREADS + index) as i64, owner: String::new() }
}

/// One worker of the model, until it is told to drain.
fn work(model: &Model, process: usize, index: usize, inbox: &Inbox) {
    let hand = hand(process, index);
    let mut lead = ModelLead { model, process, panics: false, panics_late: false };
    let mut ended: Option<Ended> = None;
    loop {
        let wanted = !inbox.is_draining();
        if !wanted && ended.is_none() {
            return;
        }
        let end = ended.take();
        let end = end.as_ref().map(|ended| (ended, wanted));
        match model.desks[process].attend(&hand, inbox, end, &mut lead, &mut || {}) {
            Answer::Turn(Turn::Task(task)) => {
                model.pause();
                let outcome = Outcome::completed(RawValue::NULL.to_owned());
                ended = Some(Ended { id: task.id, outcome });
            }
            Answer::Turn(Turn::Nothing) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn inboxes() -> (Vec<Mailbox>, Vec<Inbox>) {
    (0..N_THREADS).map(|_| Inbox::new().unwrap()).unzip()
}

fn run(seed: u64) {
    let (mailboxes, inboxes): (Vec<_>, Vec<_>) = (0..N_PROCESSES).map(|_| inboxes()).unzip();
    let model = Model {
        table: Mutex::default(),
        desks: mailboxes.iter().cloned().map(Desk::new).collect(),
        random: AtomicU64::new(seed),
    };
    let model = &model;
    std::thread::scope(|scope| {
        for (process, inboxes) in inboxes.into_iter().enumerate() {
            for (index, inbox) in inboxes.into_iter().enumerate() {
                scope.spawn(move || work(model, process, index, &inbox));
            }
        }
        for _ in 0..N_TASKS {
            let needs = (0..1 + model.random(2)).map(|_| model.random(N_RESOURCES)).collect();
            model.table().push(Row { stage: Stage::Waiting, needs });
            model.ring_all();
        }
        let deadline = Instant::now() + SOON;
        let stages = || model.table().iter().map(|row| row.stage).collect::<Vec<_>>();
        let is_final = |stage: &Stage| *stage == Stage::Final;
        while !stages().iter().all(is_final) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let stages = stages();
        for mailbox in mailboxes.iter().flatten() {
            mailbox.send(Event::Drain);
        }
        assert!(stages.iter().all(is_final), "seed {seed}: nobody looks any more: {stages:?}");
    });
}

#[test]
fn no_wake_up_is_lost_whatever_the_order() {
    for seed in 0..300 {
        run(seed);
    }
}

#[test]
fn nobody_waits_for_a_leader_that_panicked() {
    let (mailboxes, inboxes) = inboxes();
    let model = Model {
        table: Mutex::new(vec![Row { stage: Stage::Running, needs: Vec::new() }]),
        desks: vec![Desk::new(mailboxes)],
        random: AtomicU64::new(1),
    };
    let (model, desk) = (&model, &model.desks[0]);
    let mut inboxes = inboxes.into_iter();
    let (first, second) = (inboxes.next().unwrap(), inboxes.next().unwrap());
    std::thread::scope(|scope| {
        let idle = scope.spawn(move || {
            let mut lead = ModelLead { model, process: 0, panics: false, panics_late: false };
            desk.attend(&hand(0, 0), &first, None, &mut lead, &mut || {})
        });
        while desk.lock().idle.is_empty() || desk.lock().under_way {
            std::thread::yield_now();
        }
        let leader = scope.spawn(move || {
            let mut lead = ModelLead { model, process: 0, panics: true, panics_late: false };
            let ended =
                Ended { id: TaskId(0), outcome: Outcome::completed(RawValue::NULL.to_owned()) };
            desk.attend(&hand(0, 1), &second, Some((&ended, true)), &mut lead, &mut || {});
        });
        assert!(leader.join().is_err());
        match idle.join().unwrap() {
            Answer::Failed(failure) => assert!(failure.in_doubt, "{failure:?}"),
            other => panic!("{other:?}"),
        }
    });
    assert!(!desk.lock().under_way, "somebody else leads the next turn");
}

#[test]
fn a_leader_that_panics_at_last_leaves_the_lead_to_others() {
    let (mailboxes, _inboxes) = inboxes();
    let model = Model {
        table: Mutex::default(),
        desks: vec![Desk::new(mailboxes)],
        random: AtomicU64::new(1),
    };
    let (model, desk) = (&model, &model.desks[0]);
    std::thread::scope(|scope| {
        let leader = scope.spawn(move || {
            let mut lead = ModelLead { model, process: 0, panics: false, panics_late: true };
            let (_mailbox, inbox) = Inbox::new().unwrap();
            desk.attend(&hand(0, 1), &inbox, None, &mut lead, &mut || {});
        });
        assert!(leader.join().is_err());
    });
    assert!(!desk.lock().under_way);
}
