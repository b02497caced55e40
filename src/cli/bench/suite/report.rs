//! The lines of the report: what was measured, beside its budget.

use std::fmt;

use millhand::config::WorkerType;

use super::{Figures, Limits, Measured, Series, median, number, series};

use Budget::{AtLeast, Below};

/// A floor or a ceiling.
#[derive(Clone, Copy)]
pub(super) enum Budget {
    AtLeast(f64),
    Below(f64),
}

impl Budget {
    fn holds(self, value: f64) -> bool {
        match self {
            AtLeast(floor) => value >= floor,
            Below(ceiling) => value < ceiling,
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AtLeast(floor) => write!(f, ">= {floor}"),
            Below(ceiling) => write!(f, "< {ceiling}"),
        }
    }
}

/// One line of the report.
pub(super) struct Line {
    /// In JSON.
    pub(super) name: String,
    what: String,
    pub(super) value: f64,
    budget: Option<Budget>,
}

impl Line {
    fn new(name: &str, what: &str, value: f64, budget: Option<Budget>) -> Line {
        Line { name: name.to_owned(), what: what.to_owned(), value, budget }
    }

    /// What it is, the figure, its budget, and whether that holds.
    pub(super) fn row(&self) -> Vec<String> {
        let value = match self.value {
            value if value >= 1000.0 => format!("{value:.0}"),
            value => format!("{value:.2}"),
        };
        let verdict = match self.budget {
            Some(budget) if budget.holds(self.value) => "ok",
            Some(_) => "missed",
            None => "",
        };
        let budget = self.budget.map_or(String::new(), |budget| budget.to_string());
        vec![self.what.clone(), value, budget, verdict.to_owned()]
    }
}

/// Everything about one type, beside the others that were measured in the same run.
pub(super) fn lines(fleet: &Measured, all: &[Measured], limits: &Limits) -> Vec<Line> {
    let mut lines = Vec::from(drains(fleet, limits));
    lines.extend(comparisons(fleet, all));
    lines.extend(costs(8, &fleet.drain_8));
    lines.extend(costs(80, &fleet.drain_many));
    lines.extend(dispatches(fleet, limits));
    lines.extend(
        ONCE.iter().map(|(name, what, budget)| {
            Line::new(name, what, number(&fleet.single, name), *budget)
        }),
    );
    if fleet.worker_type == WorkerType::Pulpcore {
        // It is here to be compared with.
        lines.iter_mut().for_each(|line| line.budget = None);
    }
    lines
}

fn drains(fleet: &Measured, limits: &Limits) -> [Line; 7] {
    let of = |worker_type, budget| (fleet.worker_type == worker_type).then_some(budget);
    let (few, many, free) =
        (rates(&fleet.drain_8), rates(&fleet.drain_many), rates(&fleet.drain_free));
    let limit = &limits.limit;
    let (postgres, redis) = (WorkerType::Postgres, WorkerType::Redis);
    [
        Line::new("drain_8_per_second", "drain, 8 threads, tasks/s", median(&few), None),
        Line::new(
            "drain_8_ratio",
            "  of the limit",
            ratio(&few, limit),
            of(postgres, AtLeast(0.8)),
        ),
        Line::new("drain_80_per_second", "drain, 80 threads, tasks/s", median(&many), None),
        Line::new(
            "drain_80_ratio",
            "  of 8 threads",
            ratio(&many, &few),
            of(postgres, AtLeast(0.8)),
        ),
        Line::new(
            "drain_80_of_limit",
            "  of the limit",
            ratio(&many, limit),
            of(redis, AtLeast(1.5)),
        ),
        Line::new("free_80_per_second", "without resources, tasks/s", median(&free), None),
        Line::new(
            "free_80_of_limit",
            "  of the limit",
            ratio(&free, limit),
            of(redis, AtLeast(4.0)),
        ),
    ]
}

/// With the other types, if they were measured as well.
fn comparisons(fleet: &Measured, all: &[Measured]) -> Vec<Line> {
    let is_redis = fleet.worker_type == WorkerType::Redis;
    let other = |worker_type| {
        all.iter().find(|of| of.worker_type == worker_type && fleet.worker_type != worker_type)
    };
    let (few, many) = (rates(&fleet.drain_8), rates(&fleet.drain_many));
    let mut lines = Vec::new();
    if let Some(postgres) = other(WorkerType::Postgres).filter(|_| is_redis) {
        let (of_few, of_many) = (rates(&postgres.drain_8), rates(&postgres.drain_many));
        let best: Series = of_few.iter().zip(&of_many).map(|(a, b)| a.max(*b)).collect();
        lines.extend([
            Line::new(
                "drain_8_of_postgres",
                "drain, 8 threads, of postgres",
                ratio(&few, &of_few),
                Some(AtLeast(0.8)),
            ),
            Line::new(
                "drain_80_of_postgres",
                "drain, 80 threads, of postgres at its best",
                ratio(&many, &best),
                Some(AtLeast(2.3)),
            ),
        ]);
    }
    if let Some(pulpcore) = other(WorkerType::Pulpcore) {
        lines.push(Line::new(
            "drain_80_of_pulpcore",
            "drain, 80 threads, of pulpcore",
            ratio(&many, &rates(&pulpcore.drain_many)),
            is_redis.then_some(AtLeast(2.3)),
        ));
    }
    lines
}

/// What a task costs in a drain; some figures are of one type only.
const COSTS: [(&str, &str, &str); 5] = [
    ("statements", "statements", "statements_per_task"),
    ("commits", "commits", "commits_per_task"),
    ("redis_commands", "Redis commands, those of scripts too", "redis_commands_per_task"),
    ("postgres_us", "Postgres' processor time, us", "postgres_cpu_us_per_task"),
    ("redis_us", "Redis' processor time, us", "redis_cpu_us_per_task"),
];

fn costs(n_threads: u32, drains: &[Figures]) -> Vec<Line> {
    let measured = COSTS.iter().filter_map(|(name, what, figure)| {
        let value = median(&series(drains, figure));
        (!value.is_nan())
            .then(|| Line::new(&format!("drain_{n_threads}_{name}"), what, value, None))
    });
    let mut lines: Vec<Line> = measured.collect();
    for (n, line) in lines.iter_mut().enumerate() {
        line.what = match n {
            0 => format!("a task of {n_threads} threads: {}", line.what),
            _ => format!("  {}", line.what),
        };
    }
    lines
}

fn dispatches(fleet: &Measured, limits: &Limits) -> [Line; 6] {
    let (idle, busy) = (&fleet.dispatch_idle, &fleet.dispatch_busy);
    let of_drain = |figure| median(&series(&fleet.drain_8, figure));
    let of_the_insert = |name, above| {
        Line::new(name, "  of the bare INSERT", ratio(above, &limits.insert), Some(AtLeast(0.8)))
    };
    [
        Line::new(
            "dispatch_idle_per_second",
            "dispatch beside 80 idle threads /s",
            median(idle),
            None,
        ),
        of_the_insert("dispatch_idle_ratio", idle),
        Line::new(
            "dispatch_busy_per_second",
            "dispatch beside 80 busy threads /s",
            median(busy),
            None,
        ),
        of_the_insert("dispatch_busy_ratio", busy),
        Line::new(
            "bulk_dispatch_per_second",
            "dispatch in bulk, tasks/s",
            of_drain("bulk_dispatch_per_second"),
            Some(AtLeast(50_000.0)),
        ),
        Line::new(
            "memory_8_mib",
            "memory of 8 threads after a drain, MiB",
            of_drain("worker_memory_mib"),
            Some(Below(30.0)),
        ),
    ]
}

/// What is measured once.
const ONCE: [(&str, &str, Option<Budget>); 22] = [
    ("insert_1_p50_ms", "bare INSERT at the pace of pickup p50, ms", None),
    ("pickup_1_p50_ms", "pickup p50, 1 thread, ms", Some(Below(0.7))),
    ("pickup_1_p99_ms", "pickup p99, 1 thread, ms", Some(Below(2.5))),
    ("pickup_8_p50_ms", "pickup p50, 8 threads, ms", Some(Below(0.7))),
    ("pickup_8_p99_ms", "pickup p99, 8 threads, ms", Some(Below(2.5))),
    ("pickup_80_p50_ms", "pickup p50, 80 threads, ms", Some(Below(0.7))),
    ("pickup_80_p99_ms", "pickup p99, 80 threads, ms", Some(Below(2.5))),
    ("cancel_p50_ms", "cancel of a running task p50, ms", Some(Below(50.0))),
    ("cancel_max_ms", "cancel of a running task max, ms", Some(Below(50.0))),
    ("kill_max_ms", "worker killed, its task final max, ms", Some(Below(2000.0))),
    ("command_overhead_ms", "a command as a task, beyond a bare spawn, ms", Some(Below(2.0))),
    ("burst_ratio_8", "burst of 256 x 0.5 s, 8 threads, of the ideal", Some(Below(1.1))),
    ("burst_ratio_32", "  32 threads", Some(Below(1.1))),
    ("burst_ratio_80", "  80 threads", Some(Below(1.1))),
    (
        "old_transaction_ratio",
        "a task beside an old transaction, of one on an empty table",
        Some(Below(1.5)),
    ),
    ("blocked_ratio", "  without it, behind 20,000 blocked", Some(Below(1.5))),
    ("backlog_ratio", "  behind 100,000 blocked", Some(Below(1.5))),
    ("idle_8_statements_per_second", "idle, 8 threads: statements/s", Some(Below(2.0))),
    ("idle_8_cpu_percent", "  % of a core", Some(Below(0.5))),
    ("idle_80_statements_per_second", "idle, 80 threads: statements/s", Some(Below(2.0))),
    ("idle_80_cpu_percent", "  % of a core", Some(Below(0.5))),
    ("idle_80_memory_mib", "  memory, MiB", Some(Below(80.0))),
];

/// Round by round: the machine's speed drifts.
fn ratio(above: &Series, below: &Series) -> f64 {
    median(&above.iter().zip(below).map(|(a, b)| a / b).collect())
}

fn rates(drains: &[Figures]) -> Series {
    series(drains, "tasks_per_second")
}
