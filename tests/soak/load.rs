//! Those who dispatch and cancel, at random.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fastrand::Rng;
use millhand::{Error, NewTask, TaskId, client, db};
use postgres::Client;
use serde_json::json;

use crate::handler::{Left, Order};
use crate::site::Site;
use crate::support::process::{Workshop, run};

/// Dispatchers wait while more tasks are unfinished: so the queue is neither empty nor
/// without an end.
const MOST_UNFINISHED: i64 = 800;

/// How many resources there are; some are in much demand.
const N_RESOURCES: u32 = 100;

/// The last of these may be canceled.
const N_RECENT: usize = 300;

const N_DISPATCHERS: u64 = 4;

/// What those who dispatch have in common.
#[derive(Debug)]
pub(crate) struct Load {
    url: String,
    folder: PathBuf,
    workshop: Arc<Workshop>,
    worker_type: &'static str,
    /// Whether commands leave somebody behind.
    leaves: bool,
    /// Those of which somebody was told that they are there.
    ids: Mutex<Vec<TaskId>>,
    is_over: AtomicBool,
}

impl Load {
    pub(crate) fn new(site: &Site, leaves: bool) -> Arc<Load> {
        Arc::new(Load {
            url: site.database.url(),
            folder: site.folder.path().to_owned(),
            workshop: site.workshop.clone(),
            worker_type: site.worker_type,
            leaves,
            ids: Mutex::default(),
            is_over: AtomicBool::new(false),
        })
    }

    /// Starts those who dispatch and one who cancels.
    pub(crate) fn start(self: &Arc<Load>, seed: u64) -> Vec<JoinHandle<()>> {
        let someone = |number: u64| {
            let (load, rng) = (self.clone(), Rng::with_seed(seed.wrapping_add(number)));
            thread::spawn(move || load.work(rng, number < N_DISPATCHERS))
        };
        (0..=N_DISPATCHERS).map(someone).collect()
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn ids(&self) -> MutexGuard<'_, Vec<TaskId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on in spite of all errors, on a new connection after each.
    fn work(&self, mut rng: Rng, dispatches: bool) {
        while !self.is_over.load(Ordering::Relaxed) {
            if let Ok(mut client) = db::connect(&self.url, "soak") {
                while !self.is_over.load(Ordering::Relaxed) {
                    let done = if dispatches {
                        self.dispatch_some(&mut client, &mut rng)
                    } else {
                        self.cancel_one(&mut client, &mut rng)
                    };
                    if done.is_err() {
                        break;
                    }
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn dispatch_some(&self, client: &mut Client, rng: &mut Rng) -> Result<(), Error> {
        let fail = |error| Error::postgres("could not dispatch", error);
        let query = "SELECT count(*) FROM millhand.task
                      WHERE state IN ('waiting', 'running', 'canceling')";
        let n_unfinished: i64 = client.query_one(query, &[]).map_err(fail)?.get(0);
        if n_unfinished > MOST_UNFINISHED {
            thread::sleep(Duration::from_millis(50));
            return Ok(());
        }
        // Workers should have something to do most of the time.
        let is_short = n_unfinished < MOST_UNFINISHED / 2 && rng.bool();
        let n = if is_short { rng.usize(100..200) } else { rng.usize(1..8) };
        let tasks: Vec<NewTask> = (0..n).map(|_| self.task(rng)).collect();
        let ids = match if is_short { rng.u8(9..24) } else { rng.u8(..32) } {
            0..9 => vec![client::dispatch(client, &tasks[0])?],
            9..16 => {
                let mut transaction = client.transaction().map_err(fail)?;
                // Otherwise two of us would wait for each other.
                client::lock_places(&mut transaction, &tasks)?;
                let ids = tasks.iter().map(|task| client::dispatch(&mut transaction, task));
                let ids = ids.collect::<Result<Vec<_>, _>>()?;
                if rng.u8(..6) == 0 {
                    return transaction.rollback().map_err(fail);
                }
                transaction.commit().map_err(fail)?;
                ids
            }
            16..24 => client::dispatch_many(client, &tasks)?,
            24..31 => {
                let NewTask { name, args, exclusive, shared } = &tasks[0];
                let query = "SELECT millhand.dispatch($1, $2, $3, $4)";
                let row = client.query_one(query, &[name, args, exclusive, shared]);
                vec![TaskId(row.map_err(fail)?.get(0))]
            }
            _ => self.dispatch_by_command(&tasks[0]),
        };
        self.ids().extend(&ids);
        if self.worker_type == "redis" && rng.u8(..10) > 0 {
            // While Redis is away nobody can be told, and workers look by themselves.
            let _ = self.workshop.redis.waker().wake();
        }
        Ok(())
    }

    fn dispatch_by_command(&self, task: &NewTask) -> Vec<TaskId> {
        let mut command = self.workshop.millhand(["dispatch", &task.name]);
        command.args(["--args", &task.args.to_string()]);
        for (flag, names) in [("--exclusive", &task.exclusive), ("--shared", &task.shared)] {
            for name in names {
                command.args([flag, name]);
            }
        }
        let said = run(&mut command);
        if said.code == Some(0) {
            vec![TaskId(said.stdout.trim().parse().unwrap())]
        } else {
            vec![]
        }
    }

    fn cancel_one(&self, client: &mut Client, rng: &mut Rng) -> Result<(), Error> {
        thread::sleep(Duration::from_millis(rng.u64(20..600)));
        let chosen = {
            let ids = self.ids();
            let recent = &ids[ids.len().saturating_sub(N_RECENT)..];
            rng.choice(recent).copied()
        };
        let Some(id) = chosen else { return Ok(()) };
        match rng.u8(..8) {
            0..4 => match client::cancel(client, id) {
                // It has ended.
                Err(Error::Conflict(_)) => return Ok(()),
                other => drop(other?),
            },
            4..7 => {
                let canceled = client.execute("SELECT millhand.cancel($1)", &[&id.0]);
                canceled.map_err(|error| Error::postgres("could not cancel", error))?;
            }
            _ => drop(run(&mut self.workshop.millhand(["task", "cancel", &id.to_string()]))),
        }
        if self.worker_type == "redis" {
            let _ = self.workshop.redis.waker().cancel(id);
        }
        Ok(())
    }

    fn task(&self, rng: &mut Rng) -> NewTask {
        let names = |rng: &mut Rng, most: usize| -> Vec<String> {
            let n = rng.usize(..=most);
            let name = |rng: &mut Rng| {
                let range = if rng.u8(..4) > 0 { N_RESOURCES } else { N_RESOURCES / 8 };
                format!("r{}", rng.u32(..range))
            };
            let mut names: Vec<String> = (0..n).map(|_| name(rng)).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        let exclusive = names(rng, 2);
        let mut shared = names(rng, 2);
        shared.retain(|name| !exclusive.contains(name));
        let mut task = match rng.u8(..20) {
            0..12 => NewTask::new("millhand.noop"),
            12..14 => {
                let seconds = f64::from(rng.u32(..20)) / 1000.0;
                NewTask::new("millhand.sleep").args(json!({ "seconds": seconds }))
            }
            _ => {
                let order = self.order(rng, &exclusive, &shared);
                NewTask::new("soak").args(serde_json::to_value(order).unwrap())
            }
        };
        (task.exclusive, task.shared) = (exclusive, shared);
        task
    }

    fn order(&self, rng: &mut Rng, exclusive: &[String], shared: &[String]) -> Order {
        let is_one_of = |rng: &mut Rng, n: u32| rng.u32(..n) == 0;
        Order {
            folder: self.folder.clone(),
            exclusive: exclusive.to_vec(),
            shared: shared.to_vec(),
            // Some are still at it when a lease ends.
            millis: if is_one_of(rng, 100) { rng.u64(500..4000) } else { rng.u64(..20) },
            leaves: match rng.u8(..16) {
                0 if self.leaves => Left::Child,
                1 if self.leaves => Left::Daemon,
                _ => Left::Nobody,
            },
            bare: is_one_of(rng, 3),
            stubborn: is_one_of(rng, 10),
            n_bytes: if is_one_of(rng, 40) { rng.usize(..2_000_000) } else { rng.usize(..30) },
            fails: is_one_of(rng, 20),
        }
    }
}
