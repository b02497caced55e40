//! Figure `growth`: what a task costs Postgres beside more and more others.

use std::time::Duration;

use crate::Outcome;
use crate::axis::Axis;
use crate::chart::{Figure, Line, Panel, extent};
use crate::look::{LOOKS, Look};
use crate::runs::{Plan, Run};
use crate::summary::{self, Summary};
use crate::table::{Record, Table};

const TYPES: [&str; 3] = ["pulpcore", "postgres", "redis"];
const COST: &str = "postgres_cpu_us_per_task";
/// The other tasks of a run: its columns, and where each stays while another grows.
const OTHERS: [(&str, u64); 3] = [("waiting", 1_000), ("finished", 0), ("blocked", 0)];
const FULL: [&[u64]; 3] = [
    &[100, 1_000, 10_000, 100_000, 1_000_000],
    &[0, 10_000, 100_000, 1_000_000],
    &[0, 200, 2_000, 20_000],
];
const QUICK: [&[u64]; 3] = [&[1_000, 10_000], &[0, 10_000], &[0, 200]];

/// The repeats are outermost, so that a slow minute of the machine hits all types alike.
pub(crate) fn plan(is_quick: bool) -> Plan {
    let (n_repeats, seconds, grown) = if is_quick { (1, 1, QUICK) } else { (2, 5, FULL) };
    let load = format!("--threads 8 --duration {seconds}s");
    let mut groups = Vec::new();
    for repeat in 1..=n_repeats {
        for point in points(grown) {
            for name in TYPES {
                let mut arguments = format!("claim --type {name} {load}");
                let mut keys = vec![repeat.to_string(), name.to_owned()];
                for ((column, _), n) in OTHERS.iter().zip(point) {
                    arguments += &format!(" --{column} {n}");
                    keys.push(n.to_string());
                }
                // 2 s to start, 2 s to settle down; then what is put into the table.
                let n_rows = point.iter().sum::<u64>() as f64;
                let seconds = 4.0 + f64::from(seconds) + n_rows / 40_000.0;
                groups.push(vec![Run {
                    keys,
                    arguments: arguments.split(' ').map(str::to_owned).collect(),
                    expected: Duration::from_secs_f64(seconds),
                }]);
            }
        }
    }
    Plan {
        name: "growth",
        command: format!(
            "millhand bench claim --type T {load} --waiting N --finished N --blocked N --json; \
             1,000 waiting, 0 finished and 0 blocked, where they do not grow"
        ),
        keys: &["repeat", "type", "waiting", "finished", "blocked"],
        figures: &[COST, "tasks_per_second"],
        groups,
    }
}

/// Numbers of other tasks, each set once; one of them grows at a time.
fn points(grown: [&[u64]; 3]) -> Vec<[u64; 3]> {
    let mut points = Vec::new();
    for (place, values) in grown.into_iter().enumerate() {
        for value in values {
            let mut point = OTHERS.map(|(_, n)| n);
            point[place] = *value;
            if !points.contains(&point) {
                points.push(point);
            }
        }
    }
    points
}

pub(crate) fn figure(table: &Table) -> Outcome<Figure> {
    let titles = ["More and more wait", "More and more have finished", "More and more are blocked"];
    let labels = ["waiting tasks", "finished tasks in the table", "tasks blocked by a long one"];
    let costs = table.records().filter_map(|record| record.number(COST));
    let (least, most) = extent(costs);
    let panel = |((place, title), label): ((usize, &str), &str)| {
        let (column, _) = OTHERS[place];
        let records: Vec<Record<'_>> =
            table.records().filter(|record| only_this_grows(record, column)).collect();
        let mut values: Vec<u64> =
            records.iter().filter_map(|record| record.text(column).parse().ok()).collect();
        values.sort_unstable();
        values.dedup();
        let line = |look: &Look| line(&records, look, column, &values);
        Panel {
            share: 1,
            title: title.to_owned(),
            x: Axis::log_at(label, &values),
            y: Axis::log("Postgres' processor time per task (µs)", least, most),
            lines: LOOKS.iter().map(line).filter(|line| !line.points.is_empty()).collect(),
            bars: Vec::new(),
        }
    };
    let panels: Vec<Panel> = titles.into_iter().enumerate().zip(labels).map(panel).collect();
    let is_drawn =
        |look: &&Look| panels.iter().any(|p| p.lines.iter().any(|line| line.look == **look));
    let medians = summary::describe(table.distinct("repeat")?.len());
    Ok(Figure {
        title: "What a task costs Postgres while more and more others are in the table".to_owned(),
        legend: LOOKS.iter().filter(is_drawn).copied().collect(),
        panels,
        captions: vec![
            format!("{medians}; the dispatch of the task is included."),
            table.comment("command").to_owned(),
            format!("{}, {}", table.comment("date"), table.comment("machine")),
        ],
    })
}

/// Whether all others are where they stay.
fn only_this_grows(record: &Record<'_>, column: &str) -> bool {
    let stays = |(other, n): &(&str, u64)| record.text(other) == n.to_string();
    OTHERS.iter().filter(|(other, _)| *other != column).all(stays)
}

fn line(records: &[Record<'_>], look: &Look, column: &str, values: &[u64]) -> Line {
    let point = |value: &u64| {
        let same = records.iter().filter(|record| {
            record.text("type") == look.name && record.text(column) == value.to_string()
        });
        let summary = Summary::of(same.filter_map(|record| record.number(COST)).collect())?;
        Some((*value as f64, summary.median))
    };
    let points = values.iter().filter_map(point).collect();
    Line { look: *look, points, band: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_three_panels_is_measured_once() {
        let points = points([&[100, 1_000], &[0, 10], &[0, 200]]);
        assert_eq!(points, [[100, 0, 0], [1_000, 0, 0], [1_000, 10, 0], [1_000, 0, 200]]);
    }
}
