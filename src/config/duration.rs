//! Times of settings and flags.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};

/// What is expected of a time, for messages.
pub(super) const EXPECTED: &str = "a time, such as 30s, or a number of seconds";

/// Reads a time, such as `30s`, `500ms` or `1h 30m`; a plain number means seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    parsed.ok_or_else(|| format!("expected {EXPECTED}"))
}

/// The same, of a key of the file, where it may be a number.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Time {
        Seconds(f64),
        Text(String),
    }
    match Time::deserialize(deserializer)? {
        Time::Seconds(seconds) => parse_duration(&seconds.to_string()),
        Time::Text(text) => parse_duration(&text),
    }
    .map_err(D::Error::custom)
}

/// The same, where there may be none.
pub(super) fn read_some<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    read(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_number_means_seconds() {
        for (text, millis) in [
            ("30", Some(30_000)),
            ("0.5", Some(500)),
            ("30s", Some(30_000)),
            ("1m 5s", Some(65_000)),
        ] {
            assert_eq!(parse_duration(text).ok(), millis.map(Duration::from_millis), "{text}");
        }
        for text in ["", "soon", "-1", "inf", "nan", "1e300", "5 parsecs"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
