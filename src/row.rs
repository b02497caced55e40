//! Reads what a column may hold beside what it should: rows are written by other
//! programs, too, and by hand. What cannot be represented is replaced by what comes
//! nearest, so that one row is no reason not to read the others.

use std::error::Error;

use jiff::{SignedDuration, Timestamp};
use postgres::types::{FromSql, Type};
use serde_json::Value;

/// The names in a list of any dimensions. Nulls name nothing.
pub(crate) struct Names(pub(crate) Vec<String>);

impl<'a> FromSql<'a> for Names {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Names, Box<dyn Error + Sync + Send>> {
        // Number of dimensions, flags, type; for each dimension its length and where
        // it begins; then each element with its length, which is -1 for null.
        let mut rest = raw;
        let n_dimensions = take_i32(&mut rest)?;
        take_i32(&mut rest)?;
        take_i32(&mut rest)?;
        for _ in 0..n_dimensions {
            take_i32(&mut rest)?;
            take_i32(&mut rest)?;
        }
        let mut names = Vec::new();
        while !rest.is_empty() {
            if let Ok(length) = usize::try_from(take_i32(&mut rest)?) {
                let (name, after) = rest.split_at_checked(length).ok_or("an array ends early")?;
                names.push(String::from_utf8_lossy(name).into_owned());
                rest = after;
            }
        }
        Ok(Names(names))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TEXT_ARRAY
    }
}

fn take_i32(rest: &mut &[u8]) -> Result<i32, &'static str> {
    let (number, after) = rest.split_first_chunk().ok_or("an array ends early")?;
    *rest = after;
    Ok(i32::from_be_bytes(*number))
}

/// A time; what is out of range, such as `infinity`, is the end of the range.
pub(crate) struct Moment(pub(crate) Timestamp);

/// 2000-01-01, from which Postgres counts, in microseconds since 1970.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Moment, Box<dyn Error + Sync + Send>> {
        let since_epoch = i64::from_be_bytes(raw.try_into()?);
        let end = if since_epoch < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let moment = since_epoch
            .checked_add(POSTGRES_EPOCH)
            .and_then(|micros| Timestamp::from_duration(SignedDuration::from_micros(micros)).ok())
            .unwrap_or(end);
        Ok(Moment(moment))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TIMESTAMPTZ
    }
}

/// A JSON value; one that [`Value`] cannot hold is its text, as a string.
pub(crate) struct Json(pub(crate) Value);

impl<'a> FromSql<'a> for Json {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Json, Box<dyn Error + Sync + Send>> {
        // A byte for the version, then text.
        let text = raw.get(1..).unwrap_or_default();
        let value = serde_json::from_slice(text)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(text).into_owned()));
        Ok(Json(value))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSONB
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn times_beyond_the_range_are_its_ends() {
        let read = |micros: i64| Moment::from_sql(&Type::TIMESTAMPTZ, &micros.to_be_bytes());
        for (micros, expected) in [
            (0, "2000-01-01T00:00:00Z".parse().unwrap()),
            (i64::MAX, Timestamp::MAX),
            (i64::MIN, Timestamp::MIN),
            (i64::MAX - 1, Timestamp::MAX),
        ] {
            assert_eq!(read(micros).unwrap().0, expected);
        }
    }

    #[test]
    fn json_beyond_the_range_is_its_text() {
        let read = |text: &str| Json::from_sql(&Type::JSONB, &[b"\x01", text.as_bytes()].concat());
        assert_eq!(read("[1]").unwrap().0, serde_json::json!([1]));
        assert_eq!(read("1e400").unwrap().0, serde_json::json!("1e400"));
    }
}
