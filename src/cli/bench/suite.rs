//! `millhand bench all`: every figure that has a budget, for each worker type,
//! beside the thing that the budget is a ratio to, interleaved in one run.

use std::io::Write;
use std::process::{Command, ExitCode};

use millhand::config::WorkerType;
use millhand::{Error, NewTask, client, server};
use postgres::Client;
use serde_json::{Map, Value, json};

use super::fleet::Fleet;
use super::single::{self, wait_until_running};
use super::{Load, What, clear, execute, measure, percentile};
use crate::cli::{Failure, output};

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
    let n_violations: u64 = fleets.iter().map(Measured::n_violations).sum();
    let mut out = std::io::stdout().lock();
    if load.json {
        let mut figures = Map::new();
        figures.insert("limit_per_second".to_owned(), json!(median(&limits.limit)));
        figures.insert("insert_per_second".to_owned(), json!(median(&limits.insert)));
        for fleet in &fleets {
            let lines = lines(fleet, &fleets, &limits).into_iter();
            let of_type: Figures =
                lines.map(|line| (line.name.to_owned(), json!(line.value))).collect();
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
            let rows = lines.iter().map(|line| {
                let verdict = match line.budget {
                    Some(budget) if budget.holds(line.value) => "ok",
                    Some(_) => "missed",
                    None => "",
                };
                let budget = line.budget.map_or(String::new(), |budget| budget.to_string());
                vec![line.what.to_owned(), line.shown(), budget, verdict.to_owned()]
            });
            writeln!(out, "\n{}", output::table(&[fleet.name(), "measured", "budget", ""], rows))?;
        }
        writeln!(out, "oracle: {n_violations} violations")?;
    }
    Ok(if n_violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
            series.push(figures);
        }
        let mut fleet = Fleet::start(url, &many)?;
        fleet.wait_until_online(client)?;
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
        let mut note = |name: &str, figure: f64| self.single.insert(name.to_owned(), json!(figure));
        for threads in [1, FEW, MANY] {
            let pickup = measure(What::Pickup, url, client, &with(threads))?;
            for figure in ["pickup_p50_ms", "pickup_p99_ms", "insert_p50_ms"] {
                note(&format!("{figure}_{threads}"), number(&pickup, figure));
            }
        }
        for threads in [FEW, MANY] {
            let idle = measure(What::Idle, url, client, &with(threads))?;
            let cpu = number(&idle, "worker_cpu_percent") + number(&idle, "postgres_cpu_percent");
            note(&format!("statements_{threads}"), number(&idle, "statements_per_second"));
            note(&format!("cpu_{threads}"), cpu);
            note(&format!("memory_{threads}"), number(&idle, "worker_memory_mib"));
        }
        let cancels = single::cancels(url, client, &one)?;
        note("cancel_p50_ms", percentile(&cancels, 0.5));
        note("cancel_max_ms", percentile(&cancels, 1.0));
        note("kill_max_ms", percentile(&single::kills(url, client, &one)?, 1.0));
        note("command_overhead_ms", single::command_overhead(url, client, &one)?);
        for threads in [FEW, 32, MANY] {
            let ratio = single::burst_ratio(url, client, &with(threads))?;
            note(&format!("burst_ratio_{threads}"), ratio);
        }
        let depth = measure(What::Depth, url, client, &one)?;
        for figure in ["old_transaction_ratio", "blocked_ratio", "backlog_ratio"] {
            note(figure, number(&depth, figure));
        }
        Ok(())
    }

    fn n_violations(&self) -> u64 {
        let drains = self.drain_8.iter().chain(&self.drain_many).chain(&self.drain_free);
        drains.map(|figures| number(figures, "violations") as u64).sum()
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

/// A floor or a ceiling.
#[derive(Clone, Copy)]
enum Budget {
    AtLeast(f64),
    Below(f64),
}

impl Budget {
    fn holds(self, value: f64) -> bool {
        match self {
            Budget::AtLeast(floor) => value >= floor,
            Budget::Below(ceiling) => value < ceiling,
        }
    }
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Budget::AtLeast(floor) => write!(f, ">= {floor}"),
            Budget::Below(ceiling) => write!(f, "< {ceiling}"),
        }
    }
}

/// One line of the report.
struct Line {
    name: &'static str,
    what: &'static str,
    value: f64,
    budget: Option<Budget>,
}

impl Line {
    fn shown(&self) -> String {
        match self.value {
            value if value >= 1000.0 => format!("{value:.0}"),
            value => format!("{value:.2}"),
        }
    }
}

fn lines(fleet: &Measured, all: &[Measured], limits: &Limits) -> Vec<Line> {
    use Budget::{AtLeast, Below};
    let is_redis = fleet.worker_type == WorkerType::Redis;
    let is_postgres = fleet.worker_type == WorkerType::Postgres;
    let other = |worker_type| {
        all.iter().find(|of| of.worker_type == worker_type && fleet.worker_type != worker_type)
    };
    let postgres = other(WorkerType::Postgres).filter(|_| is_redis);
    let pulpcore = other(WorkerType::Pulpcore);
    let line = |name, what, value, budget| Line { name, what, value, budget };
    // Round by round: the machine's speed drifts.
    let ratio = |above: &Series, below: &Series| {
        median(&above.iter().zip(below).map(|(a, b)| a / b).collect())
    };
    let rates = |drains: &[Figures]| series(drains, "tasks_per_second");
    let (rate_8, rate_many, rate_free) =
        (rates(&fleet.drain_8), rates(&fleet.drain_many), rates(&fleet.drain_free));
    let once = |name: &str| number(&fleet.single, name);
    let mut lines = vec![
        line("drain_8_per_second", "drain, 8 threads, tasks/s", median(&rate_8), None),
        line(
            "drain_8_ratio",
            "  of the limit",
            ratio(&rate_8, &limits.limit),
            is_postgres.then_some(AtLeast(0.8)),
        ),
        line("drain_80_per_second", "drain, 80 threads, tasks/s", median(&rate_many), None),
        line(
            "drain_80_ratio",
            "  of 8 threads",
            ratio(&rate_many, &rate_8),
            is_postgres.then_some(AtLeast(0.8)),
        ),
        line(
            "drain_80_of_limit",
            "  of the limit",
            ratio(&rate_many, &limits.limit),
            is_redis.then_some(AtLeast(1.5)),
        ),
        line("free_80_per_second", "without resources, tasks/s", median(&rate_free), None),
        line(
            "free_80_of_limit",
            "  of the limit",
            ratio(&rate_free, &limits.limit),
            is_redis.then_some(AtLeast(4.0)),
        ),
    ];
    if let Some(postgres) = postgres {
        let (of_8, of_many) = (rates(&postgres.drain_8), rates(&postgres.drain_many));
        let best: Series = of_8.iter().zip(&of_many).map(|(a, b)| a.max(*b)).collect();
        lines.extend([
            line(
                "drain_8_of_postgres",
                "drain, 8 threads, of postgres",
                ratio(&rate_8, &of_8),
                Some(AtLeast(0.8)),
            ),
            line(
                "drain_80_of_postgres",
                "drain, 80 threads, of postgres at its best",
                ratio(&rate_many, &best),
                Some(AtLeast(2.3)),
            ),
        ]);
    }
    if let Some(pulpcore) = pulpcore {
        lines.push(line(
            "drain_80_of_pulpcore",
            "drain, 80 threads, of pulpcore",
            ratio(&rate_many, &rates(&pulpcore.drain_many)),
            is_redis.then_some(AtLeast(2.3)),
        ));
    }
    for (drains, names) in [(&fleet.drain_8, PER_TASK_8), (&fleet.drain_many, PER_TASK_80)] {
        for (name, what, figure) in names {
            let value = median(&series(drains, figure));
            // Some figures are of one type only.
            if !value.is_nan() {
                lines.push(line(name, what, value, None));
            }
        }
    }
    lines.extend([
        line(
            "dispatch_idle_per_second",
            "dispatch beside 80 idle threads /s",
            median(&fleet.dispatch_idle),
            None,
        ),
        line(
            "dispatch_idle_ratio",
            "  of the bare INSERT",
            ratio(&fleet.dispatch_idle, &limits.insert),
            Some(AtLeast(0.8)),
        ),
        line(
            "dispatch_busy_per_second",
            "dispatch beside 80 busy threads /s",
            median(&fleet.dispatch_busy),
            None,
        ),
        line(
            "dispatch_busy_ratio",
            "  of the bare INSERT",
            ratio(&fleet.dispatch_busy, &limits.insert),
            Some(AtLeast(0.8)),
        ),
        line(
            "bulk_dispatch_per_second",
            "dispatch in bulk, tasks/s",
            median(&series(&fleet.drain_8, "bulk_dispatch_per_second")),
            Some(AtLeast(50_000.0)),
        ),
        line(
            "insert_p50_ms",
            "bare INSERT at the pace of pickup p50, ms",
            once("insert_p50_ms_1"),
            None,
        ),
        line(
            "pickup_1_p50_ms",
            "pickup p50, 1 thread, ms",
            once("pickup_p50_ms_1"),
            Some(Below(0.7)),
        ),
        line(
            "pickup_1_p99_ms",
            "pickup p99, 1 thread, ms",
            once("pickup_p99_ms_1"),
            Some(Below(2.5)),
        ),
        line(
            "pickup_8_p50_ms",
            "pickup p50, 8 threads, ms",
            once("pickup_p50_ms_8"),
            Some(Below(0.7)),
        ),
        line(
            "pickup_8_p99_ms",
            "pickup p99, 8 threads, ms",
            once("pickup_p99_ms_8"),
            Some(Below(2.5)),
        ),
        line(
            "pickup_80_p50_ms",
            "pickup p50, 80 threads, ms",
            once("pickup_p50_ms_80"),
            Some(Below(0.7)),
        ),
        line(
            "pickup_80_p99_ms",
            "pickup p99, 80 threads, ms",
            once("pickup_p99_ms_80"),
            Some(Below(2.5)),
        ),
        line(
            "cancel_p50_ms",
            "cancel of a running task p50, ms",
            once("cancel_p50_ms"),
            Some(Below(50.0)),
        ),
        line(
            "cancel_max_ms",
            "cancel of a running task max, ms",
            once("cancel_max_ms"),
            Some(Below(50.0)),
        ),
        line(
            "kill_max_ms",
            "worker killed, its task final max, ms",
            once("kill_max_ms"),
            Some(Below(2000.0)),
        ),
        line(
            "command_overhead_ms",
            "a command as a task, beyond a bare spawn, ms",
            once("command_overhead_ms"),
            Some(Below(2.0)),
        ),
        line(
            "burst_ratio_8",
            "burst of 256 x 0.5 s, 8 threads, of the ideal",
            once("burst_ratio_8"),
            Some(Below(1.1)),
        ),
        line("burst_ratio_32", "  32 threads", once("burst_ratio_32"), Some(Below(1.1))),
        line("burst_ratio_80", "  80 threads", once("burst_ratio_80"), Some(Below(1.1))),
        line(
            "old_transaction_ratio",
            "a task beside an old transaction, of one without",
            once("old_transaction_ratio"),
            Some(Below(1.5)),
        ),
        line(
            "blocked_ratio",
            "  behind 20,000 blocked, 1 M finished",
            once("blocked_ratio"),
            Some(Below(1.5)),
        ),
        line(
            "backlog_ratio",
            "  and with 100,000 waiting",
            once("backlog_ratio"),
            Some(Below(1.5)),
        ),
        line(
            "idle_8_statements_per_second",
            "idle, 8 threads: statements/s",
            once("statements_8"),
            Some(Below(2.0)),
        ),
        line("idle_8_cpu_percent", "  % of a core", once("cpu_8"), Some(Below(0.5))),
        line(
            "idle_80_statements_per_second",
            "idle, 80 threads: statements/s",
            once("statements_80"),
            Some(Below(2.0)),
        ),
        line("idle_80_cpu_percent", "  % of a core", once("cpu_80"), Some(Below(0.5))),
        line(
            "memory_8_mib",
            "memory of 8 threads after a drain, MiB",
            median(&series(&fleet.drain_8, "worker_memory_mib")),
            Some(Below(30.0)),
        ),
        line(
            "idle_80_memory_mib",
            "memory of 80 threads, MiB",
            once("memory_80"),
            Some(Below(80.0)),
        ),
    ]);
    if fleet.worker_type == WorkerType::Pulpcore {
        // It is here to be compared with.
        lines.iter_mut().for_each(|line| line.budget = None);
    }
    lines
}

/// What a task costs in a drain.
const PER_TASK_8: [(&str, &str, &str); 5] = [
    ("drain_8_statements", "a task of 8 threads: statements", "statements_per_task"),
    ("drain_8_commits", "  commits", "commits_per_task"),
    ("drain_8_redis_commands", "  Redis commands, those of scripts too", "redis_commands_per_task"),
    ("drain_8_postgres_us", "  Postgres' processor time, us", "postgres_cpu_us_per_task"),
    ("drain_8_redis_us", "  Redis' processor time, us", "redis_cpu_us_per_task"),
];
const PER_TASK_80: [(&str, &str, &str); 5] = [
    ("drain_80_statements", "a task of 80 threads: statements", "statements_per_task"),
    ("drain_80_commits", "  commits", "commits_per_task"),
    (
        "drain_80_redis_commands",
        "  Redis commands, those of scripts too",
        "redis_commands_per_task",
    ),
    ("drain_80_postgres_us", "  Postgres' processor time, us", "postgres_cpu_us_per_task"),
    ("drain_80_redis_us", "  Redis' processor time, us", "redis_cpu_us_per_task"),
];

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
