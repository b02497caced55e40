//! `millhand bench`: what a fleet carries, measured from outside, on real
//! worker processes.
//!
//! Without a database in the settings a private server is started for the run;
//! one that is named has to be migrated and without work of its own.

mod claim;
mod fleet;
mod history;
mod measure;
mod single;
mod starts;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, Subcommand};
use millhand::config::{WorkerType, parse_duration};
use millhand::server::{PostgresOptions, PrivatePostgres, PrivateRedis};
use millhand::{Config, Error, NewTask, TaskId, Waker, client, db, migrate};
use postgres::Client;
use serde_json::{Map, Value, json};

use super::{Failure, Global, oracle};
use claim::Past;
use fleet::Fleet;
use measure::{Meter, percentile};
use starts::Starts;

/// Tasks of one bulk dispatch.
const BATCH: usize = 1000;
/// Of a run's course, in seconds.
const PIECE: f64 = 0.25;
/// The ideal scheduler goes through all tasks for each of them.
const MAX_IDEAL: usize = 2000;
/// How long workers that have come online are left alone: their looks and retries of the
/// start are over after the first safety poll.
const SETTLING: Duration = Duration::from_secs(3);
/// How long a fleet may take to come online or to finish.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    load: Load,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum What {
    /// Fill the table first, then start the workers
    Drain,
    /// Dispatch one task a transaction while the workers run
    Burst,
    /// Dispatch one task at a time to idle workers
    Pickup,
    /// Watch workers that have nothing to do
    Idle,
    /// Drain a table with a past: finished, blocked and waiting tasks, an old transaction
    Depth,
    /// Measure what a task costs Postgres beside others: waiting, finished, blocked ones
    Claim(Past),
    /// Run the whole set beside the physical limit, with the budgets
    All,
}

/// The load and the fleet.
#[derive(Debug, Clone, Args)]
struct Load {
    /// Use the locks of TYPE (default: postgres; all: each type in turn)
    #[arg(long = "type", value_name = "TYPE", global = true)]
    worker_type: Option<WorkerType>,
    /// Run N threads in each worker process
    #[arg(long, value_name = "N", default_value_t = 8, global = true)]
    threads: usize,
    /// Start N worker processes
    #[arg(long, value_name = "N", default_value_t = 1, global = true)]
    processes: usize,
    /// Dispatch N tasks (default: drain 20000, burst and depth 5000, pickup 300)
    #[arg(long, value_name = "N", global = true)]
    tasks: Option<usize>,
    /// Choose from N resources
    #[arg(long, value_name = "N", default_value_t = 128, global = true)]
    resources: usize,
    /// Give each task N of the resources, exclusively; 0 for none
    #[arg(long, value_name = "N", default_value_t = 2, global = true)]
    pick: usize,
    /// Choose the resources by N: the same tasks whenever it is N again
    #[arg(long, value_name = "N", global = true)]
    seed: Option<u64>,
    /// Let each task take so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, global = true)]
    seconds: f64,
    /// drain: dispatch N of the tasks before the workers start, and another for each that starts
    #[arg(long, value_name = "N", global = true)]
    ahead: Option<usize>,
    /// Start `PROGRAM --threads N` instead of workers of millhand
    #[arg(long, value_name = "PROGRAM", global = true)]
    program: Option<PathBuf>,
    /// Dispatch for TIME instead of a number of tasks; watch for TIME
    #[arg(long, value_name = "TIME", value_parser = parse_duration, global = true)]
    duration: Option<Duration>,
    /// Whether to print JSON.
    #[arg(skip)]
    json: bool,
    /// Of the Redis that workers of type redis use.
    #[arg(skip)]
    redis_url: Option<String>,
}

impl Load {
    fn check(&self) -> Result<(), Error> {
        if self.pick > self.resources {
            return Err(Error::Config(format!(
                "cannot pick {} of {} resources; raise --resources or lower --pick",
                self.pick, self.resources
            )));
        }
        if !(0.0..=86_400.0).contains(&self.seconds) {
            return Err(Error::Config("--seconds goes from 0 to 86400".to_owned()));
        }
        let counts = [Some(self.threads), Some(self.processes), self.tasks, self.ahead];
        if counts.contains(&Some(0)) {
            return Err(Error::Config(
                "--threads, --processes, --tasks and --ahead start at 1".to_owned(),
            ));
        }
        Ok(())
    }

    /// The name of what is measured.
    fn name(&self) -> String {
        match &self.program {
            Some(program) => program.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            None => self.worker_type().as_str().to_owned(),
        }
    }

    /// A task of the load.
    fn drawn_task(&self) -> NewTask {
        if self.seconds > 0.0 {
            self.task("millhand.sleep").args(json!({ "seconds": self.seconds }))
        } else {
            self.task("millhand.noop")
        }
    }

    fn worker_type(&self) -> WorkerType {
        self.worker_type.unwrap_or(WorkerType::Postgres)
    }

    /// What tells the workers of a dispatch or a cancel, if the database does not.
    fn waker(&self) -> Result<Option<Waker>, Error> {
        let needs_waker = self.worker_type() == WorkerType::Redis;
        needs_waker.then(|| Waker::new(&self.redis_config())).transpose()
    }

    fn redis_config(&self) -> Config {
        Config { redis_url: self.redis_url.clone(), ..Config::default() }
    }

    fn task(&self, name: &str) -> NewTask {
        let mut task = NewTask::new(name);
        while task.exclusive.len() < self.pick {
            let resource = format!("r{}", fastrand::usize(..self.resources));
            if !task.exclusive.contains(&resource) {
                task.exclusive.push(resource);
            }
        }
        task
    }
}

pub(crate) fn run(global: &Global, args: &BenchArgs) -> Result<ExitCode, Failure> {
    args.load.check()?;
    if let Some(seed) = args.load.seed {
        fastrand::seed(seed);
    }
    let config = global.load()?;
    let named = config.database_url;
    let mut load = args.load.clone();
    load.redis_url = config.redis_url;
    load.json = global.json;
    let needs_redis = match load.worker_type {
        Some(worker_type) => worker_type == WorkerType::Redis,
        None => matches!(args.what, What::All) || load.program.is_some(),
    };
    let private_redis = match load.redis_url {
        None if needs_redis => Some(PrivateRedis::start()?),
        _ => None,
    };
    load.redis_url = load.redis_url.or(private_redis.as_ref().map(PrivateRedis::url));
    let private = match named {
        Some(_) => None,
        None => Some(PrivatePostgres::start(&PostgresOptions {
            max_connections: (args.load.threads * args.load.processes) as u32 + 120,
            ..PostgresOptions::default()
        })?),
    };
    let url = private.as_ref().map_or_else(|| named.unwrap_or_default(), PrivatePostgres::url);
    let mut client = db::connect(&url, "millhand bench")?;
    if private.is_some() {
        migrate::migrate(&mut client)?;
    }
    migrate::check(&mut client)?;
    refuse_real_work(&mut client)?;
    if let What::All = args.what {
        return suite::run(&url, &mut client, &load);
    }
    let figures = measure(args.what, &url, &mut client, &load)?;
    print(&figures, load.json)?;
    let sound = figures.get("violations").is_none_or(|n| *n == json!(0));
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures one thing and returns its figures by name.
fn measure(
    what: What,
    url: &str,
    client: &mut Client,
    load: &Load,
) -> Result<Map<String, Value>, Error> {
    clear(client)?;
    let figures = match what {
        What::Drain => drain(url, client, load)?,
        What::Burst => burst(url, client, load)?,
        What::Pickup => pickup(url, client, load)?,
        What::Idle => idle(url, client, load)?,
        What::Depth => single::depth(url, client, load)?,
        What::Claim(past) => claim::claim(url, client, load, past)?,
        What::All => Map::new(),
    };
    // Others have emptied the table by then, or never had a task.
    let keeps_history = matches!(what, What::Drain | What::Burst | What::Pickup);
    let mut all = Map::new();
    let what = format!("{what:?}").to_lowercase();
    let name = what.split(|letter: char| !letter.is_alphabetic()).next();
    all.insert("bench".to_owned(), json!(name));
    all.insert("type".to_owned(), json!(load.name()));
    all.insert("threads".to_owned(), json!(load.threads));
    all.insert("processes".to_owned(), json!(load.processes));
    all.insert("resources".to_owned(), json!(load.resources));
    all.insert("pick".to_owned(), json!(load.pick));
    all.extend(figures);
    if keeps_history {
        all.insert("violations".to_owned(), json!(count_violations(client)?));
    }
    clear(client)?;
    Ok(all)
}

/// How often the history in the table breaks the rules of order; it tells the first few.
fn count_violations(client: &mut Client) -> Result<usize, Error> {
    let violations = oracle::verdict(client)?;
    for violation in violations.iter().take(10) {
        log::error!("{violation}");
    }
    Ok(violations.len())
}

fn drain(url: &str, client: &mut Client, load: &Load) -> Result<Map<String, Value>, Error> {
    let n_tasks = load.tasks.unwrap_or(20_000);
    let n_ahead = load.ahead.unwrap_or(n_tasks).min(n_tasks);
    let began = Instant::now();
    fill(client, load, n_ahead)?;
    let fill_seconds = began.elapsed().as_secs_f64();
    execute(client, "CHECKPOINT")?;
    let mut starts = Starts::new(load.processes * load.threads);
    let mut waker = load.waker()?;
    let mut n_dispatched = n_ahead;
    let mut meter = Meter::start(client, load, None)?;
    let mut fleet = Fleet::start(url, load)?;
    fleet.feed_until_done(client, n_tasks, |client, all_ended| {
        if n_dispatched < n_tasks {
            if all_ended {
                starts.set(n_dispatched, client)?;
            }
            let n_started = starts.count(client)?;
            let n = (n_ahead + n_started).min(n_tasks).saturating_sub(n_dispatched);
            fill(client, load, n)?;
            wake(&mut waker)?;
            n_dispatched += n;
        }
        Ok(n_dispatched < n_tasks)
    })?;
    let mut figures = meter.stop(client, &fleet)?;
    fleet.stop()?;
    figures.insert("bulk_dispatch_per_second".to_owned(), json!(n_ahead as f64 / fill_seconds));
    let events = history::read(client)?;
    let first_start = events.iter().map(|event| event.started).fold(f64::INFINITY, f64::min);
    let n_arrived = events.iter().filter(|event| event.created > first_start).count();
    figures.insert("dispatched_after_first_start".to_owned(), json!(n_arrived));
    if load.json {
        let ends = history::ends_over_time(&events, PIECE);
        figures.insert("ends_each_quarter_second".to_owned(), json!(ends));
    }
    Ok(figures)
}

fn burst(url: &str, client: &mut Client, load: &Load) -> Result<Map<String, Value>, Error> {
    let mut fleet = idle_fleet(url, client, load)?;
    let mut meter = Meter::start(client, load, Some(&fleet))?;
    let n_tasks = if load.duration.is_some() { usize::MAX } else { load.tasks.unwrap_or(5_000) };
    let end = load.duration.map(|duration| Instant::now() + duration);
    let mut waker = load.waker()?;
    let mut times = Vec::new();
    while times.len() < n_tasks && end.is_none_or(|end| Instant::now() < end) {
        let task = load.drawn_task();
        let began = Instant::now();
        client::dispatch(client, &task)?;
        wake(&mut waker)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    fleet.wait_until_done(client, times.len())?;
    let mut figures = meter.stop(client, &fleet)?;
    fleet.stop()?;
    insert_times(&mut figures, "dispatch", times);
    let events = history::read(client)?;
    let pickups = events.iter().map(|event| (event.started - event.created) * 1e3);
    insert_times(&mut figures, "pickup", pickups.collect());
    if load.seconds > 0.0 && events.len() <= MAX_IDEAL {
        let ideal = history::ideal_starts(&events, load.threads * load.processes);
        let pickups = ideal.iter().zip(&events).map(|(start, event)| (start - event.created) * 1e3);
        insert_times(&mut figures, "ideal_pickup", pickups.collect());
    }
    Ok(figures)
}

fn pickup(url: &str, client: &mut Client, load: &Load) -> Result<Map<String, Value>, Error> {
    let fleet = idle_fleet(url, client, load)?;
    let mut meter = Meter::start(client, load, Some(&fleet))?;
    let n_tasks = if load.duration.is_some() { usize::MAX } else { load.tasks.unwrap_or(300) };
    let end = load.duration.map(|duration| Instant::now() + duration);
    let mut waker = load.waker()?;
    let mut pickups = Vec::new();
    let mut dispatches = Vec::new();
    let mut inserts = Vec::new();
    execute(client, include_str!("../../sql/bench/limit_table.sql"))?;
    while pickups.len() < n_tasks && end.is_none_or(|end| Instant::now() < end) {
        let task = load.task("millhand.clock");
        let began = Instant::now();
        let id = client::dispatch(client, &task)?;
        dispatches.push(began.elapsed().as_secs_f64() * 1e3);
        let committed = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.as_micros() as i64);
        wake(&mut waker)?;
        let begun = wait_for_clock(client, id)?;
        pickups.push((begun - committed) as f64 / 1e3);
        pause();
        // What any commit takes on a machine that was idle before.
        let began = Instant::now();
        execute(client, include_str!("../../sql/bench/insert.sql"))?;
        inserts.push(began.elapsed().as_secs_f64() * 1e3);
        pause();
    }
    execute(client, "DROP TABLE millhand.bench_limit")?;
    let mut figures = meter.stop(client, &fleet)?;
    fleet.stop()?;
    insert_times(&mut figures, "dispatch", dispatches);
    insert_times(&mut figures, "pickup", pickups);
    insert_times(&mut figures, "insert", inserts);
    Ok(figures)
}

fn wake(waker: &mut Option<Waker>) -> Result<(), Error> {
    waker.as_mut().map_or(Ok(()), Waker::wake)
}

/// Not in step with anything periodic, and long enough for all to be idle again.
fn pause() {
    std::thread::sleep(Duration::from_micros(fastrand::u64(5_000..25_000)));
}

fn idle(url: &str, client: &mut Client, load: &Load) -> Result<Map<String, Value>, Error> {
    let fleet = idle_fleet(url, client, load)?;
    let mut meter = Meter::start(client, load, Some(&fleet))?;
    std::thread::sleep(load.duration.unwrap_or(Duration::from_secs(20)));
    let figures = meter.stop(client, &fleet)?;
    fleet.stop()?;
    Ok(figures)
}

/// Workers that have nothing to do, and are done with their start.
fn idle_fleet(url: &str, client: &mut Client, load: &Load) -> Result<Fleet, Error> {
    let mut fleet = Fleet::start(url, load)?;
    fleet.wait_until_online(client)?;
    std::thread::sleep(SETTLING);
    Ok(fleet)
}

/// Dispatches in bulk.
fn fill(client: &mut Client, load: &Load, n_tasks: usize) -> Result<(), Error> {
    let mut n_left = n_tasks;
    while n_left > 0 {
        let n = n_left.min(BATCH);
        let tasks: Vec<NewTask> = (0..n).map(|_| load.drawn_task()).collect();
        client::dispatch_many(client, &tasks)?;
        n_left -= n;
    }
    Ok(())
}

/// The time at which the task's handler began, in microseconds.
fn wait_for_clock(client: &mut Client, id: TaskId) -> Result<i64, Error> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // First of all, so that looking does not disturb what is measured.
        std::thread::sleep(Duration::from_millis(3));
        let task = client::get_task(client, id)?;
        if task.state.is_final() {
            return task.result.as_ref().and_then(Value::as_i64).ok_or_else(|| {
                Error::Conflict(format!("task {id} is {}, expected completed", task.state))
            });
        }
    }
    Err(Error::Conflict(format!("task {id} was not run in {} s", PATIENCE.as_secs())))
}

fn insert_times(figures: &mut Map<String, Value>, what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / times.len().max(1) as f64;
    figures.insert(format!("{what}_mean_ms"), json!(mean));
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        figures.insert(format!("{what}_{name}_ms"), json!(percentile(&times, share)));
    }
}

fn refuse_real_work(client: &mut Client) -> Result<(), Error> {
    let row = client
        .query_one(include_str!("../../sql/bench/in_use.sql"), &[])
        .map_err(|error| Error::postgres("could not look at the database", error))?;
    if row.get(0) {
        return Err(Error::Conflict(
            "this database has tasks or workers, and a bench removes all tasks; give it one of \
             its own, or none: `millhand bench` without a database starts a private server"
                .to_owned(),
        ));
    }
    Ok(())
}

fn clear(client: &mut Client) -> Result<(), Error> {
    execute(client, "TRUNCATE millhand.task, millhand.parked, millhand.freed")
}

fn execute(client: &mut Client, statement: &str) -> Result<(), Error> {
    client
        .batch_execute(statement)
        .map_err(|error| Error::postgres("could not prepare or clear the table", error))
}

fn print(figures: &Map<String, Value>, as_json: bool) -> Result<(), Failure> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", Value::Object(figures.clone()))?;
        return Ok(());
    }
    for (name, value) in figures {
        let value = match value.as_f64() {
            Some(number) if value.is_f64() => format!("{number:.3}"),
            _ => value.to_string().trim_matches('"').to_owned(),
        };
        writeln!(out, "{name:<28} {value}")?;
    }
    Ok(())
}
