//! Draws a figure as SVG, and makes a PNG of that.

use std::fs;
use std::path::Path;

use epaint_default_fonts::UBUNTU_LIGHT;
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use crate::Outcome;
use crate::axis::Axis;
use crate::chart::{Bar, Figure, Line, Panel};
use crate::look::{Look, Mark};

/// In pixels, as all that follows.
const SIZE: (u32, u32) = (1600, 700);
const MARGIN: i32 = 24;
const TITLE_TOP: i32 = 14;
const LEGEND_MIDDLE: i32 = 66;
const PANELS_TOP: i32 = 90;
const PANEL_TITLE_HEIGHT: i32 = 40;
const CAPTION_HEIGHT: i32 = 20;
const MARK_RADIUS: i32 = 5;

/// The name by which browsers know a font of their own.
const FONT: &str = "sans-serif";
const TITLE: (&str, u32) = (FONT, 30);
const PANEL_TITLE: (&str, u32) = (FONT, 22);
const TEXT: (&str, u32) = (FONT, 19);
const CAPTION: (&str, u32) = (FONT, 16);
/// Of the text in an SVG, as browsers draw it, in comparison with ours.
const WIDEST: f64 = 1.12;
const GREY: RGBColor = RGBColor(0x50, 0x50, 0x50);
const GRID: RGBColor = RGBColor(0xE0, 0xE0, 0xE0);

type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<Axis, Axis>>;

/// The font comes with the program: machines that measure seldom have one.
pub(crate) fn register_font() -> Outcome<()> {
    plotters::style::register_font(FONT, FontStyle::Normal, UBUNTU_LIGHT)
        .map_err(|_| "the font of the crate epaint_default_fonts is not one that plotters reads")?;
    Ok(())
}

/// Writes `path`.svg and `path`.png.
pub(crate) fn draw(figure: &Figure, path: &Path) -> Outcome<()> {
    let mut svg = String::new();
    draw_on(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), figure)?;
    let written = path.with_extension("svg");
    fs::write(&written, &svg)
        .map_err(|error| format!("could not write {}: {error}", written.display()))?;
    let mut options = Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_font_data(UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().find_map(|face| Some(face.families.first()?.0.clone()));
    fonts.set_sans_serif_family(family.unwrap_or_default());
    let tree = Tree::from_str(&svg, &options)?;
    let mut pixels = Pixmap::new(SIZE.0, SIZE.1).ok_or("a picture without pixels")?;
    resvg::render(&tree, Transform::default(), &mut pixels.as_mut());
    let written = path.with_extension("png");
    pixels
        .save_png(&written)
        .map_err(|error| format!("could not write {}: {error}", written.display()).into())
}

fn draw_on<DB: DrawingBackend<ErrorType: 'static>>(
    area: &DrawingArea<DB, Shift>,
    figure: &Figure,
) -> Outcome<()> {
    area.fill(&WHITE)?;
    let (width, height) = (SIZE.0 as i32, SIZE.1 as i32);
    area.draw(&Text::new(figure.title.clone(), (MARGIN, TITLE_TOP), TITLE.into_font()))?;
    draw_legend(area, &figure.legend)?;
    let width_of = |text: &str| area.estimate_text_size(text, &CAPTION.into()).map(|size| size.0);
    let mut captions = Vec::new();
    for caption in &figure.captions {
        let longest = f64::from(width - 2 * MARGIN) / WIDEST;
        captions.extend(wrap(caption, |line| Ok(f64::from(width_of(line)?) <= longest))?);
    }
    let mut top = height - 10 - CAPTION_HEIGHT * captions.len() as i32;
    let panels_height = top - 14 - PANELS_TOP;
    for line in captions {
        let style = CAPTION.into_font().color(&GREY);
        area.draw(&Text::new(line, (MARGIN, top), style))?;
        top += CAPTION_HEIGHT;
    }
    let n_shares: u32 = figure.panels.iter().map(|panel| panel.share).sum();
    let mut left = 0;
    for panel in &figure.panels {
        let panel_width = SIZE.0 * panel.share / n_shares;
        let size = (panel_width, panels_height as u32);
        draw_panel(area, &area.clone().shrink((left, PANELS_TOP), size), panel)?;
        left += panel_width as i32;
    }
    area.present()?;
    Ok(())
}

/// In one row, above the panels, where no data is.
fn draw_legend<DB: DrawingBackend<ErrorType: 'static>>(
    area: &DrawingArea<DB, Shift>,
    looks: &[Look],
) -> Outcome<()> {
    let mut left = MARGIN;
    for look in looks {
        let stroke = look.colour.stroke_width(3);
        let (begin, end) = ((left, LEGEND_MIDDLE), (left + 44, LEGEND_MIDDLE));
        if look.mark == Mark::Dashes {
            area.draw(&DashedPathElement::new(vec![begin, end], 9, 6, stroke))?;
        } else {
            area.draw(&PathElement::new(vec![begin, end], stroke))?;
            draw_mark(area, (left + 22, LEGEND_MIDDLE), look)?;
        }
        let style = TEXT.into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(look.legend, (left + 54, LEGEND_MIDDLE), style))?;
        let (width, _) = area.estimate_text_size(look.legend, &TEXT.into())?;
        left += 54 + (f64::from(width) * WIDEST) as i32 + 36;
    }
    Ok(())
}

fn draw_panel<DB: DrawingBackend<ErrorType: 'static>>(
    whole: &DrawingArea<DB, Shift>,
    area: &DrawingArea<DB, Shift>,
    panel: &Panel,
) -> Outcome<()> {
    let mut chart: Chart<'_, DB> = ChartBuilder::on(area)
        .margin_left(14)
        .margin_right(26)
        .margin_top(PANEL_TITLE_HEIGHT)
        .x_label_area_size(56)
        .y_label_area_size(84)
        .build_cartesian_2d(panel.x.clone(), panel.y.clone())?;
    let (across, down) = chart.plotting_area().get_pixel_range();
    let middle = i32::midpoint(across.start, across.end);
    let style = PANEL_TITLE.into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Bottom));
    whole.draw(&Text::new(panel.title.clone(), (middle, down.start - 14), style))?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(&panel.x.label)
        .y_desc(&panel.y.label)
        .label_style(TEXT)
        .axis_desc_style(TEXT)
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT);
    if !panel.bars.is_empty() {
        mesh.disable_x_mesh();
    }
    mesh.draw()?;
    for line in &panel.lines {
        draw_line(whole, &mut chart, line)?;
    }
    for (place, bar) in panel.bars.iter().enumerate() {
        draw_bar(&mut chart, place as f64, bar)?;
    }
    Ok(())
}

fn draw_line<DB: DrawingBackend<ErrorType: 'static>>(
    whole: &DrawingArea<DB, Shift>,
    chart: &mut Chart<'_, DB>,
    line: &Line,
) -> Outcome<()> {
    let least = line.band.iter().map(|(x, least, _)| (*x, *least));
    let most = line.band.iter().rev().map(|(x, _, most)| (*x, *most));
    let band: Vec<(f64, f64)> = least.chain(most).collect();
    if !band.is_empty() {
        chart.draw_series([Polygon::new(band, line.look.colour.mix(0.18))])?;
    }
    let stroke = line.look.colour.stroke_width(3);
    if line.look.mark == Mark::Dashes {
        chart.draw_series(DashedLineSeries::new(line.points.clone(), 9, 6, stroke))?;
        return Ok(());
    }
    chart.draw_series([PathElement::new(line.points.clone(), stroke)])?;
    for point in &line.points {
        let at = chart.backend_coord(point);
        draw_mark(whole, at, &line.look)?;
    }
    Ok(())
}

fn draw_bar<DB: DrawingBackend<ErrorType: 'static>>(
    chart: &mut Chart<'_, DB>,
    place: f64,
    bar: &Bar,
) -> Outcome<()> {
    let corners = [(place - 0.32, 0.0), (place + 0.32, bar.height)];
    chart.draw_series([Rectangle::new(corners, bar.look.colour.filled())])?;
    let style = TEXT.into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Bottom));
    let text = Text::new(bar.text.clone(), (0, -5), style);
    chart.draw_series([EmptyElement::at((place, bar.height)) + text])?;
    Ok(())
}

/// A shape for each type, for those who see no colours.
fn draw_mark<DB: DrawingBackend<ErrorType: 'static>>(
    area: &DrawingArea<DB, Shift>,
    (x, y): (i32, i32),
    look: &Look,
) -> Outcome<()> {
    let r = MARK_RADIUS;
    let corners = match look.mark {
        Mark::Circle => {
            area.draw(&Circle::new((x, y), r, look.colour.filled()))?;
            return Ok(());
        }
        Mark::Triangle => vec![(x, y - r - 1), (x + r + 1, y + r), (x - r - 1, y + r)],
        Mark::Square => vec![(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        Mark::Diamond => {
            vec![(x, y - r - 2), (x + r + 2, y), (x, y + r + 2), (x - r - 2, y)]
        }
        Mark::Dashes => return Ok(()),
    };
    area.draw(&Polygon::new(corners, look.colour.filled()))?;
    Ok(())
}

/// Breaks a text between words into lines that fit.
fn wrap(text: &str, fits: impl Fn(&str) -> Outcome<bool>) -> Outcome<Vec<String>> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match longer {
            Some(longer) if fits(&longer)? => {
                lines.pop();
                lines.push(longer);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_captions_are_broken_between_words() {
        let lines = wrap("one two three four", |line| Ok(line.len() <= 9)).unwrap();
        assert_eq!(lines, ["one two", "three", "four"]);
    }
}
