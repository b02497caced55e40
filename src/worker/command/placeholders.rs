//! Placeholders in the command of a handler.

use crate::config::placeholders::{Piece, pieces};
use crate::worker::args::Args;

/// Replaces `{field}` by that field of the arguments. The error says what is wrong with them.
pub(super) fn fill_in(part: &str, args: &Args) -> Result<String, String> {
    let mut filled = String::new();
    for piece in pieces(part)? {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            // The word `null` would be taken for a value.
            Piece::Field(field) if args.is_null(field) => {
                return Err(format!("the field `{field}` of the arguments is null"));
            }
            Piece::Field(field) => match args.field(field) {
                Some(text) => filled.push_str(&text),
                None => return Err(format!("the arguments have no field `{field}`")),
            },
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::{Args, fill_in};

    #[test]
    fn placeholders_become_one_argument_each() {
        let args =
            r#"{"path": "a b; rm -rf /", "n": 3, "list": ["x"], "no": null, "word": "null"}"#;
        let args = Args::new(Some(args.to_owned()));
        for (part, expected) in [
            ("plain", "plain"),
            ("{path}", "a b; rm -rf /"),
            ("--n={n}.{n}", "--n=3.3"),
            ("{list}", r#"["x"]"#),
            ("{word}", "null"),
            ("{{path}}", "{path}"),
        ] {
            assert_eq!(fill_in(part, &args).as_deref(), Ok(expected), "{part}");
        }
        let reason = |part| fill_in(part, &args).unwrap_err();
        assert_eq!(reason("{gone}"), "the arguments have no field `gone`");
        assert_eq!(reason("{no}"), "the field `no` of the arguments is null");
    }
}
