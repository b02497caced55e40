//! Figure `bursts`: what a dispatch takes, and how long tasks wait, when many come at
//! once, at more and more threads.

use std::time::Duration;

use crate::Outcome;
use crate::axis::Axis;
use crate::chart::{Figure, Line, Panel, extent};
use crate::look::{IDEAL, LOOKS, Look};
use crate::runs::{Plan, Programs, Run, STAGGER};
use crate::summary::{self, Summary};
use crate::table::Table;

const MANAGER: &str = "resource-manager";

struct Size {
    n_repeats: usize,
    n_tasks: u32,
    seconds: f64,
    threads: &'static [u32],
}

const FULL: Size =
    Size { n_repeats: 5, n_tasks: 256, seconds: 0.5, threads: &[1, 2, 4, 8, 16, 32, 64, 128] };
const QUICK: Size = Size { n_repeats: 2, n_tasks: 48, seconds: 0.1, threads: &[4, 64] };

/// The repeats are outermost, so that a slow minute of the machine hits all types alike.
/// In each of them the tasks are the same for all.
pub(crate) fn plan(is_quick: bool, together: u32, programs: &Programs) -> Plan {
    let size = if is_quick { QUICK } else { FULL };
    let load =
        format!("--tasks {} --seconds {} --resources 128 --pick 2", size.n_tasks, size.seconds);
    let mut groups = Vec::new();
    for repeat in 1..=size.n_repeats {
        let mut at_once = Vec::new();
        for n in size.threads {
            let run = |look: &Look| {
                let mut arguments = vec!["burst".to_owned()];
                if look.name == MANAGER {
                    arguments.push("--program".to_owned());
                    arguments.push(programs.resource_manager.to_string_lossy().into_owned());
                } else {
                    arguments.extend(["--type".to_owned(), look.name.to_owned()]);
                }
                arguments.extend(load.split(' ').map(str::to_owned));
                arguments.extend(["--threads".to_owned(), n.to_string()]);
                arguments.extend(["--seed".to_owned(), repeat.to_string()]);
                Run {
                    keys: vec![repeat.to_string(), look.name.to_owned(), n.to_string()],
                    arguments,
                    expected: expected(&size, *n, look.name),
                }
            };
            let runs = LOOKS.iter().map(run);
            if *n <= together {
                at_once.extend(runs);
            } else {
                groups.extend(runs.map(|run| vec![run]));
            }
        }
        if !at_once.is_empty() {
            groups.push(at_once);
        }
    }
    let threads = size.threads.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    Plan {
        name: "bursts",
        command: format!(
            "millhand bench burst --type T {load} --threads N --seed R --json, N of {threads}, \
             R of 1 to {}; runs of up to {together} threads go on at once, {} s apart",
            size.n_repeats,
            STAGGER.as_secs()
        ),
        keys: &["repeat", "type", "threads"],
        figures: &["dispatch_mean_ms", "pickup_mean_ms", "ideal_pickup_mean_ms"],
        groups,
    }
}

/// With many threads the conflicts count: about 14 tasks wait for each other, and for a
/// resource manager three times as many.
fn expected(size: &Size, n_threads: u32, name: &str) -> Duration {
    let n_rounds = if name == MANAGER { 45.0 } else { 14.0 };
    let n_rounds = (f64::from(size.n_tasks) / f64::from(n_threads)).max(n_rounds);
    Duration::from_secs_f64(3.0 + n_rounds * size.seconds)
}

pub(crate) fn figure(table: &Table) -> Outcome<Figure> {
    let threads = table.distinct("threads")?;
    let dispatch = lines(table, &threads, "dispatch_mean_ms", 1.0);
    let mut pickup = lines(table, &threads, "pickup_mean_ms", 1e-3);
    let ideal = threads.iter().filter_map(|n| {
        let summary = over_repeats(table, None, *n, "ideal_pickup_mean_ms", 1e-3)?;
        Some((*n as f64, summary.median))
    });
    let points = ideal.collect();
    pickup.push(Line { look: IDEAL, points, band: Vec::new() });
    let (_, most) = extent(heights(&dispatch));
    let (least, longest) = extent(heights(&pickup));
    let mut legend: Vec<Look> = dispatch.iter().map(|line| line.look).collect();
    legend.push(IDEAL);
    let medians = summary::describe(table.distinct("repeat")?.len());
    Ok(Figure {
        title: "A burst of tasks: what each dispatch takes, and how long the tasks wait".to_owned(),
        legend,
        panels: vec![
            Panel {
                share: 1,
                title: "Dispatching one task, for the thread that does it".to_owned(),
                x: Axis::log_at("threads that run tasks", &threads),
                y: Axis::linear("mean time of a dispatch (ms)", most),
                lines: dispatch,
                bars: Vec::new(),
            },
            Panel {
                share: 1,
                title: "From a task's dispatch to its start".to_owned(),
                x: Axis::log_at("threads that run tasks", &threads),
                y: Axis::log("mean time until the start (s)", least, longest),
                lines: pickup,
                bars: Vec::new(),
            },
        ],
        captions: vec![
            format!(
                "{medians}; the bands go from the least to the most of them. The tasks of a \
                 repeat are the same for all. An ideal scheduler keeps their order and costs nothing."
            ),
            "The tasks only sleep; what the machine limits is the dispatches, whose thread shares \
             the cores with the workers and both servers. The resource manager runs by --program."
                .to_owned(),
            table.comment("command").to_owned(),
            format!("{}, {}", table.comment("date"), table.comment("machine")),
        ],
    })
}

/// One for each type, over the numbers of threads.
fn lines(table: &Table, threads: &[u64], column: &str, unit: f64) -> Vec<Line> {
    let line = |look: &Look| {
        let summaries = threads.iter().filter_map(|n| {
            Some((*n as f64, over_repeats(table, Some(look.name), *n, column, unit)?))
        });
        let summaries: Vec<(f64, Summary)> = summaries.collect();
        Line {
            look: *look,
            points: summaries.iter().map(|(n, summary)| (*n, summary.median)).collect(),
            band: summaries.iter().map(|(n, summary)| (*n, summary.least, summary.most)).collect(),
        }
    };
    LOOKS.iter().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// Over the repeats of this type, or of all.
fn over_repeats(
    table: &Table,
    name: Option<&str>,
    n_threads: u64,
    column: &str,
    unit: f64,
) -> Option<Summary> {
    let records = table.records().filter(|record| {
        name.is_none_or(|name| record.text("type") == name)
            && record.text("threads") == n_threads.to_string()
    });
    Summary::of(records.filter_map(|record| record.number(column)).map(|n| n * unit).collect())
}

fn heights(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| {
        let band = line.band.iter().flat_map(|(_, least, most)| [*least, *most]);
        line.points.iter().map(|(_, y)| *y).chain(band)
    })
}
