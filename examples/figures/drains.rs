//! Figure `drains`: a full table, worked off by many threads while more tasks come.

use std::time::Duration;

use crate::Outcome;
use crate::axis::{Axis, number};
use crate::chart::{Bar, Figure, Line, Panel, extent};
use crate::look::{LOOKS, Look};
use crate::runs::{Plan, Run};
use crate::summary::{self, Summary};
use crate::table::{Record, Table};

const TYPES: [&str; 3] = ["pulpcore", "postgres", "redis"];
/// What the ratios are to.
const BASE: &str = "pulpcore";
/// Of `ends_each_quarter_second`.
const PIECE: f64 = 0.25;
/// A point of the course stands for this share of the time before it, at least.
const SHARE: f64 = 0.1;
/// If the slowest takes so many times as long as the fastest, time is logarithmic.
const MAX_LINEAR: f64 = 4.0;

/// The repeats are outermost, so that a slow minute of the machine hits all types alike.
/// In each of them the tasks are the same for all.
pub(crate) fn plan(is_quick: bool) -> Plan {
    let (n_repeats, n_threads, n_tasks) = if is_quick { (1, 16, 4_000) } else { (3, 80, 20_000) };
    let load = format!(
        "--threads {n_threads} --tasks {n_tasks} --ahead {} --resources 128 --pick 2",
        n_tasks / 2
    );
    let mut groups = Vec::new();
    for repeat in 1..=n_repeats {
        for name in TYPES {
            let rate = if name == BASE { 400.0 } else { 4_000.0 };
            let arguments = format!("drain --type {name} {load} --seed {repeat}");
            groups.push(vec![Run {
                keys: vec![repeat.to_string(), name.to_owned()],
                arguments: arguments.split(' ').map(str::to_owned).collect(),
                expected: Duration::from_secs_f64(4.0 + f64::from(n_tasks) / rate),
            }]);
        }
    }
    Plan {
        name: "drains",
        command: format!(
            "millhand bench drain --type T {load} --seed R --json, R of 1 to {n_repeats}"
        ),
        keys: &["repeat", "type"],
        figures: &["tasks_per_second", "postgres_cpu_us_per_task", "ends_each_quarter_second"],
        groups,
    }
}

pub(crate) fn figure(table: &Table) -> Outcome<Figure> {
    let courses: Vec<(Look, Vec<f64>)> = LOOKS
        .iter()
        .filter_map(|look| Some((*look, median_record(table, look.name)?)))
        .map(|(look, record)| (look, record.numbers("ends_each_quarter_second")))
        .collect();
    if courses.is_empty() {
        return Err("no run of it ended a task; measure it again".into());
    }
    let lengths = courses.iter().map(|(_, ends)| ends.len() as f64 * PIECE);
    let (shortest, longest) = extent(lengths);
    let is_log = longest / shortest > MAX_LINEAR;
    let line = |(look, ends): &(Look, Vec<f64>)| Line {
        look: *look,
        points: rates(ends, if is_log { SHARE } else { 0.0 }),
        band: Vec::new(),
    };
    let lines: Vec<Line> = courses.iter().map(line).collect();
    let (first, _) = extent(lines.iter().filter_map(|line| Some(line.points.first()?.0)));
    let x = if is_log {
        Axis::log("time since the first start (s)", first, longest)
    } else {
        Axis::linear("time since the first start (s)", longest)
    };
    let (_, most) = extent(lines.iter().flat_map(|line| line.points.iter().map(|(_, y)| *y)));
    let medians = summary::describe(table.distinct("repeat")?.len());
    let means = if is_log {
        ", each point the mean of quarters of a second, of at least a tenth of the time until then"
    } else {
        ""
    };
    Ok(Figure {
        title: "A full table, worked off while more tasks come: how fast, and what it costs \
                Postgres"
            .to_owned(),
        legend: courses.iter().map(|(look, _)| *look).collect(),
        panels: vec![
            Panel {
                share: 2,
                title: "The course of a drain".to_owned(),
                x,
                y: Axis::linear("tasks that ended, per second", most),
                lines,
                bars: Vec::new(),
            },
            bars(table, "tasks_per_second", "Throughput of the whole drain", "tasks per second"),
            bars(
                table,
                "postgres_cpu_us_per_task",
                "Postgres' processor time",
                "processor time per task (µs)",
            ),
        ],
        captions: vec![
            format!(
                "{medians}; the course is that of the run in the middle{means}. \
                 Over the bars: the value, and its ratio to that of {BASE}."
            ),
            table.comment("command").to_owned(),
            format!("{}, {}", table.comment("date"), table.comment("machine")),
        ],
    })
}

/// The repeat of this type that is in the middle by its speed.
fn median_record<'a>(table: &'a Table, name: &str) -> Option<Record<'a>> {
    let records = table.records().filter(|record| record.text("type") == name);
    let mut records: Vec<(f64, Record<'_>)> =
        records.filter_map(|record| Some((record.number("tasks_per_second")?, record))).collect();
    records.sort_by(|a, b| a.0.total_cmp(&b.0));
    records.get(records.len().saturating_sub(1) / 2).map(|(_, record)| *record)
}

/// Times and rates from numbers of ends, each over a piece or as many of them as make
/// this share of the time until then; the last over those that are left. The last piece
/// is not whole, and not shown.
fn rates(ends: &[f64], share: f64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let mut begin = 0;
    for end in 1..ends.len() {
        let n_pieces = end - begin;
        if n_pieces as f64 >= share * end as f64 || end + 1 == ends.len() {
            let n_ended: f64 = ends[begin..end].iter().sum();
            let middle = f64::midpoint(begin as f64, end as f64) * PIECE;
            points.push((middle, n_ended / (n_pieces as f64 * PIECE)));
            begin = end;
        }
    }
    points
}

/// A bar for each type, with its value and the ratio to the base above it.
fn bars(table: &Table, column: &str, title: &str, label: &str) -> Panel {
    let median = |name: &str| {
        let records = table.records().filter(|record| record.text("type") == name);
        let values = records.filter_map(|record| record.number(column)).collect();
        Summary::of(values).map(|summary| summary.median)
    };
    let base = median(BASE);
    let bar = |look: &Look| {
        let height = median(look.name)?;
        let value = number(height.round());
        let text = match base {
            Some(base) if base > 0.0 && look.name != BASE => {
                format!("{value} (×{})", ratio(height / base))
            }
            _ => value,
        };
        Some(Bar { look: *look, height, text })
    };
    let bars: Vec<Bar> = LOOKS.iter().filter_map(bar).collect();
    // Room for the text above the highest.
    let (_, most) = extent(bars.iter().map(|bar| bar.height * 1.08));
    Panel {
        share: 1,
        title: title.to_owned(),
        x: Axis::names(bars.iter().map(|bar| bar.look.legend)),
        y: Axis::linear(label, most),
        lines: Vec::new(),
        bars,
    }
}

fn ratio(ratio: f64) -> String {
    match ratio {
        ..0.1 => format!("{ratio:.3}"),
        ..10.0 => format!("{ratio:.2}"),
        _ => format!("{ratio:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_course_leaves_out_the_last_piece() {
        assert_eq!(rates(&[100.0, 50.0, 1.0], 0.0), [(0.125, 400.0), (0.375, 200.0)]);
        assert_eq!(rates(&[7.0], 0.0), []);
    }

    #[test]
    fn later_points_stand_for_more_time() {
        let points = rates(&[10.0; 101], 0.5);
        assert!(points.iter().all(|(_, rate)| *rate == 40.0), "{points:?}");
        assert!(points.len() < 10, "{points:?}");
        // The last stands for what is left.
        assert_eq!(rates(&[1.0, 1.0, 1.0, 1.0, 2.0, 9.0], 0.5).last(), Some(&(1.125, 8.0)));
    }

    #[test]
    fn the_median_repeat_is_in_the_middle() {
        let text = |text: &str| text.to_owned();
        let row = |rate: &str| vec![text("redis"), text(rate)];
        let table = Table {
            comments: Vec::new(),
            columns: vec![text("type"), text("tasks_per_second")],
            rows: vec![row("30"), row(""), row("10"), row("20")],
        };
        let record = median_record(&table, "redis").unwrap();
        assert_eq!(record.text("tasks_per_second"), "20");
        assert!(median_record(&table, "postgres").is_none());
    }
}
