//! What a run cost: the server's counters and the kernel's, before and after.

use std::time::Instant;

use millhand::Error;
use millhand::config::WorkerType;
use postgres::Client;
use serde_json::{Map, Value, json};

use super::Load;
use super::fleet::Fleet;

/// Counters at one moment.
struct Reading {
    at: Instant,
    commits: i64,
    wal_bytes: i64,
    /// Processor seconds of Postgres; none if it runs elsewhere.
    postgres_cpu: Option<f64>,
    redis: Option<RedisReading>,
}

/// Counters of Redis.
struct RedisReading {
    commands: f64,
    /// Processor seconds.
    cpu: f64,
}

pub(super) struct Meter {
    redis: Option<redis::Connection>,
    before: Reading,
    worker_cpu: f64,
    counts_statements: bool,
}

impl Meter {
    /// Starts from here. Workers of `fleet` run already; others count from
    /// their start.
    pub(super) fn start(
        client: &mut Client,
        load: &Load,
        fleet: Option<&Fleet>,
    ) -> Result<Meter, Error> {
        // A figure that a server does not give is left out.
        let url = load.redis_url.as_ref().filter(|_| load.worker_type() == WorkerType::Redis);
        let mut redis =
            url.and_then(|url| redis::Client::open(url.as_str()).ok()?.get_connection().ok());
        // Without the library the figure is left out.
        let counts_statements = client
            .batch_execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            .and_then(|()| client.batch_execute("SELECT pg_stat_statements_reset()"))
            .is_ok();
        Ok(Meter {
            before: read(client, redis.as_mut())?,
            redis,
            worker_cpu: fleet.map_or(0.0, worker_cpu),
            counts_statements,
        })
    }

    /// Figures since the start. Call it while the workers still run.
    pub(super) fn stop(
        &mut self,
        client: &mut Client,
        fleet: &Fleet,
    ) -> Result<Map<String, Value>, Error> {
        let after = read(client, self.redis.as_mut())?;
        let fail = |error| Error::postgres("could not read the figures", error);
        let row =
            client.query_one(include_str!("../../../sql/bench/finished.sql"), &[]).map_err(fail)?;
        let n_tasks: i64 = row.get("n_tasks");
        let seconds: f64 = row.get("seconds");
        let watched = (after.at - self.before.at).as_secs_f64();
        let mut figures = Map::new();
        figures.insert("tasks".to_owned(), json!(n_tasks));
        figures.insert("seconds".to_owned(), json!(seconds));
        figures.insert("seconds_watched".to_owned(), json!(watched));
        if n_tasks > 0 {
            figures.insert("tasks_per_second".to_owned(), json!(n_tasks as f64 / seconds));
        }
        // Of a second if nothing was done, else of a task.
        let (per, share) = if n_tasks > 0 { ("task", n_tasks as f64) } else { ("second", watched) };
        if self.counts_statements {
            let n_statements: i64 = client
                .query_one(include_str!("../../../sql/bench/statements.sql"), &[])
                .map_err(fail)?
                .get(0);
            figures.insert(format!("statements_per_{per}"), json!(n_statements as f64 / share));
        }
        let commits = after.commits - self.before.commits;
        figures.insert(format!("commits_per_{per}"), json!(commits as f64 / share));
        let wal_bytes = after.wal_bytes - self.before.wal_bytes;
        figures.insert(format!("wal_bytes_per_{per}"), json!(wal_bytes as f64 / share));
        let (unit, scale) = if n_tasks > 0 { ("us_per_task", 1e6) } else { ("percent", 100.0) };
        let worker_seconds = worker_cpu(fleet) - self.worker_cpu;
        figures.insert(format!("worker_cpu_{unit}"), json!(worker_seconds * scale / share));
        if let (Some(before), Some(after)) = (self.before.postgres_cpu, after.postgres_cpu) {
            figures.insert(format!("postgres_cpu_{unit}"), json!((after - before) * scale / share));
        }
        if let (Some(before), Some(after)) = (&self.before.redis, after.redis) {
            let n_commands = after.commands - before.commands;
            figures.insert(format!("redis_commands_per_{per}"), json!(n_commands / share));
            let cpu = after.cpu - before.cpu;
            figures.insert(format!("redis_cpu_{unit}"), json!(cpu * scale / share));
        }
        let memory: f64 = fleet.pids().iter().filter_map(|pid| resident_mib(*pid)).sum();
        figures.insert("worker_memory_mib".to_owned(), json!(memory));
        Ok(figures)
    }

    /// Processor seconds of Postgres since the start; not a number if it runs
    /// elsewhere.
    pub(super) fn postgres_cpu(&mut self, client: &mut Client) -> Result<f64, Error> {
        let after = read(client, None)?.postgres_cpu;
        Ok(after.zip(self.before.postgres_cpu).map_or(f64::NAN, |(after, before)| after - before))
    }
}

/// What Redis says of itself; none if it does not tell.
fn read_redis(connection: &mut redis::Connection) -> Option<RedisReading> {
    let mut ask = |section: &str| -> Option<String> {
        redis::cmd("INFO").arg(section).query(connection).ok()
    };
    let (stats, cpu) = (ask("stats")?, ask("cpu")?);
    let number = |text: &str, name: &str| -> Option<f64> {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok();
        text.lines().find_map(value)
    };
    Some(RedisReading {
        commands: number(&stats, "total_commands_processed")?,
        cpu: number(&cpu, "used_cpu_sys")? + number(&cpu, "used_cpu_user")?,
    })
}

fn read(client: &mut Client, redis: Option<&mut redis::Connection>) -> Result<Reading, Error> {
    let row = client
        .query_one(include_str!("../../../sql/bench/counters.sql"), &[])
        .map_err(|error| Error::postgres("could not read the server's counters", error))?;
    Ok(Reading {
        at: Instant::now(),
        commits: row.get("commits"),
        wal_bytes: row.get("wal_bytes"),
        redis: redis.and_then(read_redis),
        postgres_cpu: postgres_cpu(row.get::<_, i32>("pid").cast_unsigned()),
    })
}

fn worker_cpu(fleet: &Fleet) -> f64 {
    fleet.pids().iter().filter_map(|pid| cpu_seconds(*pid)).map(|cpu| cpu.own).sum()
}

struct Cpu {
    comm: String,
    parent: u32,
    own: f64,
    /// Of children that have ended.
    children: f64,
}

/// Processor seconds of a process, from /proc (proc(5): fields 4, 14 to 17,
/// counted in ticks of 10 ms).
fn cpu_seconds(pid: u32) -> Option<Cpu> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    let comm = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Cpu {
        comm,
        parent: fields.get(1)?.parse().ok()?,
        own: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND,
        children: (ticks(13)? + ticks(14)?) / TICKS_PER_SECOND,
    })
}

/// Processor seconds of the whole server that this backend belongs to, if it
/// runs on this machine.
fn postgres_cpu(backend: u32) -> Option<f64> {
    let postmaster = cpu_seconds(backend).filter(|cpu| cpu.comm == "postgres")?.parent;
    let server = cpu_seconds(postmaster)?;
    let mut seconds = server.own + server.children;
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(cpu) = pid.and_then(cpu_seconds).filter(|cpu| cpu.parent == postmaster) {
            seconds += cpu.own;
        }
    }
    Some(seconds)
}

fn resident_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()? / 1024.0)
}

/// The value below which this share of the sorted values lies.
pub(super) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let index = (share * last as f64).round() as usize;
    sorted[index.min(last)]
}
