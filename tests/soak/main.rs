//! A soak: random tasks, random cancels and random faults for minutes, judged at the end.
//!
//! `make soak-faults MINUTES=10 TYPE=redis SEED=7` runs it; all that happens at random
//! follows from the seed, though not the moments at which it happens.
//! `WITHOUT="kill a worker,descendants"` leaves out some of it, to find out what it takes
//! to break something; the summary says what there is.

#![allow(clippy::unwrap_used, reason = "a panic is how a soak fails")]

mod faults;
mod handler;
mod judge;
mod load;
mod network;
mod site;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use millhand::TaskId;

use faults::Fate;
use judge::Verdict;
use load::Load;
use site::{Site, Way};
use support::WORKER_TYPES;

/// How often it says that it goes on.
const PROGRESS: Duration = Duration::from_secs(10);

/// Of violations, as many are printed.
const MOST_PRINTED: usize = 40;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["handler"] => return handler::run(),
        ["left", word] => return handler::be_left(word),
        _ => {}
    }
    let setting = |name: &str| {
        let value = std::env::var(format!("MILLHAND_SOAK_{name}")).unwrap_or_default();
        if value.is_empty() { None } else { Some(value) }
    };
    // All tests of all targets are run without it.
    let Some(minutes) = setting("MINUTES") else {
        eprintln!("no soak without MILLHAND_SOAK_MINUTES; see `make soak-faults`");
        return ExitCode::SUCCESS;
    };
    let minutes: f64 = minutes.parse().expect("MILLHAND_SOAK_MINUTES is a number");
    let seed = setting("SEED").map(|seed| seed.parse().expect("MILLHAND_SOAK_SEED is a number"));
    let seed = seed.unwrap_or_else(|| support::random() >> 16);
    let types: Vec<&'static str> = match setting("TYPE") {
        None => WORKER_TYPES.to_vec(),
        Some(name) => WORKER_TYPES.into_iter().filter(|known| *known == name).collect(),
    };
    assert!(!types.is_empty(), "MILLHAND_SOAK_TYPE is none of {WORKER_TYPES:?}");
    println!("seed {seed}");
    let without = setting("WITHOUT").unwrap_or_default();
    let without: Vec<&str> = without.split(',').filter(|name| !name.is_empty()).collect();
    let span = Duration::from_secs_f64(minutes * 60.0 / types.len() as f64);
    let sound = types.iter().filter(|worker_type| soak(worker_type, span, seed, &without)).count();
    if sound == types.len() {
        return ExitCode::SUCCESS;
    }
    println!("seed {seed} broke something");
    ExitCode::FAILURE
}

/// Whether all was well.
fn soak(worker_type: &'static str, span: Duration, seed: u64, without: &[&str]) -> bool {
    let mut site = Site::new(worker_type);
    let means = match site.way {
        Way::Network(_) => "namespaces",
        Way::Proxies(_) => "proxies",
    };
    println!("{worker_type}: for {} s, networks are parted by {means}", span.as_secs());
    let load = Load::new(&site, !without.contains(&"descendants"));
    let people = load.start(seed);
    let mut fate = Fate::new(seed, without);
    let (began, mut said) = (Instant::now(), Instant::now());
    while began.elapsed() < span {
        fate.strike(&mut site);
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            let n_faults: u32 = fate.counts.values().sum();
            let n_tasks = load.ids().len();
            let n_left = judge::count_unfinished(&site).unwrap_or(-1);
            println!(
                "{worker_type}: {} s, {n_tasks} tasks, {n_left} unfinished, {n_faults} faults",
                began.elapsed().as_secs()
            );
        }
    }
    load.end();
    fate.cure_all(&mut site);
    for person in people {
        person.join().unwrap();
    }
    let ended = judge::wait_for_the_end(&mut site);
    site.close();
    let confirmed = load.ids().clone();
    let mut verdict = judge::judge(&site, &confirmed);
    verdict.violations.extend(ended.err());
    println!("{worker_type}: {} tasks in {} s", verdict.tasks.len(), began.elapsed().as_secs());
    for (end, n) in &verdict.ends {
        println!("    {n:6} {end}");
    }
    let faults: Vec<String> = fate.counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
    println!("    faults: {}", faults.join(", "));
    println!("    {} working directories left", judge::count_directories(&site));
    if verdict.violations.is_empty() {
        println!("{worker_type}: sound");
        return true;
    }
    print_violations(&verdict);
    site.folder.disable_cleanup(true);
    for slot in &site.slots {
        println!("    log {}", slot.log.display());
    }
    println!("    journal {}", site.folder.path().join("journal").display());
    false
}

fn print_violations(verdict: &Verdict) {
    println!("{} violations", verdict.violations.len());
    let mut concerned = BTreeSet::new();
    for violation in verdict.violations.iter().take(MOST_PRINTED) {
        println!("  {violation}");
        let words: Vec<&str> = violation.split_whitespace().collect();
        // A line of the journal names its task in the second place, all else after `task`.
        let named = words.windows(2).enumerate().filter(|(n, pair)| *n == 0 || pair[0] == "task");
        concerned.extend(named.filter_map(|(_, pair)| pair[1].parse().ok()).map(TaskId));
    }
    for task in verdict.tasks.iter().filter(|task| concerned.contains(&task.id)) {
        println!(
            "  {} {} {} position {:?} exclusive {:?} shared {:?} fence {:?} worker {:?} started \
             {:?} finished {:?} error {:?}",
            task.id,
            task.name,
            task.state,
            task.position,
            task.exclusive,
            task.shared,
            task.fence,
            task.worker,
            task.started_at.map(|time| time.to_string()),
            task.finished_at.map(|time| time.to_string()),
            task.error
        );
    }
}
