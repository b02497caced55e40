//! What several repeats of a run come to.

/// The median of some numbers, with the least and the most of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Summary {
    /// None of no numbers.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Summary> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        Some(Summary { least, median, most })
    }
}

/// How a caption begins.
pub(crate) fn describe(n_repeats: usize) -> String {
    match n_repeats {
        1 => "One run each".to_owned(),
        n => format!("Medians of {n} repeats"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        let summary = |values: &[f64]| Summary::of(values.to_vec()).unwrap();
        assert_eq!(summary(&[3.0]), Summary { least: 3.0, median: 3.0, most: 3.0 });
        assert_eq!(summary(&[9.0, 1.0, 2.0]), Summary { least: 1.0, median: 2.0, most: 9.0 });
        assert_eq!(summary(&[4.0, 10.0, 1.0, 2.0]).median, 3.0);
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
