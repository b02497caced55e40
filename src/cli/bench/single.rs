//! Figures of `bench all` that are no rates: how long a cancel and a death take,
//! what a command costs, how near a burst comes to the ideal, what a claim costs
//! on a full table. All but the last leave their history in the table, to be judged.

use std::collections::{BTreeMap, HashMap};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millhand::config::WorkerType;
use millhand::{Error, NewTask, TaskId, client, db};
use postgres::Client;
use serde_json::{Map, Value, json};

use super::fleet::Fleet;
use super::measure::Meter;
use super::{Load, PATIENCE, clear, execute};

/// What is taken of each, and the median or the worst of it.
const N_CANCELS: usize = 30;
const N_KILLS: usize = 5;
const N_COMMANDS: usize = 300;
const N_DRAINED: usize = 5_000;
/// How often a row is looked at.
const LOOK: Duration = Duration::from_millis(1);

/// Milliseconds from the call of cancel to the final state, of commands that
/// run; sorted.
pub(super) fn cancels(url: &str, client: &mut Client, load: &Load) -> Result<Vec<f64>, Error> {
    let mut fleet = Fleet::with_commands(url, &Load { threads: 1, ..load.clone() })?;
    fleet.wait_until_online(client)?;
    let mut waker = load.waker()?;
    let mut times = Vec::new();
    for _ in 0..N_CANCELS {
        let id = client::dispatch(client, &NewTask::new("bench.sleep"))?;
        wait_until_running(client, 1)?;
        let began = Instant::now();
        client::cancel(client, id)?;
        if let Some(waker) = &mut waker {
            waker.cancel(id)?;
        }
        wait_until_final(client, id)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    fleet.stop()?;
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Milliseconds from `kill -9` of a worker process to the final state of the
/// command that it ran; sorted.
pub(super) fn kills(url: &str, client: &mut Client, load: &Load) -> Result<Vec<f64>, Error> {
    let mut times = Vec::new();
    for _ in 0..N_KILLS {
        let mut fleet = Fleet::with_commands(url, &Load { threads: 1, ..load.clone() })?;
        fleet.wait_until_online(client)?;
        let id = client::dispatch(client, &NewTask::new("bench.sleep"))?;
        wait_until_running(client, 1)?;
        let began = Instant::now();
        fleet.kill();
        wait_until_final(client, id)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Milliseconds that a command takes as a task, on one thread, beyond a bare
/// spawn of the same command.
pub(super) fn command_overhead(url: &str, client: &mut Client, load: &Load) -> Result<f64, Error> {
    let began = Instant::now();
    for _ in 0..N_COMMANDS {
        Command::new("true").stdin(Stdio::null()).status().map_err(|error| Error::Unavailable {
            doing: "could not run `true`".to_owned(),
            source: error.into(),
        })?;
    }
    let bare = began.elapsed().as_secs_f64();
    client::dispatch_many(client, &vec![NewTask::new("bench.true"); N_COMMANDS])?;
    let mut meter = Meter::start(client, load, None)?;
    let mut fleet = Fleet::with_commands(url, &Load { threads: 1, ..load.clone() })?;
    fleet.wait_until_done(client, N_COMMANDS)?;
    let figures = meter.stop(client, &fleet)?;
    fleet.stop()?;
    let as_tasks = super::suite::number(&figures, "seconds");
    Ok((as_tasks - bare) * 1e3 / N_COMMANDS as f64)
}

/// How long 256 tasks of half a second on 2 of 128 resources take, as a multiple of
/// what an ideal scheduler needs for the same on as many threads.
pub(super) fn burst_ratio(url: &str, client: &mut Client, load: &Load) -> Result<f64, Error> {
    const SECONDS: f64 = 0.5;
    let tasks: Vec<NewTask> =
        (0..256).map(|_| load.task("millhand.sleep").args(json!({ "seconds": SECONDS }))).collect();
    let mut fleet = super::idle_fleet(url, client, load)?;
    let mut meter = Meter::start(client, load, Some(&fleet))?;
    client::dispatch_many(client, &tasks)?;
    super::wake(&mut load.waker()?)?;
    fleet.wait_until_done(client, tasks.len())?;
    let figures = meter.stop(client, &fleet)?;
    fleet.stop()?;
    Ok(super::suite::number(&figures, "seconds") / (ideal_rounds(&tasks, load.threads) * SECONDS))
}

/// How many times the length of a task an ideal scheduler needs that keeps the
/// order: each task starts as soon as those before it that conflict have ended
/// and a thread is free, the earliest first. All are equally long and need their
/// resources exclusively.
fn ideal_rounds(tasks: &[NewTask], threads: usize) -> f64 {
    let mut free_from: HashMap<&str, usize> = HashMap::new();
    let mut running: BTreeMap<usize, usize> = BTreeMap::new();
    for task in tasks {
        let resources = task.exclusive.iter().map(String::as_str);
        let ready = resources.clone().filter_map(|r| free_from.get(r)).copied().max();
        let mut round = ready.unwrap_or(0);
        while running.get(&round).is_some_and(|n| *n >= threads) {
            round += 1;
        }
        *running.entry(round).or_default() += 1;
        free_from.extend(resources.map(|resource| (resource, round + 1)));
    }
    running.last_key_value().map_or(0, |(round, _)| round + 1) as f64
}

/// Postgres' processor time for a task, its dispatch in bulk included, on a table
/// with a past, in microseconds and as a multiple of that on an empty one, beside a
/// task that keeps one more thread busy all the time: with a million finished and a
/// transaction that has been open since before; then, with that closed, behind 20,000
/// blocked; then with 80,000 more.
pub(super) fn depth(
    url: &str,
    client: &mut Client,
    load: &Load,
) -> Result<Map<String, Value>, Error> {
    let mut fleet = Fleet::start(url, &Load { threads: load.threads + 1, ..load.clone() })?;
    fleet.wait_until_online(client)?;
    let blocker = NewTask::new("millhand.sleep").args(json!({"seconds": 600})).exclusive("blocked");
    client::dispatch(client, &blocker)?;
    wait_until_running(client, 1)?;
    let empty = drain_cost(&mut fleet, client, load)?;
    let mut figures = Map::new();
    let mut note = |name: &str, cost: f64| {
        figures.insert(format!("{name}_us_per_task"), json!(cost));
        figures.insert(format!("{name}_ratio"), json!(cost / empty));
    };
    note("empty", empty);
    let mut other = db::connect(url, "millhand bench")?;
    let fail = |error| Error::postgres("could not open a transaction", error);
    let mut old = other
        .build_transaction()
        .isolation_level(postgres::IsolationLevel::RepeatableRead)
        .start()
        .map_err(fail)?;
    old.batch_execute("SELECT 1").map_err(fail)?;
    execute(client, include_str!("../../../sql/bench/backlog.sql"))?;
    clean(client)?;
    drain_cost(&mut fleet, client, load)?;
    // The safety poll of the workers sees by and by what has ended.
    std::thread::sleep(Duration::from_secs(3));
    note("old_transaction", drain_cost(&mut fleet, client, load)?);
    old.rollback().map_err(fail)?;
    for (name, n_batches) in [("blocked", 20), ("backlog", 80)] {
        let blocked = NewTask::new("millhand.noop").shared("blocked");
        for _ in 0..n_batches {
            client::dispatch_many(client, &vec![blocked.clone(); super::BATCH])?;
        }
        // They are parked first, but by a type that parks nothing; then what the rest
        // costs shows.
        if load.worker_type() != WorkerType::Pulpcore {
            wait_until_parked(client)?;
        }
        clean(client)?;
        note(name, drain_cost(&mut fleet, client, load)?);
    }
    drop(fleet);
    clear(client)?;
    Ok(figures)
}

/// Postgres' processor time for each of some more tasks, in microseconds.
fn drain_cost(fleet: &mut Fleet, client: &mut Client, load: &Load) -> Result<f64, Error> {
    let n_tasks = load.tasks.unwrap_or(N_DRAINED);
    let tasks: Vec<NewTask> = (0..n_tasks).map(|_| load.task("millhand.noop")).collect();
    let mut meter = Meter::start(client, load, Some(fleet))?;
    let ids = client::dispatch_many(client, &tasks)?;
    super::wake(&mut load.waker()?)?;
    let (first, last) = (ids[0].0, ids[ids.len() - 1].0);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        std::thread::sleep(LOOK * 25);
        let row = client
            .query_one(include_str!("../../../sql/bench/all_ended.sql"), &[&first, &last])
            .map_err(|error| Error::postgres("could not look at the tasks", error))?;
        if row.get(0) {
            return Ok(meter.postgres_cpu(client)? * 1e6 / n_tasks as f64);
        }
    }
    Err(Error::Conflict(format!("tasks {first} to {last} never ended")))
}

/// Not what is measured, and not to disturb it.
pub(super) fn clean(client: &mut Client) -> Result<(), Error> {
    execute(client, "VACUUM ANALYZE millhand.task")?;
    execute(client, "VACUUM ANALYZE millhand.parked")
}

/// Waits until the workers have parked what they cannot start.
fn wait_until_parked(client: &mut Client) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let row = client
            .query_one(include_str!("../../../sql/bench/in_sight.sql"), &[])
            .map_err(|error| Error::postgres("could not count tasks", error))?;
        if row.get::<_, i64>(0) <= 200 {
            return Ok(());
        }
        std::thread::sleep(LOOK * 50);
    }
    Err(Error::Conflict("the blocked tasks were never parked".to_owned()))
}

pub(super) fn wait_until_running(client: &mut Client, n_tasks: i64) -> Result<(), Error> {
    wait_until(client, "running", n_tasks)
}

fn wait_until(client: &mut Client, state: &str, n_tasks: i64) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if count(client, state)? >= n_tasks {
            return Ok(());
        }
        std::thread::sleep(LOOK * 5);
    }
    Err(Error::Conflict(format!("there were never {n_tasks} tasks {state}")))
}

fn count(client: &mut Client, state: &str) -> Result<i64, Error> {
    let row = client
        .query_one(include_str!("../../../sql/bench/count_state.sql"), &[&state])
        .map_err(|error| Error::postgres("could not count tasks", error))?;
    Ok(row.get(0))
}

fn wait_until_final(client: &mut Client, id: TaskId) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if client::get_task(client, id)?.state.is_final() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(Error::Conflict(format!("task {id} never ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ideal_scheduler_keeps_the_order_and_the_threads_busy() {
        let tasks = |names: &[&str]| -> Vec<NewTask> {
            names
                .iter()
                .map(|names| {
                    names.split(' ').fold(NewTask::new("t"), |task, name| task.exclusive(name))
                })
                .collect()
        };
        assert_eq!(ideal_rounds(&tasks(&["a", "b", "c", "d"]), 2), 2.0);
        assert_eq!(ideal_rounds(&tasks(&["a", "a b", "b", "c"]), 4), 3.0);
        // The last one fits beside the first.
        assert_eq!(ideal_rounds(&tasks(&["a", "a", "a", "b"]), 2), 3.0);
    }
}
