//! A figure as data: panels side by side, with a legend and captions.

use crate::axis::Axis;
use crate::look::Look;

#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) title: String,
    pub(crate) legend: Vec<Look>,
    pub(crate) panels: Vec<Panel>,
    /// One line each, or more if it is long.
    pub(crate) captions: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Panel {
    /// Of the width, in comparison with the other panels.
    pub(crate) share: u32,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) lines: Vec<Line>,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) look: Look,
    pub(crate) points: Vec<(f64, f64)>,
    /// At an x, from a y to a y.
    pub(crate) band: Vec<(f64, f64, f64)>,
}

/// Stands at the place that its order gives it.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) look: Look,
    pub(crate) height: f64,
    pub(crate) text: String,
}

/// The least and the most of what is to be drawn along an axis; what is not above zero
/// has no place on a logarithmic one.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let positive = values.into_iter().filter(|value| *value > 0.0);
    let (least, most) = positive.fold((f64::INFINITY, 0.0), |(least, most): (f64, f64), value| {
        (least.min(value), most.max(value))
    });
    if most > 0.0 { (least, most) } else { (1.0, 1.0) }
}
