//! What the table says of a run afterwards: when each task started and ended, and
//! when an ideal scheduler would have started it.

use std::collections::HashMap;

use millhand::Error;
use postgres::Client;

/// A task that was run; times in seconds since the first dispatch.
#[derive(Debug, Default)]
pub(super) struct Event {
    exclusive: Vec<String>,
    shared: Vec<String>,
    pub(super) created: f64,
    pub(super) started: f64,
    pub(super) finished: f64,
}

/// All tasks that have completed, in order.
pub(super) fn read(client: &mut Client) -> Result<Vec<Event>, Error> {
    let rows = client
        .query(include_str!("../../../sql/bench/history.sql"), &[])
        .map_err(|error| Error::postgres("could not read what became of the tasks", error))?;
    let event = |row: &postgres::Row| Event {
        exclusive: row.get("exclusive"),
        shared: row.get("shared"),
        created: row.get("created"),
        started: row.get("started"),
        finished: row.get("finished"),
    };
    Ok(rows.iter().map(event).collect())
}

/// How many tasks ended in each piece of this many seconds, from the first start on.
pub(super) fn ends_over_time(events: &[Event], piece: f64) -> Vec<u64> {
    let first = events.iter().map(|event| event.started).fold(f64::INFINITY, f64::min);
    let mut counts = Vec::new();
    for event in events {
        let place = ((event.finished - first) / piece) as usize;
        if counts.len() <= place {
            counts.resize(place + 1, 0);
        }
        counts[place] += 1;
    }
    counts
}

/// When an ideal scheduler starts each of these tasks: at no cost, as soon as those
/// before it that conflict have ended and one of `n_threads` is idle, the earliest
/// first. Each takes as long as it took.
pub(super) fn ideal_starts(events: &[Event], n_threads: usize) -> Vec<f64> {
    let mut starts = vec![f64::NAN; events.len()];
    let mut idle_from = vec![0.0; n_threads];
    let mut left: Vec<usize> = (0..events.len()).collect();
    while !left.is_empty() {
        let thread = (0..n_threads).min_by(|a, b| f64::total_cmp(&idle_from[*a], &idle_from[*b]));
        let Some(thread) = thread else { break };
        let ready = ready_times(events, &starts, &left);
        // At the first moment at which the thread is idle and something is ready.
        let first = ready.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
        let now = first.max(idle_from[thread]);
        let Some((place, _)) = ready.into_iter().find(|(_, time)| *time <= now) else { break };
        let task = left.remove(place);
        starts[task] = now;
        idle_from[thread] = now + (events[task].finished - events[task].started);
    }
    starts
}

/// Of those that are left, in order: the places in `left` and the times from which on
/// nothing earlier is in the way, as far as that can be known yet.
fn ready_times(events: &[Event], starts: &[f64], left: &[usize]) -> Vec<(usize, f64)> {
    // By resource: when those that need it exclusively, and the others, have ended.
    let mut ends: HashMap<&str, (f64, f64)> = HashMap::new();
    let mut ready = Vec::new();
    let mut place = 0;
    for (task, event) in events.iter().enumerate() {
        let mut time = event.created;
        for name in &event.exclusive {
            let (exclusive, shared) = ends.get(name.as_str()).copied().unwrap_or_default();
            time = time.max(exclusive).max(shared);
        }
        for name in &event.shared {
            time = time.max(ends.get(name.as_str()).copied().unwrap_or_default().0);
        }
        let end = if left.get(place) == Some(&task) {
            if time.is_finite() {
                ready.push((place, time));
            }
            place += 1;
            f64::INFINITY
        } else {
            starts[task] + (event.finished - event.started)
        };
        for name in &event.exclusive {
            let entry = ends.entry(name).or_default();
            entry.0 = entry.0.max(end);
        }
        for name in &event.shared {
            let entry = ends.entry(name).or_default();
            entry.1 = entry.1.max(end);
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task of a second, as `"a +b"`: it needs `a` exclusively and shares `b`.
    fn event((created, needs): &(f64, &str)) -> Event {
        let (shared, exclusive): (Vec<&str>, Vec<&str>) =
            needs.split_whitespace().partition(|name| name.starts_with('+'));
        Event {
            exclusive: exclusive.into_iter().map(str::to_owned).collect(),
            shared: shared.into_iter().map(|name| name[1..].to_owned()).collect(),
            created: *created,
            started: 5.0,
            finished: 6.0,
        }
    }

    fn starts(tasks: &[(f64, &str)], n_threads: usize) -> Vec<f64> {
        ideal_starts(&tasks.iter().map(event).collect::<Vec<_>>(), n_threads)
    }

    #[test]
    fn an_ideal_scheduler_keeps_the_order_and_the_threads_busy() {
        assert_eq!(starts(&[(0.0, "a"), (0.0, "b"), (0.0, "c")], 2), [0.0, 0.0, 1.0]);
        assert_eq!(
            starts(&[(0.0, "a"), (0.0, "a b"), (0.0, "b"), (0.0, "c")], 4),
            [0.0, 1.0, 2.0, 0.0]
        );
        // Two readers go together, and what comes late starts late.
        assert_eq!(
            starts(&[(0.0, "+a"), (0.5, "+a"), (0.5, "a"), (9.0, "b")], 4),
            [0.0, 0.5, 1.5, 9.0]
        );
    }

    #[test]
    fn ends_are_counted_from_the_first_start() {
        let events = [(6.0, 7.0), (6.5, 8.2), (7.0, 8.4)].map(|(started, finished)| Event {
            started,
            finished,
            ..Event::default()
        });
        assert_eq!(ends_over_time(&events, 1.0), [0, 1, 2]);
    }
}
