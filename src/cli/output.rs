//! How things are printed for people: tables, durations, text that is safe for
//! a terminal.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use comfy_table::{Cell, ContentArrangement, Row, Table, presets};
use jiff::Timestamp;
use millhand::TaskState;
use serde::Serialize;

/// The longest text in a cell of a table.
const WIDEST: usize = 60;

/// Prints a line about something that went wrong.
pub(crate) fn complain(message: &str) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "millhand: {}", printable(message));
}

/// The text with everything that a terminal would obey, or that would change
/// the order of what is read, spelt out.
pub(crate) fn printable(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if is_obeyed(character) {
            let _ = write!(plain, "{}", character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// One line of JSON with the same spelt out, as JSON does it.
pub(crate) fn json_line(out: &mut impl io::Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(value).map_err(io::Error::from)?;
    let mut plain = String::with_capacity(text.len());
    // Outside of strings JSON has no such characters.
    for character in text.chars() {
        if is_obeyed(character) {
            let _ = write!(plain, "\\u{:04x}", u32::from(character));
        } else {
            plain.push(character);
        }
    }
    writeln!(out, "{plain}")
}

/// Whether a terminal would obey this, or show what follows in another order.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// As `printable`, but lines stay lines and tabs stay tabs.
pub(crate) fn printable_lines(text: &str) -> String {
    let line = |line: &str| line.split('\t').map(printable).collect::<Vec<_>>().join("\t");
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// As `printable`, cut to the width of a cell.
pub(crate) fn short(text: &str) -> String {
    let mut text: String = text.chars().take(WIDEST + 1).collect();
    if text.chars().count() > WIDEST {
        text.pop();
        text.pop();
        text.push('…');
    }
    printable(&text)
}

/// Names in one cell, told apart: one with a comma, a blank or a quote in it, or that could
/// be taken for none at all, is quoted as JSON does it.
pub(crate) fn names(names: &[String]) -> String {
    if names.is_empty() {
        return "-".to_owned();
    }
    let quoted = names.iter().map(|name| {
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ',' | '"');
        match name == "-" || name.contains(is_odd) {
            true => serde_json::Value::from(name.as_str()).to_string(),
            false => name.clone(),
        }
    });
    quoted.collect::<Vec<_>>().join(", ")
}

/// A state's colour, if it should catch the eye.
pub(crate) fn colour_of(state: TaskState) -> Option<Colour> {
    match state {
        TaskState::Running => Some(Colour::Cyan),
        TaskState::Canceling | TaskState::Canceled => Some(Colour::Yellow),
        TaskState::Completed => Some(Colour::Green),
        TaskState::Failed => Some(Colour::Red),
        TaskState::Scheduled | TaskState::Waiting => None,
    }
}

/// Seconds as people say them, to two units: `0.123s`, `5.0s`, `2m 5s`, `3d 4h`.
pub(crate) fn seconds(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    if seconds < 1.0 {
        return format!("{seconds:.3}s");
    }
    if seconds < 60.0 {
        return format!("{seconds:.1}s");
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above")]
    let whole = seconds as u64;
    match whole {
        0..3600 => format!("{}m {}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h {}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {}h", whole / 86400, whole % 86400 / 3600),
    }
}

/// Seconds from one moment to another.
pub(crate) fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

pub(crate) use comfy_table::Color as Colour;

/// Whether a stream takes colours: a terminal that can, unless `NO_COLOR` says otherwise
/// (<https://no-color.org>).
fn takes_colours(is_terminal: bool) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|it| it != "dumb")
}

/// A listing: a table for people, JSON lines for programs.
pub(crate) struct Listing<'a> {
    titles: &'a [&'a str],
    no_header: bool,
}

impl<'a> Listing<'a> {
    pub(crate) fn new(titles: &'a [&'a str], no_header: bool) -> Listing<'a> {
        Listing { titles, no_header }
    }

    /// Prints all of it to stdout.
    pub(crate) fn print<T: Serialize>(
        &self,
        json: bool,
        items: &[T],
        row: impl Fn(&T) -> Vec<(String, Option<Colour>)>,
    ) -> io::Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        if json {
            for item in items {
                json_line(&mut out, item)?;
            }
            return out.flush();
        }
        if items.is_empty() && self.no_header {
            return Ok(());
        }
        let is_terminal = io::stdout().is_terminal();
        let has_colours = takes_colours(is_terminal);
        let rows = items.iter().map(|item| {
            let cells = row(item).into_iter().map(|(text, colour)| match colour {
                Some(colour) if has_colours => Cell::new(text).fg(colour),
                _ => Cell::new(text),
            });
            cells.collect()
        });
        let header = (!self.no_header).then_some(self.titles);
        let width = is_terminal.then(terminal_width).flatten();
        writeln!(out, "{}", draw(header, rows, has_colours, width))?;
        out.flush()
    }
}

/// The columns of the terminal that stdout is.
fn terminal_width() -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// A table without lines, as wide as its content.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rows = rows.into_iter().map(|row| row.into_iter().map(Cell::new).collect());
    draw(Some(header), rows, false, None)
}

/// Cells that the width, if there is one, has no room for are cut.
fn draw(
    header: Option<&[&str]>,
    rows: impl Iterator<Item = Vec<Cell>>,
    has_colours: bool,
    width: Option<u16>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        table.set_truncation_indicator("…");
    }
    if has_colours {
        table.enforce_styling();
    }
    if let Some(header) = header {
        table.set_header(header.iter().map(|title| Cell::new(title.to_uppercase())));
    }
    for row in rows {
        let mut row = Row::from(row);
        table.add_row(std::mem::take(row.max_height(1)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_commands_are_spelt_out() {
        assert_eq!(
            printable("a\x1b[31mb\r\n\u{9b}c\u{202e}d é"),
            "a\\u{1b}[31mb\\r\\n\\u{9b}c\\u{202e}d é"
        );
        assert_eq!(printable_lines("a\tb\n\x07c"), "a\tb\n\\u{7}c");
    }

    #[test]
    fn long_text_is_cut_to_a_cell() {
        assert_eq!(short(&"x".repeat(60)), "x".repeat(60));
        assert_eq!(short(&"x".repeat(61)).chars().count(), 60);
    }

    #[test]
    fn names_are_told_apart() {
        for (list, expected) in [
            (&[][..], "-"),
            (&["a", "+b"], "a, +b"),
            (&["x y", "z"], "\"x y\", z"),
            (&["a,b"], "\"a,b\""),
            (&["-"], "\"-\""),
        ] {
            let list: Vec<String> = list.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(names(&list), expected);
        }
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (value, text) in [
            (-1.0, "0.000s"),
            (0.1234, "0.123s"),
            (5.04, "5.0s"),
            (125.0, "2m 5s"),
            (7260.0, "2h 1m"),
            (273_600.0, "3d 4h"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let text = table(&["id", "name"], [vec!["1".to_owned(), "a".to_owned()]]);
        assert_eq!(text, "ID  NAME\n1   a");
    }
}
