//! `millhand bench all`: every figure that has a budget, beside the thing that
//! the budget is a ratio to, interleaved in one run.

use std::io::Write;
use std::process::{Command, ExitCode};

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
/// Threads of the large fleet.
const MANY: usize = 80;

/// A figure over the rounds.
type Series = Vec<f64>;

/// What the rounds measured.
#[derive(Default)]
struct Rounds {
    limit: Series,
    drain_8: Series,
    drain_many: Series,
    insert: Series,
    dispatch_idle: Series,
    dispatch_busy: Series,
    bulk: Series,
    memory_8: Series,
    n_violations: u64,
}

/// What is measured once.
struct Single {
    cancels: Series,
    kills: Series,
    command_overhead: f64,
    burst: f64,
}

pub(super) fn run(url: &str, client: &mut Client, load: &Load) -> Result<ExitCode, Failure> {
    let mut rounds = Rounds::default();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        rounds.measure(url, client, load)?;
    }
    eprintln!("pickup, cancel and idle");
    let one = Load { processes: 1, duration: None, tasks: None, ..load.clone() };
    let many = Load { threads: MANY, ..one.clone() };
    let pickup_1 = measure(What::Pickup, url, client, &Load { threads: 1, ..one.clone() })?;
    let pickup_many = measure(What::Pickup, url, client, &many)?;
    let idle = measure(What::Idle, url, client, &many)?;
    eprintln!("command, death, burst and growth");
    let single = Single {
        cancels: single::cancels(url, client, &one)?,
        kills: single::kills(url, client, &one)?,
        command_overhead: single::command_overhead(url, client, &one)?,
        burst: single::burst_ratio(url, client, &one)?,
    };
    let depth = measure(What::Depth, url, client, &one)?;
    let lines = lines(&rounds, &pickup_1, &pickup_many, &idle, &depth, &single);
    let mut out = std::io::stdout().lock();
    if load.json {
        let figures: Map<String, Value> =
            lines.iter().map(|line| (line.name.to_owned(), json!(line.value))).collect();
        writeln!(out, "{}", Value::Object(figures))?;
    } else {
        let rows = lines.iter().map(|line| {
            let verdict = match line.budget {
                Some(budget) if budget.holds(line.value) => "ok",
                Some(_) => "missed",
                None => "",
            };
            let budget = line.budget.map_or(String::new(), |budget| budget.to_string());
            vec![line.what.clone(), line.shown(), budget, verdict.to_owned()]
        });
        writeln!(out, "{}", output::table(&["what", "measured", "budget", ""], rows))?;
        writeln!(out, "oracle: {} violations", rounds.n_violations)?;
    }
    Ok(if rounds.n_violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Rounds {
    fn measure(&mut self, url: &str, client: &mut Client, load: &Load) -> Result<(), Error> {
        let one = Load { processes: 1, duration: None, ..load.clone() };
        execute(client, include_str!("../../../sql/bench/limit_table.sql"))?;
        execute(client, include_str!("../../../sql/bench/limit_rows.sql"))?;
        execute(client, "CHECKPOINT")?;
        self.limit.push(said("limit", pgbench(url, include_str!("../../../sql/bench/limit.sql"))?));
        for (threads, series) in [(8, &mut self.drain_8), (MANY, &mut self.drain_many)] {
            let figures = measure(What::Drain, url, client, &Load { threads, ..one.clone() })?;
            series.push(said(
                &format!("drain, {threads} threads"),
                number(&figures, "tasks_per_second"),
            ));
            if threads == 8 {
                self.memory_8.push(number(&figures, "worker_memory_mib"));
            }
            self.bulk.push(number(&figures, "bulk_dispatch_per_second"));
            self.n_violations += number(&figures, "violations") as u64;
        }
        execute(client, include_str!("../../../sql/bench/limit_table.sql"))?;
        self.insert.push(said(
            "bare INSERT",
            pgbench(url, include_str!("../../../sql/bench/insert.sql"))?,
        ));
        execute(client, "DROP TABLE millhand.bench_limit")?;
        let mut fleet = Fleet::start(url, &Load { threads: MANY, ..one })?;
        fleet.wait_until_online(client)?;
        // One worker is busy, the others idle; then all are busy.
        let blocker =
            NewTask::new("millhand.sleep").args(json!({"seconds": 600})).exclusive("blocked");
        client::dispatch(client, &blocker)?;
        wait_until_running(client, 1)?;
        self.dispatch_idle.push(said(
            "dispatch, idle fleet",
            pgbench(url, include_str!("../../../sql/bench/dispatch.sql"))?,
        ));
        let sleep = NewTask::new("millhand.sleep").args(json!({"seconds": 600}));
        client::dispatch_many(client, &vec![sleep; MANY - 1])?;
        wait_until_running(client, MANY as i64)?;
        self.dispatch_busy.push(said(
            "dispatch, busy fleet",
            pgbench(url, include_str!("../../../sql/bench/dispatch.sql"))?,
        ));
        drop(fleet);
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
    what: String,
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

fn lines(
    rounds: &Rounds,
    pickup_1: &Map<String, Value>,
    pickup_many: &Map<String, Value>,
    idle: &Map<String, Value>,
    depth: &Map<String, Value>,
    single: &Single,
) -> Vec<Line> {
    use Budget::{AtLeast, Below};
    let line =
        |name, what: &str, value, budget| Line { name, what: what.to_owned(), value, budget };
    let ratio = |above: &Series, below: &Series| {
        // Round by round: the machine's speed drifts.
        median(&above.iter().zip(below).map(|(a, b)| a / b).collect())
    };
    vec![
        line(
            "limit_per_second",
            "limit: pgbench, one transaction a task /s",
            median(&rounds.limit),
            None,
        ),
        line("drain_8_per_second", "drain, 8 threads, tasks/s", median(&rounds.drain_8), None),
        line(
            "drain_8_ratio",
            "  of the limit",
            ratio(&rounds.drain_8, &rounds.limit),
            Some(AtLeast(0.8)),
        ),
        line("drain_80_per_second", "drain, 80 threads, tasks/s", median(&rounds.drain_many), None),
        line(
            "drain_80_ratio",
            "  of 8 threads",
            ratio(&rounds.drain_many, &rounds.drain_8),
            Some(AtLeast(0.8)),
        ),
        line(
            "insert_per_second",
            "bare INSERT, one a transaction /s",
            median(&rounds.insert),
            None,
        ),
        line(
            "dispatch_idle_per_second",
            "dispatch beside 80 idle threads /s",
            median(&rounds.dispatch_idle),
            None,
        ),
        line(
            "dispatch_idle_ratio",
            "  of the bare INSERT",
            ratio(&rounds.dispatch_idle, &rounds.insert),
            Some(AtLeast(0.8)),
        ),
        line(
            "dispatch_busy_per_second",
            "dispatch beside 80 busy threads /s",
            median(&rounds.dispatch_busy),
            None,
        ),
        line(
            "dispatch_busy_ratio",
            "  of the bare INSERT",
            ratio(&rounds.dispatch_busy, &rounds.insert),
            Some(AtLeast(0.8)),
        ),
        line(
            "bulk_dispatch_per_second",
            "dispatch in bulk, tasks/s",
            median(&rounds.bulk),
            Some(AtLeast(50_000.0)),
        ),
        line(
            "insert_p50_ms",
            "bare INSERT at the pace of pickup p50, ms",
            number(pickup_1, "insert_p50_ms"),
            None,
        ),
        line(
            "pickup_1_p50_ms",
            "pickup p50, 1 thread, ms",
            number(pickup_1, "pickup_p50_ms"),
            Some(Below(0.7)),
        ),
        line(
            "pickup_1_p99_ms",
            "pickup p99, 1 thread, ms",
            number(pickup_1, "pickup_p99_ms"),
            Some(Below(2.5)),
        ),
        line(
            "pickup_80_p50_ms",
            "pickup p50, 80 threads, ms",
            number(pickup_many, "pickup_p50_ms"),
            Some(Below(0.7)),
        ),
        line(
            "pickup_80_p99_ms",
            "pickup p99, 80 threads, ms",
            number(pickup_many, "pickup_p99_ms"),
            Some(Below(2.5)),
        ),
        line(
            "cancel_p50_ms",
            "cancel of a running task p50, ms",
            percentile(&single.cancels, 0.5),
            Some(Below(50.0)),
        ),
        line(
            "cancel_max_ms",
            "cancel of a running task max, ms",
            percentile(&single.cancels, 1.0),
            Some(Below(50.0)),
        ),
        line(
            "kill_max_ms",
            "worker killed, its task final max, ms",
            percentile(&single.kills, 1.0),
            Some(Below(2000.0)),
        ),
        line(
            "command_overhead_ms",
            "a command as a task, beyond a bare spawn, ms",
            single.command_overhead,
            Some(Below(2.0)),
        ),
        line(
            "burst_ratio",
            "burst of 256 x 0.5 s, 32 threads, of the ideal",
            single.burst,
            Some(Below(1.1)),
        ),
        line(
            "old_transaction_ratio",
            "a task beside an old transaction, of one without",
            number(depth, "old_transaction_ratio"),
            Some(Below(1.5)),
        ),
        line(
            "blocked_ratio",
            "  behind 20,000 blocked, 1 M finished",
            number(depth, "blocked_ratio"),
            Some(Below(1.5)),
        ),
        line(
            "backlog_ratio",
            "  and with 100,000 waiting",
            number(depth, "backlog_ratio"),
            Some(Below(1.5)),
        ),
        line(
            "idle_statements_per_second",
            "idle, 80 threads: statements/s",
            number(idle, "statements_per_second"),
            Some(Below(2.0)),
        ),
        line(
            "idle_cpu_percent",
            "idle, 80 threads: % of a core",
            number(idle, "worker_cpu_percent") + number(idle, "postgres_cpu_percent"),
            Some(Below(0.5)),
        ),
        line(
            "memory_8_mib",
            "memory of 8 threads after a drain, MiB",
            median(&rounds.memory_8),
            Some(Below(30.0)),
        ),
        line(
            "idle_memory_mib",
            "memory of 80 threads, MiB",
            number(idle, "worker_memory_mib"),
            Some(Below(80.0)),
        ),
    ]
}

fn median(series: &Series) -> f64 {
    let mut sorted = series.clone();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.5)
}

pub(super) fn number(figures: &Map<String, Value>, name: &str) -> f64 {
    figures.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN)
}
