//! What must hold when everything has healed and all tasks have ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use millhand::client::TaskFilter;
use millhand::{Task, TaskId, TaskState, client, db};

use crate::handler::holders;
use crate::site::Site;
use crate::support::clean::assert_clean;

/// How long nothing may end while tasks are left.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<String>,
    pub(crate) tasks: Vec<Task>,
    /// How many tasks ended in which way.
    pub(crate) ends: BTreeMap<String, usize>,
}

/// None without a server.
pub(crate) fn count_unfinished(site: &Site) -> Option<i64> {
    let mut client = db::connect(&site.database.url(), "judge").ok()?;
    let query = "SELECT count(*) FROM millhand.task
                  WHERE state NOT IN ('completed', 'failed', 'canceled')";
    client.query_one(query, &[]).ok().map(|row| row.get(0))
}

/// Waits until all tasks are final, as long as they make progress.
pub(crate) fn wait_for_the_end(site: &mut Site) -> Result<(), String> {
    let (mut last, mut since) = (i64::MAX, Instant::now());
    loop {
        let n_left = count_unfinished(site);
        match n_left {
            Some(0) => return Ok(()),
            Some(n) if n < last => (last, since) = (n, Instant::now()),
            _ if since.elapsed() > PATIENCE => {
                return Err(format!("{last} tasks do not end, though everything has healed"));
            }
            _ => {}
        }
        site.tend();
        thread::sleep(Duration::from_millis(50));
    }
}

/// The workers are gone by now.
pub(crate) fn judge(site: &Site, confirmed: &[TaskId]) -> Verdict {
    let mut verdict = Verdict::default();
    let violations = &mut verdict.violations;
    violations.extend(site.bad_ends.iter().cloned());
    let mut connection = site.database.connect();
    let all = TaskFilter { limit: u32::MAX, ..TaskFilter::default() };
    verdict.tasks = client::list_tasks(&mut connection, &all).unwrap();
    let tasks: HashMap<TaskId, &Task> = verdict.tasks.iter().map(|task| (task.id, task)).collect();
    for id in confirmed.iter().filter(|id| !tasks.contains_key(id)) {
        violations.push(format!("task {id} was dispatched and is not there"));
    }
    judge_journal(site, &tasks, violations);
    for task in &verdict.tasks {
        let mut end = task.state.to_string();
        if let Some(error) = &task.error {
            // Without the names of workers and tasks.
            let words = error.split(|c: char| c.is_ascii_digit() || "@/`".contains(c));
            end = format!("{end}: {}", words.take(2).collect::<Vec<_>>().join("#"));
            // It never began, so it could have gone back to its place.
            if error.contains("working directory") {
                violations.push(format!("task {} failed for want of a directory", task.id));
            }
        }
        *verdict.ends.entry(end).or_default() += 1;
    }
    violations.extend(judge_remains(site));
    verdict
}

fn judge_journal(site: &Site, tasks: &HashMap<TaskId, &Task>, violations: &mut Vec<String>) {
    let journal = fs::read_to_string(site.folder.path().join("journal")).unwrap_or_default();
    let (mut started, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut overlaps: BTreeMap<&str, (&str, u32)> = BTreeMap::new();
    for line in journal.lines() {
        let mut words = line.split(' ');
        let (what, id) = (words.next().unwrap(), words.next().unwrap());
        let id = TaskId(id.parse().unwrap());
        match what {
            "START" if started.insert(id) => {}
            "START" => violations.push(format!("DOUBLE: task {id} began twice: {line}")),
            "END" => drop(ended.insert(id)),
            // Whoever is in the way once is so for many.
            "OVERLAP" => {
                let (_, holder) = line.split_once(" held by ").unwrap();
                match overlaps.get_mut(holder) {
                    Some((_, n)) => *n += 1,
                    None => drop(overlaps.insert(holder, (line, 1))),
                }
            }
            _ => violations.push(line.to_owned()),
        }
    }
    violations.extend(overlaps.values().map(|(line, n)| format!("{line} ({n} times)")));
    for task in tasks.values().filter(|task| task.name == "soak") {
        if task.state == TaskState::Completed && !ended.contains(&task.id) {
            violations.push(format!("task {} is completed, and its command did not end", task.id));
        }
    }
    for id in started.iter().filter(|id| !tasks.contains_key(id)) {
        violations.push(format!("task {id} began and is not there"));
    }
}

/// What of the tasks and workers is still about.
fn judge_remains(site: &Site) -> Vec<String> {
    let mut violations = Vec::new();
    // It says what is wrong by a panic, and so also what the oracle says; the tasks, which
    // follow in lines that begin with an id, are too many.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let clean =
        panic::catch_unwind(AssertUnwindSafe(|| assert_clean(&site.database, &site.workshop)));
    panic::set_hook(hook);
    if let Err(words) = clean {
        let words = words.downcast_ref::<String>().cloned().unwrap_or_default();
        let lines =
            words.lines().take_while(|line| !line.starts_with(|c: char| c.is_ascii_digit()));
        let lines: Vec<String> =
            lines.take(60).map(|line| line.chars().take(4000).collect()).collect();
        violations.push(format!("not clean: {}", lines.join("\n    ")));
    }
    let files = fs::read_dir(site.folder.path()).unwrap().flatten();
    let locks = files.filter(|file| file.file_name().to_string_lossy().starts_with("lock-"));
    let inodes: Vec<u64> = locks.map(|file| file.metadata().unwrap().ino()).collect();
    let left = holders(&inodes);
    violations.extend(left.into_iter().map(|who| format!("still there: {who}")));
    violations
}

/// How many working directories are left, which nobody can help whose worker and
/// warden were killed at once.
pub(crate) fn count_directories(site: &Site) -> usize {
    let directories = site.slots.iter().filter_map(|slot| fs::read_dir(&slot.work).ok());
    directories.map(Iterator::count).sum()
}
