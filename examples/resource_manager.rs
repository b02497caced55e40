//! What resource locks replaced, in small, to be measured beside them: one resource
//! manager reserves resources in a table and assigns each task to a worker, by that
//! worker's own queue in Redis, before it can start.
//!
//! Why it was left behind:
//! - All goes through one process. While it stands still, nothing starts.
//! - A task that conflicts with one that is assigned is put behind it, on the same worker,
//!   and waits there although others are idle.
//! - A task that conflicts with tasks of two workers cannot be put behind both: the
//!   manager waits until one of them is done, and everything behind waits with it.
//! - What a worker has in its queue when it dies, or when Redis loses it, is lost.
//!
//! To be fair it waits 2 ms where it has to wait, not a quarter of a second; and a task
//! that conflicts with none waits for no idle worker, but goes to the one that has the
//! fewest. Shown with two workers; with `--threads N` it has N of them and goes on until
//! SIGTERM. It prints:
//!
//! ```text
//! a task that needs a is for worker 0
//! a task that needs a is for worker 0
//! a task that needs b is for worker 1
//! a task that needs a and b is for worker 1
//! a task that needs nothing is for worker 0
//! the last was ready at once, and started after the second had ended: true
//! ```

use std::error::Error;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use millhand::{Config, NewTask, client, db};
use postgres::Client;
use redis::{Commands, Connection};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// How long the manager waits before it looks again.
const PAUSE: Duration = Duration::from_millis(2);
/// How long a worker waits for its queue before it looks whether to end, in seconds.
const PATIENCE: f64 = 0.2;

/// Who may not be separated: a row for each resource of an assigned task, and one
/// without a resource.
const TABLE: &str = "
    CREATE SCHEMA IF NOT EXISTS resource_manager;
    CREATE TABLE IF NOT EXISTS resource_manager.reserved (
        task bigint NOT NULL, worker integer NOT NULL, resource text, exclusive boolean);
    CREATE INDEX IF NOT EXISTS reserved_resource ON resource_manager.reserved (resource);
    CREATE INDEX IF NOT EXISTS reserved_task ON resource_manager.reserved (task);
    TRUNCATE resource_manager.reserved";

/// The first task that is not assigned yet.
const NEXT: &str = "
    SELECT t.id, t.exclusive, t.shared FROM millhand.task t
     WHERE t.state IN ('waiting', 'running', 'canceling') AND NOT t.parked AND t.state = 'waiting'
       AND NOT EXISTS (SELECT FROM resource_manager.reserved r WHERE r.task = t.id)
     ORDER BY t.position LIMIT 1";

/// The workers that have tasks which conflict with these needs.
const HOLDERS: &str = "
    SELECT DISTINCT worker FROM resource_manager.reserved
     WHERE resource = ANY ($1) OR exclusive AND resource = ANY ($2)";

/// The worker that has the fewest tasks.
const LEAST: &str = "
    SELECT w.worker FROM generate_series(0, $1::integer - 1) AS w (worker)
      LEFT JOIN resource_manager.reserved r ON r.worker = w.worker AND r.resource IS NULL
     GROUP BY w.worker ORDER BY count(r.task), w.worker LIMIT 1";

const RESERVE: &str = "
    INSERT INTO resource_manager.reserved (task, worker, resource, exclusive)
    SELECT $1::bigint, $2::integer, n.resource, n.is_exclusive FROM millhand.needs($3, $4) AS n
     UNION ALL
    SELECT $1::bigint, $2::integer, NULL, NULL";

const START: &str = "
    UPDATE millhand.task
       SET state = 'running', owner = $2, worker = $3, fence = nextval('millhand.task_fence'),
           attempt = attempt + 1, started_at = clock_timestamp()
     WHERE id = $1 AND state = 'waiting'
    RETURNING name, args";

/// Ends a task, if it was started, and gives back what is reserved for it.
const END: &str = "
    WITH ended AS (
        UPDATE millhand.task
           SET state = CASE state WHEN 'canceling' THEN 'canceled' ELSE 'completed' END,
               owner = NULL, finished_at = clock_timestamp()
         WHERE id = $1 AND owner = $2)
    DELETE FROM resource_manager.reserved WHERE task = $1";

const REGISTER: &str = "
    SELECT millhand.add_worker(
        $1, 'resource-manager', $2, '', 0, '10 minutes', NULL, NULL, NULL, NULL, NULL, NULL)";

/// What the manager and its workers share.
#[derive(Clone)]
struct System {
    config: Config,
    /// Begins the names of the queues.
    process: String,
    n_workers: i32,
    ends: Arc<AtomicBool>,
}

impl System {
    fn database(&self) -> Outcome<Client> {
        Ok(db::connect(self.config.database_url()?, "resource manager")?)
    }

    fn redis(&self) -> Outcome<Connection> {
        Ok(redis::Client::open(self.config.redis_url()?)?.get_connection()?)
    }

    fn queue_of(&self, worker: i32) -> String {
        format!("{}:{worker}", self.process)
    }

    fn has_ended(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// Assigns one task after the other, and says so to `assigned`.
    fn manage(&self, assigned: impl Fn(i32, &str)) -> Outcome<()> {
        let (mut client, mut redis) = (self.database()?, self.redis()?);
        let (next, reserve) = (client.prepare(NEXT)?, client.prepare(RESERVE)?);
        let (holders, least) = (client.prepare(HOLDERS)?, client.prepare(LEAST)?);
        while !self.has_ended() {
            let Some(task) = client.query_opt(&next, &[])? else {
                thread::sleep(PAUSE);
                continue;
            };
            let id: i64 = task.get("id");
            let (exclusive, shared): (Vec<String>, Vec<String>) =
                (task.get("exclusive"), task.get("shared"));
            let worker: i32 = loop {
                match &client.query(&holders, &[&exclusive, &shared])?[..] {
                    [] => break client.query_one(&least, &[&self.n_workers])?.get(0),
                    [holder] => break holder.get(0),
                    _several if self.has_ended() => return Ok(()),
                    _several => thread::sleep(PAUSE),
                }
            };
            client.execute(&reserve, &[&id, &worker, &exclusive, &shared])?;
            redis.rpush::<_, _, ()>(self.queue_of(worker), id)?;
            let needs = [exclusive, shared].concat().join(" and ");
            assigned(worker, if needs.is_empty() { "nothing" } else { &needs });
        }
        Ok(())
    }

    /// Runs what is in the worker's own queue, in its order.
    fn work(&self, worker: i32) -> Outcome<()> {
        let (mut client, mut redis) = (self.database()?, self.redis()?);
        let name = self.queue_of(worker);
        let id: i64 = client.query_one(REGISTER, &[&name, &self.process])?.get(0);
        let (start, end) = (client.prepare(START)?, client.prepare(END)?);
        while !self.has_ended() {
            let Some((_, task)) = redis.blpop::<_, Option<(String, i64)>>(&name, PATIENCE)? else {
                continue;
            };
            // Canceled, if there is none.
            let row = client.query_opt(&start, &[&task, &id, &name])?;
            if let Some(row) = row.filter(|row| row.get::<_, &str>("name") == "millhand.sleep") {
                let args: Value = row.get("args");
                let seconds = args["seconds"].as_f64().unwrap_or(0.0);
                thread::sleep(Duration::from_secs_f64(seconds));
            }
            client.execute(&end, &[&task, &id])?;
        }
        client.execute("SELECT millhand.leave($1)", &[&id])?;
        redis.del::<_, ()>(&name)?;
        Ok(())
    }

    /// Starts all threads, and returns when they have ended.
    fn run(&self, assigned: impl Fn(i32, &str) + Sync) -> Outcome<()> {
        self.database()?.batch_execute(TABLE)?;
        // Without one of them the others would wait for ever.
        let or_end_all = |result: Outcome<()>| {
            self.ends.fetch_or(result.is_err(), Ordering::AcqRel);
            result
        };
        thread::scope(|scope| {
            let mut threads = vec![scope.spawn(|| or_end_all(self.manage(&assigned)))];
            threads
                .extend((0..self.n_workers).map(|n| scope.spawn(move || or_end_all(self.work(n)))));
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a panic")?)
        })
    }
}

fn main() -> Outcome<()> {
    let n_workers = match &std::env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => None,
        [flag, n] if flag == "--threads" => {
            let n: NonZero<u16> = n.parse().map_err(|error| format!("--threads {n}: {error}"))?;
            Some(n.get().into())
        }
        _ => return Err("usage: resource_manager [--threads N]".into()),
    };
    let ends = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, ends.clone())?;
    }
    let system = System {
        config: Config::load(None)?,
        process: format!("resource-manager:{}", std::process::id()),
        n_workers: n_workers.unwrap_or(2),
        ends,
    };
    if n_workers.is_some() {
        return system.run(|_, _| {});
    }
    show(&system)
}

/// Five tasks, the last of which waits for nothing but the manager.
fn show(system: &System) -> Outcome<()> {
    let mut client = system.database()?;
    let sleep = |seconds| NewTask::new("millhand.sleep").args(json!({ "seconds": seconds }));
    let ids = client::dispatch_many(
        &mut client,
        &[
            sleep(0.1).exclusive("a"),
            sleep(0.1).exclusive("a"),
            sleep(1.0).exclusive("b"),
            sleep(0.0).exclusive("a").exclusive("b"),
            sleep(0.0),
        ],
    )?;
    thread::scope(|scope| -> Outcome<()> {
        let system_ends = scope.spawn(|| {
            system.run(|worker, needs| {
                println!("a task that needs {needs} is for worker {worker}");
            })
        });
        for id in &ids {
            while !system.has_ended() && !client::get_task(&mut client, *id)?.state.is_final() {
                thread::sleep(Duration::from_millis(10));
            }
        }
        system.ends.store(true, Ordering::Release);
        system_ends.join().map_err(|_| "a thread panicked")?
    })?;
    let second = client::get_task(&mut client, ids[1])?;
    let last = client::get_task(&mut client, ids[4])?;
    println!(
        "the last was ready at once, and started after the second had ended: {}",
        last.started_at > second.finished_at
    );
    Ok(())
}
