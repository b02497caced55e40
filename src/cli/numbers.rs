//! Numbers that would not arrive as they were given: the program holds integers of 64
//! bits and doubles, and a task's arguments should not change on their way unnoticed.

use serde_json::Number;

/// The first number in this valid JSON that would change, and into what.
pub(crate) fn first_changed(json: &str) -> Option<(&str, String)> {
    let mut rest = json;
    while let Some(start) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[start..];
        let is_string = rest.starts_with('"');
        let end = if is_string { end_of_string(rest) } else { end_of_number(rest) };
        let (token, after) = rest.split_at(end);
        rest = after;
        if is_string {
            continue;
        }
        let Ok(number) = token.parse::<Number>() else { continue };
        let held = number.to_string();
        if digits(token) != digits(&held) {
            return Some((token, held));
        }
    }
    None
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (place, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return place + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn end_of_number(text: &str) -> usize {
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
    text.find(|c| !is_part(c)).unwrap_or(text.len())
}

/// The digits that count, and where the point stands among them: the same for all ways
/// to write a number.
fn digits(number: &str) -> (String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let significant = all.trim_start_matches('0');
    let n_leading = (all.len() - significant.len()) as i64;
    let significant = significant.trim_end_matches('0');
    if significant.is_empty() {
        return (String::new(), 0);
    }
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX / 2);
    (significant.to_owned(), whole.len() as i64 - n_leading + exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_would_change_are_found() {
        for same in [
            "0",
            "-0.0",
            "1",
            "1.50",
            "1e2",
            "0.1",
            "-12.5E-3",
            "18446744073709551615",
            "[0.30]",
            r#"{"a": "123456789012345678901234567890", "b\"9": [1, 2.5]}"#,
            "1e300",
            "100000",
        ] {
            assert_eq!(first_changed(same), None, "{same}");
        }
        for (json, changed) in [
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            (r#"{"a\\": [1, 0.12345678901234567890123]}"#, "0.12345678901234567890123"),
            ("18446744073709551616.5", "18446744073709551616.5"),
            ("1e-400", "1e-400"),
        ] {
            assert_eq!(first_changed(json).map(|(token, _)| token), Some(changed), "{json}");
        }
    }
}
