//! Text with `{field}` in it: the arguments of commands, and the names of workers.

/// A piece of such a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Field(&'a str),
}

/// Takes it apart. Each brace is part of a `{field}`, or doubled: a slip is never taken for
/// text. The error says what is wrong, and what to write.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        pieces.push(Piece::Text(&rest[..at]));
        rest = &rest[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            pieces.push(Piece::Text(&rest[..1]));
            rest = &rest[2..];
            continue;
        }
        if rest.starts_with('}') {
            return Err("`}` closes nothing; write `}}` for a brace".to_owned());
        }
        // To a shell it is a variable, and everybody means that.
        if matches!(pieces.last(), Some(Piece::Text(before)) if before.ends_with('$')) {
            return Err("`${` would name a field; write `$NAME` for a variable of the shell, or \
                        `${{NAME}}`, and `{{` for a brace"
                .to_owned());
        }
        let Some(end) = rest.find('}') else {
            return Err("`{` is not closed; write `{{` for a brace".to_owned());
        };
        let field = &rest[1..end];
        if field.is_empty() || !field.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!(
                "`{{{field}}}` names no field, which takes letters, digits and `_`; \
                 write `{{{{` and `}}}}` for braces"
            ));
        }
        pieces.push(Piece::Field(field));
        rest = &rest[end + 1..];
    }
    pieces.push(Piece::Text(rest));
    pieces.retain(|piece| *piece != Piece::Text(""));
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::Piece::{Field, Text};
    use super::*;

    #[test]
    fn a_brace_is_part_of_a_field_or_doubled() {
        for (text, expected) in [
            ("", vec![]),
            ("plain", vec![Text("plain")]),
            ("--n={n}.{n_2}", vec![Text("--n="), Field("n"), Text("."), Field("n_2")]),
            ("{print}", vec![Field("print")]),
            ("{{print}}", vec![Text("{"), Text("print"), Text("}")]),
        ] {
            assert_eq!(pieces(text), Ok(expected), "{text}");
        }
        for (text, said) in [
            ("{file", "`{` is not closed"),
            ("{", "`{` is not closed"),
            ("a}b", "`}` closes nothing"),
            ("{}", "`{}` names no field"),
            ("{b.c}", "`{b.c}` names no field"),
            ("{print $1}", "`{print $1}` names no field"),
            ("${HOME}", "`${` would name a field"),
        ] {
            let reason = pieces(text).unwrap_err();
            assert!(
                reason.contains(said) && reason.contains("for a brace")
                    || reason.contains("for braces"),
                "{reason}"
            );
        }
    }
}
