//! `millhand bench all`: every figure that has a budget, for each worker type,
//! beside the thing that the budget is a ratio to, interleaved in one run.

mod report;

use std::io::Write;
use std::process::{Command, ExitCode};

use millhand::config::WorkerType;
use millhand::{Error, NewTask, client, server};
use postgres::Client;
use serde_json::{Map, Value, json};

use super::single::{self, wait_until_running};
use super::{Load, What, clear, count_violations, execute, measure, percentile};
use crate::cli::{Failure, output};
use report::{Line, lines};

/// Rounds of what is compared; the median counts.
const ROUNDS: usize = 3;
/// Clients of pgbench.
const CLIENTS: &str = "8";
/// Seconds of each run of pgbench.
const PGBENCH_SECONDS: &str = "4";
/// Threads of the small fleet, and of the large one.
const FEW: usize = 8;
const MANY: usize = 80;

/// A figure over the rounds.
type Series = Vec<f64>;

/// Figures by name, as one bench gives them.
type Figures = Map<String, Value>;

/// What the machine does without workers.
#[derive(Default)]
struct Limits {
    limit: Series,
    insert: Series,
}

/// What workers of one type did.
struct Measured {
    worker_type: WorkerType,
    drain_8: Vec<Figures>,
    drain_many: Vec<Figures>,
    /// Without resources.
    drain_free: Vec<Figures>,
    dispatch_idle: Series,
    dispatch_busy: Series,
    /// By what was measured, once.
    single: Figures,
    /// Of the order, in all that the workers ended, but for a table with a past; not a
    /// number if a run was not judged.
    n_violations: f64,
}

pub(super) fn run(url: &str, client: &mut Client, load: &Load) -> Result<ExitCode, Failure> {
    let types = match load.worker_type {
        Some(worker_type) => vec![worker_type],
        None => vec![WorkerType::Pulpcore, WorkerType::Postgres, WorkerType::Redis],
    };
    let mut limits = Limits::default();
    let mut fleets: Vec<Measured> = types.into_iter().map(Measured::new).collect();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        limits.measure(url, client)?;
        for fleet in &mut fleets {
            fleet.measure(url, client, load)?;
        }
    }
    for fleet in &mut fleets {
        eprintln!("{}: pickup, idle, cancel, death, command, burst, growth", fleet.name());
        fleet.measure_once(url, client, load)?;
    }
    let n_violations: f64 = fleets.iter().map(|fleet| fleet.n_violations).sum();
    let mut out = std::io::stdout().lock();
    if load.json {
        let mut figures = Map::new();
        figures.insert("limit_per_second".to_owned(), json!(median(&limits.limit)));
        figures.insert("insert_per_second".to_owned(), json!(median(&limits.insert)));
        figures.insert("violations".to_owned(), json!(n_violations));
        for fleet in &fleets {
            let lines = lines(fleet, &fleets, &limits).into_iter();
            let of_type: Figures = lines.map(|line| (line.name, json!(line.value))).collect();
            figures.insert(fleet.name().to_owned(), Value::Object(of_type));
        }
        writeln!(out, "{}", Value::Object(figures))?;
    } else {
        writeln!(
            out,
            "limit: {:.0} transactions/s of pgbench, one a task; {:.0} bare INSERTs/s",
            median(&limits.limit),
            median(&limits.insert)
        )?;
        for fleet in &fleets {
            let lines = lines(fleet, &fleets, &limits);
            let rows = lines.iter().map(Line::row);
            writeln!(out, "\n{}", output::table(&[fleet.name(), "measured", "budget", ""], rows))?;
        }
        writeln!(out, "oracle: {n_violations} violations")?;
    }
    Ok(if n_violations == 0.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Limits {
    fn measure(&mut self, url: &str, client: &mut Client) -> Result<(), Error> {
        let table = include_str!("../../../sql/bench/limit_table.sql");
        execute(client, table)?;
        execute(client, include_str!("../../../sql/bench/limit_rows.sql"))?;
        execute(client, "CHECKPOINT")?;
        self.limit.push(said("limit", pgbench(url, include_str!("../../../sql/bench/limit.sql"))?));
        execute(client, table)?;
        let insert = include_str!("../../../sql/bench/insert.sql");
        self.insert.push(said("bare INSERT", pgbench(url, insert)?));
        execute(client, "DROP TABLE millhand.bench_limit")
    }
}

impl Measured {
    fn new(worker_type: WorkerType) -> Measured {
        Measured {
            worker_type,
            drain_8: Vec::new(),
            drain_many: Vec::new(),
            drain_free: Vec::new(),
            dispatch_idle: Series::new(),
            dispatch_busy: Series::new(),
            single: Figures::new(),
            n_violations: 0.0,
        }
    }

    fn name(&self) -> &'static str {
        self.worker_type.as_str()
    }

    fn load(&self, load: &Load) -> Load {
        let worker_type = Some(self.worker_type);
        Load { worker_type, processes: 1, duration: None, tasks: None, ..load.clone() }
    }

    fn measure(&mut self, url: &str, client: &mut Client, load: &Load) -> Result<(), Error> {
        let one = Load { tasks: load.tasks, ..self.load(load) };
        let many = Load { threads: MANY, ..one.clone() };
        let free = Load { pick: 0, ..many.clone() };
        for (what, load, series) in [
            ("8 threads", Load { threads: FEW, ..one }, &mut self.drain_8),
            ("80 threads", many.clone(), &mut self.drain_many),
            ("80 threads, no resources", free, &mut self.drain_free),
        ] {
            let figures = measure(What::Drain, url, client, &load)?;
            let name = self.worker_type.as_str();
            said(&format!("{name}, drain, {what}"), number(&figures, "tasks_per_second"));
            self.n_violations += number(&figures, "violations");
            series.push(figures);
        }
        let fleet = super::idle_fleet(url, client, &many)?;
        // One worker is busy, the others idle; then all are busy.
        let blocker =
            NewTask::new("millhand.sleep").args(json!({"seconds": 600})).exclusive("blocked");
        client::dispatch(client, &blocker)?;
        wait_until_running(client, 1)?;
        let dispatch = include_str!("../../../sql/bench/dispatch.sql");
        let name = self.worker_type.as_str();
        self.dispatch_idle.push(said(&format!("{name}, dispatch, idle"), pgbench(url, dispatch)?));
        let sleep = NewTask::new("millhand.sleep").args(json!({"seconds": 600}));
        client::dispatch_many(client, &vec![sleep; MANY - 1])?;
        wait_until_running(client, MANY as i64)?;
        self.dispatch_busy.push(said(&format!("{name}, dispatch, busy"), pgbench(url, dispatch)?));
        drop(fleet);
        clear(client)
    }

    fn measure_once(&mut self, url: &str, client: &mut Client, load: &Load) -> Result<(), Error> {
        let one = self.load(load);
        let with = |threads| Load { threads, ..one.clone() };
        let mut single = Figures::new();
        let mut note = |name: &str, figure: f64| single.insert(name.to_owned(), json!(figure));
        for threads in [1, FEW, MANY] {
            let pickup = measure(What::Pickup, url, client, &with(threads))?;
            self.n_violations += number(&pickup, "violations");
            for figure in ["pickup_p50_ms", "pickup_p99_ms", "insert_p50_ms"] {
                let name = figure.replacen('_', &format!("_{threads}_"), 1);
                note(&name, number(&pickup, figure));
            }
        }
        for threads in [FEW, MANY] {
            let idle = measure(What::Idle, url, client, &with(threads))?;
            let mut cpu =
                number(&idle, "worker_cpu_percent") + number(&idle, "postgres_cpu_percent");
            if self.worker_type == WorkerType::Redis {
                cpu += number(&idle, "redis_cpu_percent");
            }
            let statements = number(&idle, "statements_per_second");
            note(&format!("idle_{threads}_statements_per_second"), statements);
            note(&format!("idle_{threads}_cpu_percent"), cpu);
            note(&format!("idle_{threads}_memory_mib"), number(&idle, "worker_memory_mib"));
        }
        let cancels = single::cancels(url, client, &one)?;
        self.judge(client)?;
        note("cancel_p50_ms", percentile(&cancels, 0.5));
        note("cancel_max_ms", percentile(&cancels, 1.0));
        note("kill_max_ms", percentile(&single::kills(url, client, &one)?, 1.0));
        self.judge(client)?;
        note("command_overhead_ms", single::command_overhead(url, client, &one)?);
        self.judge(client)?;
        for threads in [FEW, 32, MANY] {
            let ratio = single::burst_ratio(url, client, &with(threads))?;
            self.judge(client)?;
            note(&format!("burst_ratio_{threads}"), ratio);
        }
        let depth = measure(What::Depth, url, client, &one)?;
        for figure in ["old_transaction_ratio", "blocked_ratio", "backlog_ratio"] {
            note(figure, number(&depth, figure));
        }
        self.single = single;
        Ok(())
    }

    /// Judges the history of a run, and clears the table for the next one.
    fn judge(&mut self, client: &mut Client) -> Result<(), Error> {
        self.n_violations += count_violations(client)? as f64;
        clear(client)
    }
}

/// Shows a figure as it comes; the run takes minutes.
fn said(what: &str, per_second: f64) -> f64 {
    eprintln!("  {what}: {per_second:.0}/s");
    per_second
}

/// Transactions a second of a script.
fn pgbench(url: &str, script: &str) -> Result<f64, Error> {
    let unavailable = |error: std::io::Error| Error::Unavailable {
        doing: "could not run pgbench".to_owned(),
        source: error.into(),
    };
    let mut file = tempfile::NamedTempFile::new().map_err(unavailable)?;
    file.write_all(script.as_bytes()).map_err(unavailable)?;
    let output = Command::new(server::postgres_program("pgbench")?)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--define=task=0"])
        .args(["--client", CLIENTS, "--time", PGBENCH_SECONDS, "--file"])
        .arg(file.path())
        .arg(url)
        .output()
        .map_err(unavailable)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
    tps.filter(|_| output.status.success()).ok_or_else(|| Error::Bug {
        doing: "pgbench gave no figure".to_owned(),
        source: String::from_utf8_lossy(&output.stderr).trim().to_owned().into(),
    })
}

fn series(drains: &[Figures], figure: &str) -> Series {
    drains.iter().map(|figures| number(figures, figure)).collect()
}

fn median(series: &Series) -> f64 {
    let mut sorted = series.clone();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.5)
}

pub(super) fn number(figures: &Map<String, Value>, name: &str) -> f64 {
    figures.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
}
