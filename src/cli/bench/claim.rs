//! What a claim costs on a table with a past, at a backlog that is filled up again all
//! along.

use std::time::{Duration, Instant};

use clap::Args;
use millhand::{Error, NewTask, client};
use postgres::Client;
use serde_json::{Map, Value, json};

use super::fleet::Fleet;
use super::measure::Meter;
use super::single::{clean, wait_until_running};
use super::starts::Starts;
use super::{BATCH, Load, execute, fill, wake};

/// How often what was started is made good for.
const REFILL_INTERVAL: Duration = Duration::from_millis(20);
/// How long workers may settle down, before it is measured.
const WARM_UP: Duration = Duration::from_secs(2);

/// The past.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Past {
    /// Keep N tasks waiting that may start by and by
    #[arg(long, value_name = "N", default_value_t = 1000)]
    waiting: usize,
    /// Begin with N finished tasks
    #[arg(long, value_name = "N", default_value_t = 0)]
    finished: u32,
    /// Put N tasks first that wait for a long one
    #[arg(long, value_name = "N", default_value_t = 0)]
    blocked: usize,
}

/// Postgres' processor time for each task, its dispatch in bulk included.
pub(super) fn claim(
    url: &str,
    client: &mut Client,
    load: &Load,
    past: Past,
) -> Result<Map<String, Value>, Error> {
    client
        .execute(
            include_str!("../../../sql/bench/finished_before.sql"),
            &[&i64::from(past.finished)],
        )
        .map_err(|error| Error::postgres("could not make finished tasks", error))?;
    // One more thread, for the long task.
    let n_threads = load.threads + usize::from(past.blocked > 0);
    let fleet_load = Load { threads: n_threads, ..load.clone() };
    let mut fleet = None;
    if past.blocked > 0 {
        let long = NewTask::new("millhand.sleep").args(json!({ "seconds": 3600 }));
        client::dispatch(client, &long.exclusive("blocked"))?;
        fleet = Some(start(url, client, &fleet_load)?);
        wait_until_running(client, 1)?;
        let blocked = NewTask::new("millhand.noop").shared("blocked");
        for begin in (0..past.blocked).step_by(BATCH) {
            let n = BATCH.min(past.blocked - begin);
            client::dispatch_many(client, &vec![blocked.clone(); n])?;
        }
    }
    let mut starts = Starts::new(fleet_load.processes * fleet_load.threads);
    let mut made_good = starts.count(client)?;
    fill(client, load, past.waiting)?;
    clean(client)?;
    let fleet = match fleet {
        Some(fleet) => fleet,
        None => start(url, client, &fleet_load)?,
    };
    keep_waiting(client, load, WARM_UP, &mut starts, &mut made_good)?;
    let mut meter = Meter::start(client, load, None)?;
    let began = Instant::now();
    let time = load.duration.unwrap_or(Duration::from_secs(5));
    let n_started = keep_waiting(client, load, time, &mut starts, &mut made_good)?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu = meter.postgres_cpu(client)?;
    drop(fleet);
    execute(client, "TRUNCATE millhand.task, millhand.parked, millhand.freed, millhand.worker")?;
    let mut figures = Map::new();
    figures.insert("waiting".to_owned(), json!(past.waiting));
    figures.insert("finished".to_owned(), json!(past.finished));
    figures.insert("blocked".to_owned(), json!(past.blocked));
    figures.insert("tasks".to_owned(), json!(n_started));
    figures.insert("tasks_per_second".to_owned(), json!(n_started as f64 / seconds));
    figures.insert("postgres_cpu_us_per_task".to_owned(), json!(cpu * 1e6 / n_started as f64));
    Ok(figures)
}

fn start(url: &str, client: &mut Client, load: &Load) -> Result<Fleet, Error> {
    let mut fleet = Fleet::start(url, load)?;
    fleet.wait_until_online(client)?;
    Ok(fleet)
}

/// Dispatches as many tasks as are started, for so long; returns how many those were.
///
/// `made_good` counts on from the tasks that were started before the backlog was there:
/// fast workers have emptied a short one before this is first called.
fn keep_waiting(
    client: &mut Client,
    load: &Load,
    time: Duration,
    starts: &mut Starts,
    made_good: &mut usize,
) -> Result<usize, Error> {
    let first = *made_good;
    let mut waker = load.waker()?;
    let began = Instant::now();
    while began.elapsed() < time {
        std::thread::sleep(REFILL_INTERVAL);
        let now = starts.count(client)?.max(*made_good);
        fill(client, load, now - *made_good)?;
        wake(&mut waker)?;
        *made_good = now;
    }
    Ok(*made_good - first)
}
