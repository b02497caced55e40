//! Placeholders in the command of a handler.

use crate::worker::args::Args;

/// Replaces `{field}` by that field of the arguments. The error is the field that is missing.
pub(super) fn fill_in(part: &str, args: &Args) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = part;
    while let Some(at) = rest.find(['{', '}']) {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            filled.push_str(&rest[..1]);
            rest = &rest[2..];
            continue;
        }
        let field = rest[1..].split('}').next().unwrap_or_default();
        let is_field = rest.starts_with('{')
            && rest.len() > field.len() + 1
            && !field.is_empty()
            && field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_field {
            filled.push_str(&rest[..1]);
            rest = &rest[1..];
            continue;
        }
        match args.field(field) {
            Some(text) => filled.push_str(&text),
            None => return Err(field.to_owned()),
        }
        rest = &rest[field.len() + 2..];
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::{Args, fill_in};

    #[test]
    fn placeholders_become_one_argument_each() {
        let args = r#"{"path": "a b; rm -rf /", "n": 3, "list": ["x"]}"#;
        let args = Args::new(Some(args.to_owned()));
        for (part, expected) in [
            ("plain", Ok("plain")),
            ("{path}", Ok("a b; rm -rf /")),
            ("--n={n}.{n}", Ok("--n=3.3")),
            ("{list}", Ok(r#"["x"]"#)),
            ("{{path}}", Ok("{path}")),
            ("{print $1}", Ok("{print $1}")),
            ("{", Ok("{")),
            ("a}b", Ok("a}b")),
            ("{path", Ok("{path")),
            ("{}", Ok("{}")),
            ("{gone}", Err("gone")),
        ] {
            let filled = fill_in(part, &args);
            assert_eq!(filled.as_deref().map_err(String::as_str), expected, "{part}");
        }
    }
}
