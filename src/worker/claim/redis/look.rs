//! Which of the tasks that a look shows may start.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::lock_store::Needs;
use crate::task::TaskId;

/// An incomplete task, as a look shows it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) position: i64,
    pub(super) id: TaskId,
    pub(super) name: String,
    pub(super) waiting: bool,
    pub(super) needs: Arc<Needs>,
    /// Whether an earlier task that conflicts with it is parked.
    pub(super) behind_parked: bool,
}

/// What came of a look: places in the list of what it showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// These may start.
    pub(super) free: Vec<usize>,
    /// These might, where somebody has a handler for them.
    pub(super) foreign: Vec<usize>,
    /// These wait behind others.
    pub(super) blocked: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reserved {
    Shared,
    Exclusive,
}

/// Goes through the tasks in order. Each, whatever becomes of it, reserves all its
/// resources against those after it, but for those in `ending`: they end in the
/// transaction that starts what is chosen.
pub(super) fn choose(seen: &[Seen], ending: &HashSet<TaskId>, handlers: &[String]) -> Choice {
    let mut choice = Choice::default();
    let mut reserved: HashMap<&str, Reserved> = HashMap::with_capacity(seen.len());
    for (place, task) in seen.iter().enumerate() {
        if ending.contains(&task.id) {
            continue;
        }
        if task.waiting {
            let is_blocked = task.behind_parked
                || task.needs.exclusive.iter().any(|name| reserved.contains_key(name.as_str()))
                || task
                    .needs
                    .shared
                    .iter()
                    .any(|name| reserved.get(name.as_str()) == Some(&Reserved::Exclusive));
            if is_blocked {
                choice.blocked.push(place);
            } else if handlers.contains(&task.name) {
                choice.free.push(place);
            } else {
                choice.foreign.push(place);
            }
        }
        for name in &task.needs.exclusive {
            reserved.insert(name, Reserved::Exclusive);
        }
        for name in &task.needs.shared {
            reserved.entry(name).or_insert(Reserved::Shared);
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task as `"x a b +c"`: handler `x`, needs `a` and `b` exclusively and shares
    /// `c`; in capitals the handler of one that runs.
    fn seen(texts: &[&str]) -> Vec<Seen> {
        let seen_one = |(place, text): (usize, &&str)| {
            let mut words = text.split_whitespace();
            let name = words.next().unwrap_or_default();
            let (shared, exclusive): (Vec<&str>, Vec<&str>) =
                words.partition(|word| word.starts_with('+'));
            Seen {
                position: place as i64,
                id: TaskId(place as i64),
                name: name.to_lowercase(),
                waiting: name != name.to_uppercase(),
                needs: Arc::new(Needs {
                    exclusive: exclusive.into_iter().map(str::to_owned).collect(),
                    shared: shared.into_iter().map(|name| name[1..].to_owned()).collect(),
                }),
                behind_parked: false,
            }
        };
        texts.iter().enumerate().map(seen_one).collect()
    }

    fn chosen(texts: &[&str], ending: &[i64]) -> Choice {
        let ending = ending.iter().copied().map(TaskId).collect();
        choose(&seen(texts), &ending, &["x".to_owned()])
    }

    #[test]
    fn whoever_is_passed_over_keeps_reserving_all_it_needs() {
        let tasks = ["X a", "x a b", "x b", "x c", "x +c", "x d", "x +d +e", "x e"];
        let choice = chosen(&tasks, &[]);
        assert_eq!((choice.free, choice.blocked), (vec![3, 5], vec![1, 2, 4, 6, 7]));
    }

    #[test]
    fn readers_go_together_and_writers_wait_for_both() {
        let choice = chosen(&["X +a", "x +a", "x a", "x +a"], &[]);
        assert_eq!((choice.free, choice.blocked), (vec![1], vec![2, 3]));
    }

    #[test]
    fn what_ends_reserves_nothing_and_what_has_no_handler_here_does() {
        let choice = chosen(&["X a", "x a", "y b", "x b", "x"], &[0]);
        assert_eq!(choice.free, [1, 4]);
        assert_eq!((choice.foreign, choice.blocked), (vec![2], vec![3]));
    }
}
