//! Runs of `millhand bench`, and the rows that come of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::progress::Progress;
use crate::table::Table;
use crate::{Outcome, machine};

/// Between the starts of runs that go on at once: a bench has started its servers and
/// dispatched a burst after some 4 s, and what a new server writes to the disk holds up
/// the commits of others for some seconds more.
pub(crate) const STAGGER: Duration = Duration::from_secs(12);

/// What a figure is drawn from.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// For people, with placeholders.
    pub(crate) command: String,
    /// The columns that say which run it was.
    pub(crate) keys: &'static [&'static str],
    /// The columns that the bench says.
    pub(crate) figures: &'static [&'static str],
    /// One group after the other; the runs of one go on at once.
    pub(crate) groups: Vec<Vec<Run>>,
}

#[derive(Debug)]
pub(crate) struct Run {
    /// A value for each of the keys.
    pub(crate) keys: Vec<String>,
    /// After `millhand bench`.
    pub(crate) arguments: Vec<String>,
    pub(crate) expected: Duration,
}

/// The programs that are measured.
#[derive(Debug)]
pub(crate) struct Programs {
    millhand: PathBuf,
    pub(crate) resource_manager: PathBuf,
}

impl Programs {
    /// Those beside this example, as cargo puts them, or another `millhand`.
    pub(crate) fn find(millhand: Option<&Path>) -> Outcome<Programs> {
        let example = std::env::current_exe()
            .map_err(|error| format!("could not find this program's own folder: {error}"))?;
        let examples = example.parent().unwrap_or(Path::new("."));
        let built = examples.parent().unwrap_or(examples).join("millhand");
        let programs = Programs {
            millhand: millhand.map_or(built, Path::to_owned),
            resource_manager: examples.join("resource_manager"),
        };
        for program in [&programs.millhand, &programs.resource_manager] {
            if !program.is_file() {
                return Err(format!(
                    "{} is missing; run `cargo build --release --bins --examples`, or name \
                     millhand with --millhand",
                    program.display()
                )
                .into());
            }
        }
        Ok(programs)
    }
}

impl Plan {
    fn columns(&self) -> Vec<String> {
        self.keys.iter().chain(self.figures).map(|name| (*name).to_owned()).collect()
    }

    fn expected(&self) -> Duration {
        self.groups.iter().map(|group| expected(group)).sum()
    }

    /// Such as `bursts, repeat 1, type redis, threads 8`.
    fn describe(&self, run: &Run) -> String {
        let keys = self.keys.iter().zip(&run.keys).map(|(key, value)| format!(", {key} {value}"));
        self.name.to_owned() + &keys.collect::<String>()
    }

    /// The fields of a run; those of the figures are empty if it failed.
    fn row(&self, run: &Run, said: Option<&Value>) -> Vec<String> {
        let field = |name: &&str| said.and_then(|said| said.get(*name)).map_or("".into(), text);
        run.keys.iter().cloned().chain(self.figures.iter().map(field)).collect()
    }
}

/// Measures all plans, and writes a table for each into the folder.
pub(crate) fn run(plans: &[Plan], programs: &Programs, folder: &Path) -> Outcome<()> {
    let n_runs = plans.iter().flat_map(|plan| &plan.groups).map(Vec::len).sum();
    let mut progress = Progress::new(n_runs, plans.iter().map(Plan::expected).sum());
    for plan in plans {
        let mut table = Table {
            comments: vec![
                ("command".to_owned(), plan.command.clone()),
                ("date".to_owned(), Timestamp::now().strftime("%Y-%m-%d").to_string()),
                ("machine".to_owned(), machine::describe()),
            ],
            columns: plan.columns(),
            rows: Vec::new(),
        };
        let path = folder.join(plan.name).with_extension("csv");
        let mut n_good = 0;
        for group in &plan.groups {
            let names: Vec<String> = group.iter().map(|run| plan.describe(run)).collect();
            progress.begin(&names.join("; "));
            for ((run, name), result) in group.iter().zip(&names).zip(measure(group, programs)) {
                let said = result
                    .inspect_err(|error| progress.say(&format!("left out: {name}: {error}")))
                    .ok();
                let row = plan.row(run, said.as_ref());
                if said.is_some() && row.iter().any(String::is_empty) {
                    progress.say(&format!("left out: {name}: no task ended, or none was counted"));
                }
                n_good += usize::from(said.is_some());
                table.rows.push(row);
            }
            progress.finish(&names, expected(group));
            // After each group, so that little is lost with an interrupted hour.
            table.write(&path)?;
        }
        if n_good == 0 {
            return Err(format!("no run of {} succeeded; see what is left out", plan.name).into());
        }
    }
    Ok(())
}

fn expected(group: &[Run]) -> Duration {
    let longest = group.iter().map(|run| run.expected).max().unwrap_or_default();
    longest + STAGGER * group.len().saturating_sub(1) as u32
}

/// What the bench says of each of these runs, which go on at once.
fn measure(group: &[Run], programs: &Programs) -> Vec<Outcome<Value>> {
    thread::scope(|scope| {
        let starts = (0..).map(|n| STAGGER * n);
        let threads: Vec<_> = group
            .iter()
            .zip(starts)
            .map(|(run, start)| {
                scope.spawn(move || {
                    thread::sleep(start);
                    bench(run, programs)
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("the thread that ran it panicked".into()))
        };
        threads.into_iter().map(join).collect()
    })
}

fn bench(run: &Run, programs: &Programs) -> Outcome<Value> {
    let mut command = Command::new(&programs.millhand);
    // A server or a setting of the user's own is none of the bench's.
    command.args(["--config", "/dev/null", "bench"]).args(&run.arguments).arg("--json");
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("MILLHAND_") {
            command.env_remove(variable);
        }
    }
    let output = command.output().map_err(|error| {
        format!("could not start {}: {error}; is it built?", programs.millhand.display())
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it said nothing");
        return Err(format!("the bench failed, {}: {last}", output.status).into());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("the bench did not print JSON: {error}").into())
}

/// A field of a CSV; none is empty, and the numbers of a list have spaces between them.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => format!("{float:.3}"),
            _ => number.to_string(),
        },
        Value::String(string) => string.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_short_and_what_is_missing_is_empty() {
        assert_eq!(text(&json!(null)), "");
        assert_eq!(text(&json!(f64::NAN)), "");
        assert_eq!(text(&json!(0.123_456)), "0.123");
        assert_eq!(text(&json!([1, 2, 3])), "1 2 3");
    }

    #[test]
    fn a_run_that_failed_has_empty_fields() {
        let run = Run { keys: vec!["8".into()], arguments: Vec::new(), expected: Duration::ZERO };
        let plan = Plan {
            name: "some",
            command: String::new(),
            keys: &["threads"],
            figures: &["seconds"],
            groups: Vec::new(),
        };
        assert_eq!(plan.row(&run, None), ["8", ""]);
        assert_eq!(plan.row(&run, Some(&json!({"seconds": 2, "more": 1}))), ["8", "2"]);
        assert_eq!(plan.describe(&run), "some, threads 8");
    }
}
