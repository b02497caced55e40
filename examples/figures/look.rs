//! How what was measured is called and drawn, in all figures alike.

use plotters::style::RGBColor;

/// A worker type, or what stands in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Look {
    /// As it is in the CSV.
    pub(crate) name: &'static str,
    pub(crate) legend: &'static str,
    pub(crate) colour: RGBColor,
    pub(crate) mark: Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Circle,
    Triangle,
    Square,
    Diamond,
    /// No marks, and a dashed line.
    Dashes,
}

/// In the order of the legends. The colours are those of Okabe and Ito, which
/// colour-blind people tell apart.
pub(crate) const LOOKS: [Look; 4] = [
    Look {
        name: "resource-manager",
        legend: "resource manager",
        colour: RGBColor(0xCC, 0x79, 0xA7),
        mark: Mark::Diamond,
    },
    Look {
        name: "pulpcore",
        legend: "pulpcore",
        colour: RGBColor(0xE6, 0x9F, 0x00),
        mark: Mark::Triangle,
    },
    Look {
        name: "postgres",
        legend: "postgres",
        colour: RGBColor(0x00, 0x72, 0xB2),
        mark: Mark::Circle,
    },
    Look { name: "redis", legend: "redis", colour: RGBColor(0x00, 0x9E, 0x73), mark: Mark::Square },
];

pub(crate) const IDEAL: Look = Look {
    name: "ideal",
    legend: "an ideal scheduler of the same tasks",
    colour: RGBColor(0, 0, 0),
    mark: Mark::Dashes,
};
