//! Axes, with ticks where a reader looks for them.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Share of an axis that is left free at each end.
const MARGIN: f64 = 0.04;
/// Ticks of an axis whose ticks are chosen, at most.
const MAX_TICKS: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scale {
    Linear,
    Log,
    /// Zero has this place.
    LogWithZeroAt(f64),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    pub(crate) label: String,
    scale: Scale,
    /// First and last place.
    range: (f64, f64),
    /// Values and what is written there.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// From zero to a round number that is not less than `most`.
    pub(crate) fn linear(label: &str, most: f64) -> Axis {
        let step = round_up(most / (MAX_TICKS - 3) as f64);
        let n_steps = (most / step).ceil().max(1.0);
        let ticks = (0..=n_steps as u32).map(|n| f64::from(n) * step).map(|at| (at, number(at)));
        Axis {
            label: label.to_owned(),
            scale: Scale::Linear,
            range: (0.0, n_steps * step),
            ticks: ticks.collect(),
        }
    }

    /// Logarithmic, from a round number to a round number.
    pub(crate) fn log(label: &str, least: f64, most: f64) -> Axis {
        let (from, to) = (round_down(least), round_up(most));
        let mut values = round_numbers(from, to);
        if values.len() > MAX_TICKS {
            values.retain(|value| is_power_of_ten(*value));
        }
        let ticks = values.into_iter().map(|value| (value, number(value)));
        Axis {
            label: label.to_owned(),
            scale: Scale::Log,
            range: (from.log10(), to.log10()),
            ticks: ticks.collect(),
        }
    }

    /// Logarithmic, with a tick at each of the values, which are sorted; zero is a step
    /// of ten before the others.
    pub(crate) fn log_at(label: &str, values: &[u64]) -> Axis {
        let least = values.iter().find(|value| **value > 0).map_or(1.0, |value| *value as f64);
        let scale = match values.first() {
            Some(0) => Scale::LogWithZeroAt(least.log10() - 1.0),
            _ => Scale::Log,
        };
        let ticks = values.iter().map(|value| *value as f64).map(|value| (value, number(value)));
        let ticks: Vec<(f64, String)> = ticks.collect();
        let place = |tick: Option<&(f64, String)>| tick.map_or(0.0, |tick| scale.place(tick.0));
        let (first, last) = match (place(ticks.first()), place(ticks.last())) {
            (first, last) if last > first => (first, last),
            (only, _) => (only - 0.5, only + 0.5),
        };
        let margin = (last - first) * MARGIN;
        Axis { label: label.to_owned(), scale, range: (first - margin, last + margin), ticks }
    }

    /// A place for each name: 0, 1, and so on.
    pub(crate) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> Axis {
        let ticks: Vec<(f64, String)> = names
            .into_iter()
            .enumerate()
            .map(|(place, name)| (place as f64, name.to_owned()))
            .collect();
        Axis {
            label: String::new(),
            scale: Scale::Linear,
            range: (-0.6, ticks.len() as f64 - 0.4),
            ticks,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (begin, end): (i32, i32)) -> i32 {
        let (first, last) = self.range;
        let share = (self.scale.place(*value) - first) / (last - first);
        begin + (share * f64::from(end - begin)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.scale.value(self.range.0)..self.scale.value(self.range.1)
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        number(*value)
    }

    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(at, _)| at == value);
        tick.map_or_else(|| number(*value), |(_, text)| text.clone())
    }
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::LogWithZeroAt(place) if value <= 0.0 => place,
            Scale::Log | Scale::LogWithZeroAt(_) => value.log10(),
        }
    }

    fn value(self, place: f64) -> f64 {
        match self {
            Scale::Linear => place,
            Scale::Log | Scale::LogWithZeroAt(_) => 10f64.powf(place),
        }
    }
}

/// 1, 2 or 5, times a power of ten, from `from` to `to`.
fn round_numbers(from: f64, to: f64) -> Vec<f64> {
    let (first, last) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let candidates = (first..=last).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * ten_to(power)));
    // Of those at the ends, some may be off by the last bit.
    candidates.filter(|value| (from * 0.999..=to * 1.001).contains(value)).collect()
}

fn round_down(value: f64) -> f64 {
    round_numbers(value / 5.0, value).pop().unwrap_or(value)
}

fn round_up(value: f64) -> f64 {
    round_numbers(value, value * 5.0).first().copied().unwrap_or(value)
}

/// A division, because a negative power is off by the last bit.
fn ten_to(power: i32) -> f64 {
    if power < 0 { 1.0 / 10f64.powi(-power) } else { 10f64.powi(power) }
}

fn is_power_of_ten(value: f64) -> bool {
    (value.log10() - value.log10().round()).abs() < 1e-9
}

/// As people write it: `20,000`, `0.05`.
pub(crate) fn number(value: f64) -> String {
    let text = format!("{value:.6}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match fraction.trim_end_matches('0') {
        "" => grouped,
        fraction => format!("{grouped}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn numbers_are_written_as_people_do() {
        assert_eq!(number(1_000_000.0), "1,000,000");
        assert_eq!(number(128.0), "128");
        assert_eq!(number(0.05), "0.05");
        assert_eq!(number(0.0), "0");
    }

    #[test]
    fn a_linear_axis_goes_from_zero_to_a_round_number() {
        let axis = Axis::linear("", 4_372.0);
        assert_eq!(axis.range, (0.0, 5_000.0));
        assert_eq!(texts(&axis), ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]);
    }

    #[test]
    fn a_logarithmic_axis_begins_and_ends_at_round_numbers() {
        assert_eq!(texts(&Axis::log("", 0.3, 9.0)), ["0.2", "0.5", "1", "2", "5", "10"]);
        assert_eq!(texts(&Axis::log("", 80.0, 90.0)), ["50", "100"]);
        assert_eq!(texts(&Axis::log("", 1.0, 9_000.0)), ["1", "10", "100", "1,000", "10,000"]);
    }

    #[test]
    fn zero_is_a_step_before_the_others() {
        let axis = Axis::log_at("", &[0, 200, 2_000]);
        assert_eq!(texts(&axis), ["0", "200", "2,000"]);
        let place = |value| axis.map(&value, (0, 1_000));
        assert_eq!([place(0.0), place(20.0), place(2_000.0)], [37, 37, 963]);
        assert_eq!(axis.format_ext(&200.0), "200");
    }
}
