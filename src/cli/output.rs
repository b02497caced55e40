//! How things are printed for people: tables, durations, text that is safe for
//! a terminal.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use comfy_table::{Cell, ContentArrangement, Table, presets};
use jiff::Timestamp;
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

/// A table without lines, as wide as its content.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|title| Cell::new(title.to_uppercase())));
    for row in rows {
        table.add_row(row);
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
