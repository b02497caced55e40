//! What befalls the workers and their servers, at random.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use millhand::db;
use rustix::process::{Pid, Signal};

use crate::handler::variable;
use crate::network::Cut;
use crate::site::{LEASE, MAX_CONNECTIONS, Site, TTL};
use crate::support::process::{children_of, server_processes, signal_all};

/// How to make up for a fault.
#[derive(Debug)]
enum Cure {
    Thaw(Vec<Pid>),
    Join(usize),
    /// Makes room in a working directory.
    Empty(usize),
}

/// Whom a fault of processes befalls.
#[derive(Debug, Clone, Copy)]
enum Whom {
    Worker,
    Warden,
    Both,
}

type Fault = (&'static str, u32, fn(&mut Fate, &mut Site));

/// Each with how often it comes, compared with the others.
const FAULTS: [Fault; 19] = [
    ("kill a worker", 4, |fate, site| fate.kill(site, Whom::Worker)),
    ("kill a warden", 3, |fate, site| fate.kill(site, Whom::Warden)),
    ("kill worker and warden", 3, |fate, site| fate.kill(site, Whom::Both)),
    ("kill a command", 4, Fate::kill_command),
    ("freeze a worker", 4, |fate, site| fate.freeze(site, Whom::Worker)),
    ("freeze a warden", 2, |fate, site| fate.freeze(site, Whom::Warden)),
    ("freeze worker and warden", 3, |fate, site| fate.freeze(site, Whom::Both)),
    ("stop a worker", 3, Fate::stop),
    ("end all sessions", 2, |_, site| end_sessions(site, "true")),
    ("end some sessions", 3, |_, site| end_sessions(site, "random() < 0.3")),
    ("freeze Postgres", 3, Fate::freeze_postgres),
    ("restart Postgres", 2, Fate::restart_postgres),
    ("read-only Postgres", 2, Fate::forbid_writing),
    ("freeze a session", 2, Fate::freeze_session),
    ("out of connections", 2, Fate::use_up_connections),
    ("Redis", 5, Fate::harm_redis),
    ("network", 5, Fate::part),
    ("full working directory", 2, Fate::fill_work),
    ("rows aged", 3, |_, site| age_rows(site)),
];

/// Chooses faults, and makes up for them in time.
pub(crate) struct Fate {
    rng: Rng,
    without: Vec<String>,
    cures: Vec<(Instant, Cure)>,
    /// How often each fault came.
    pub(crate) counts: BTreeMap<&'static str, u32>,
}

impl Fate {
    /// Some faults may be left out.
    pub(crate) fn new(seed: u64, without: &[&str]) -> Fate {
        Fate {
            rng: Rng::with_seed(seed),
            without: without.iter().map(|name| (*name).to_owned()).collect(),
            cures: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Lets one thing happen, and rests.
    pub(crate) fn strike(&mut self, site: &mut Site) {
        let possible = |fault: &&Fault| match fault.0 {
            name if self.without.iter().any(|other| other == name) => false,
            "Redis" => site.worker_type == "redis",
            "full working directory" => site.slots[0].work_is_small,
            _ => true,
        };
        let faults: Vec<&Fault> = FAULTS.iter().filter(possible).collect();
        let n_tickets: u32 = faults.iter().map(|fault| fault.1).sum();
        let mut ticket = self.rng.u32(..n_tickets);
        let chosen = faults.iter().find(|fault| match ticket.checked_sub(fault.1) {
            Some(rest) => {
                ticket = rest;
                false
            }
            None => true,
        });
        let (name, _, befall) = chosen.unwrap();
        *self.counts.entry(name).or_default() += 1;
        befall(self, site);
        let rest = self.millis(100..1500);
        self.rest(site, rest);
    }

    /// Rests, and meanwhile makes up for what is due and starts anew what has ended.
    fn rest(&mut self, site: &mut Site, span: Duration) {
        let end = Instant::now() + span;
        while Instant::now() < end {
            self.cure(site, Instant::now());
            site.tend();
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes up for everything.
    pub(crate) fn cure_all(&mut self, site: &mut Site) {
        self.cure(site, Instant::now() + Duration::from_secs(3600));
    }

    fn cure(&mut self, site: &mut Site, now: Instant) {
        while let Some(index) = self.cures.iter().position(|(due, _)| *due <= now) {
            match self.cures.swap_remove(index).1 {
                Cure::Thaw(pids) => signal_all(&pids, Signal::CONT),
                Cure::Join(number) => site.join(number),
                Cure::Empty(number) => {
                    let _ = fs::remove_dir_all(site.slots[number].work.join("filler"));
                }
            }
        }
    }

    fn later(&mut self, span: Duration, cure: Cure) {
        self.cures.push((Instant::now() + span, cure));
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.u64(range))
    }

    /// Less or more than a ttl.
    fn around_the_ttl(&mut self) -> Duration {
        TTL.mul_f64(0.1 + 2.4 * self.rng.f64())
    }

    fn slot(&mut self, site: &Site) -> usize {
        self.rng.usize(..site.slots.len())
    }

    fn choose(&mut self, site: &Site, whom: Whom) -> Vec<Pid> {
        let slot = &site.slots[self.slot(site)];
        let (worker, warden) = (slot.pid(), slot.warden());
        let mut pids: Vec<Pid> = match whom {
            Whom::Worker => worker.into_iter().collect(),
            Whom::Warden => warden.into_iter().collect(),
            Whom::Both => worker.into_iter().chain(warden).collect(),
        };
        self.rng.shuffle(&mut pids);
        pids
    }

    fn kill(&mut self, site: &mut Site, whom: Whom) {
        signal_all(&self.choose(site, whom), Signal::KILL);
    }

    fn freeze(&mut self, site: &mut Site, whom: Whom) {
        let pids = self.choose(site, whom);
        signal_all(&pids, Signal::STOP);
        let span = self.around_the_ttl();
        self.later(span, Cure::Thaw(pids));
    }

    fn kill_command(&mut self, site: &mut Site) {
        let slot = self.slot(site);
        let Some(worker) = site.slots[slot].pid() else { return };
        let mut commands = children_of(worker.as_raw_nonzero().get().cast_unsigned());
        commands.retain(|pid| {
            let environ = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero()));
            environ.is_ok_and(|environ| variable(&environ, "MILLHAND_TASK_ID").is_some())
        });
        if let Some(pid) = self.rng.choice(commands) {
            signal_all(&[pid], Signal::KILL);
        }
    }

    fn stop(&mut self, site: &mut Site) {
        let slot = self.slot(site);
        let signal = if self.rng.bool() { Signal::TERM } else { Signal::INT };
        site.slots[slot].signal(signal);
    }

    /// Half a lease to one and a half, so that it ends in some cases and does not in
    /// others, and in some just then.
    fn freeze_postgres(&mut self, site: &mut Site) {
        let pids = server_processes(&site.postgres);
        signal_all(&pids, Signal::STOP);
        let span = LEASE.mul_f64(0.5 + self.rng.f64());
        self.rest(site, span);
        signal_all(&pids, Signal::CONT);
    }

    fn restart_postgres(&mut self, site: &mut Site) {
        if self.rng.bool() {
            site.postgres.stop_hard();
        } else {
            site.postgres.kill_hard();
        }
        let span = self.millis(0..1000);
        self.rest(site, span);
        site.postgres.start_again().unwrap();
    }

    fn forbid_writing(&mut self, site: &mut Site) {
        let change = |site: &Site, statement: &str| {
            if let Ok(mut admin) = db::connect(&site.database.url(), "fate") {
                let _ = admin.execute(statement, &[]);
                let _ = admin.execute("SELECT pg_reload_conf()", &[]);
            }
        };
        change(site, "ALTER SYSTEM SET default_transaction_read_only = on");
        let span = self.millis(200..1500);
        self.rest(site, span);
        change(site, "ALTER SYSTEM RESET default_transaction_read_only");
    }

    fn freeze_session(&mut self, site: &mut Site) {
        let query = "SELECT pid FROM pg_stat_activity
                      WHERE datname = current_database() AND application_name LIKE 'millhand%'";
        let Ok(mut admin) = db::connect(&site.database.url(), "fate") else { return };
        let Ok(rows) = admin.query(query, &[]) else { return };
        let Some(row) = self.rng.choice(&rows) else { return };
        let pid = Pid::from_raw(row.get(0)).unwrap();
        signal_all(&[pid], Signal::STOP);
        let span = self.around_the_ttl();
        self.later(span, Cure::Thaw(vec![pid]));
    }

    fn use_up_connections(&mut self, site: &mut Site) {
        let url = site.database.url();
        let hold = (0..MAX_CONNECTIONS).map_while(|_| db::connect(&url, "fate").ok());
        let held: Vec<_> = hold.collect();
        // Whoever loses a connection now does not get another one.
        end_sessions(site, "application_name LIKE 'millhand%' AND random() < 0.3");
        let span = self.millis(200..1500);
        self.rest(site, span);
        drop(held);
    }

    fn harm_redis(&mut self, site: &mut Site) {
        match self.rng.u8(..5) {
            0 => {
                let connection = redis::Client::open(site.redis.url())
                    .and_then(|client| client.get_connection());
                if let Ok(mut connection) = connection {
                    let _ = redis::cmd("FLUSHALL").exec(&mut connection);
                }
            }
            1 => site.workshop.redis.kill_clients("normal"),
            2 => site.workshop.redis.kill_clients("pubsub"),
            3 => {
                site.redis.kill_hard();
                let span = self.millis(0..2000);
                self.rest(site, span);
                site.redis.start_again().unwrap();
            }
            _ => {
                let pid = Pid::from_raw(site.redis.pid().unwrap().cast_signed()).unwrap();
                signal_all(&[pid], Signal::STOP);
                let span = self.around_the_ttl();
                self.rest(site, span);
                signal_all(&[pid], Signal::CONT);
            }
        }
    }

    /// Parts a worker from servers, for less or more than three times the ttl, or again
    /// and again.
    fn part(&mut self, site: &mut Site) {
        let number = self.slot(site);
        let cut = Cut::KINDS[self.rng.usize(..Cut::KINDS.len())];
        if self.rng.u8(..4) == 0 {
            for _ in 0..self.rng.u8(2..8) {
                site.part(number, cut);
                let span = self.millis(20..400);
                self.rest(site, span);
                site.join(number);
                let span = self.millis(20..400);
                self.rest(site, span);
            }
            return;
        }
        site.part(number, cut);
        let span = TTL.mul_f64(0.2 + 3.3 * self.rng.f64());
        self.later(span, Cure::Join(number));
    }

    /// Has one worker find no room for working directories.
    fn fill_work(&mut self, site: &mut Site) {
        let number = self.slot(site);
        let filler = site.slots[number].work.join("filler");
        if fs::create_dir(&filler).is_ok() {
            let mut n = 0;
            while fs::create_dir(filler.join(n.to_string())).is_ok() {
                n += 1;
            }
        }
        let span = self.millis(300..3000);
        self.later(span, Cure::Empty(number));
    }
}

fn end_sessions(site: &mut Site, condition: &str) {
    if let Ok(mut admin) = db::connect(&site.database.url(), "fate") {
        let query = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        );
        let _ = admin.execute(&query, &[]);
    }
}

/// As if the clock of the database had gone forward: that is no reason to take anybody
/// for dead.
fn age_rows(site: &mut Site) {
    if let Ok(mut admin) = db::connect(&site.database.url(), "fate") {
        let _ = admin.execute(
            "UPDATE millhand.worker SET last_heartbeat = last_heartbeat - interval '1 hour'",
            &[],
        );
    }
}
