//! How far the runs are, and how long the rest takes: a bar on a terminal, a line for
//! each run elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(500);

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    n_runs: usize,
    n_done: usize,
    began: Instant,
    /// What all runs, and those that are done, were expected to take.
    expected: Duration,
    expected_of_done: Duration,
}

impl Progress {
    pub(crate) fn new(n_runs: usize, expected: Duration) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {elapsed}, {msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::new(expected.as_secs()).with_style(style);
            bar.enable_steady_tick(TICK);
            bar
        });
        Progress {
            bar,
            n_runs,
            n_done: 0,
            began: Instant::now(),
            expected,
            expected_of_done: Duration::ZERO,
        }
    }

    /// What is measured now.
    pub(crate) fn begin(&self, what: &str) {
        if let Some(bar) = &self.bar {
            let (n_done, n_runs) = (self.n_done, self.n_runs);
            bar.set_message(format!("{n_done}/{n_runs} runs, {}: {what}", self.left()));
        }
    }

    /// Some runs are done that were expected to take so long.
    pub(crate) fn finish(&mut self, runs: &[String], expected: Duration) {
        self.expected_of_done += expected;
        for what in runs {
            self.n_done += 1;
            match &self.bar {
                Some(bar) => bar.set_position(self.expected_of_done.as_secs()),
                None => {
                    eprintln!("run {} of {}: {what}; {}", self.n_done, self.n_runs, self.left());
                }
            }
        }
    }

    /// Says something that is worth to stay.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    fn left(&self) -> String {
        let left = time_left(self.began.elapsed(), self.expected_of_done, self.expected);
        match left.as_secs() {
            seconds @ 0..100 => format!("about {seconds} s left"),
            seconds => format!("about {} min left", seconds.div_ceil(60)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The rest takes longer than expected by as much as what is done has.
fn time_left(elapsed: Duration, expected_of_done: Duration, expected: Duration) -> Duration {
    let left = expected.saturating_sub(expected_of_done);
    if expected_of_done.is_zero() {
        return left;
    }
    left.mul_f64(elapsed.as_secs_f64() / expected_of_done.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_what_the_runs_took() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(seconds(0), seconds(0), seconds(60)), seconds(60));
        assert_eq!(time_left(seconds(20), seconds(10), seconds(60)), seconds(100));
        assert_eq!(time_left(seconds(70), seconds(60), seconds(60)), seconds(0));
    }
}
