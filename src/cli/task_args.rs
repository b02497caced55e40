//! The arguments of a task, as people write them: JSON, or field by field.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use millhand::Error;
use serde_json::{Map, Value};

use super::numbers::first_changed;

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    /// Pass ARGS to the handler: JSON, or KEY=VALUE (default: {})
    ///
    /// KEY=VALUE is a field that is a string, KEY:=JSON one that is any JSON;
    /// fields may be given many times.
    #[arg(short, long, value_name = "ARGS", conflicts_with = "args_file")]
    args: Vec<String>,
    /// Pass the JSON in FILE to the handler; - is stdin
    #[arg(long, value_name = "FILE")]
    args_file: Option<PathBuf>,
}

impl TaskArgs {
    /// Whether none were given.
    pub(crate) fn is_empty(&self) -> bool {
        self.args.is_empty() && self.args_file.is_none()
    }

    /// The JSON that the handler gets.
    pub(crate) fn value(&self) -> Result<Value, Error> {
        if let Some(path) = &self.args_file {
            return from_file(path);
        }
        let fields: Option<Vec<_>> = self.args.iter().map(|text| split_field(text)).collect();
        match (fields, self.args.as_slice()) {
            (Some(fields), _) => object(fields),
            (None, [text]) => from_json("--args", text).map_err(|error| {
                match text.is_empty() || text.starts_with(['{', '[', '"']) {
                    true => error,
                    false => Error::Config(format!("{error}; expected JSON, or KEY=VALUE")),
                }
            }),
            (None, _) => Err(Error::Config(
                "--args is given more than once; give one JSON value, or KEY=VALUE several times"
                    .to_owned(),
            )),
        }
    }
}

fn from_file(path: &Path) -> Result<Value, Error> {
    if path == Path::new("-") {
        let text = io::read_to_string(io::stdin().lock())
            .map_err(|error| Error::Config(format!("could not read stdin: {error}")))?;
        return from_json("stdin", &text);
    }
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Config(format!("could not read {place}: {error}")))?;
    from_json(&place, &text)
}

/// What stands before and after the `=`, and whether it is `:=`. No JSON looks like this.
fn split_field(text: &str) -> Option<(&str, bool, &str)> {
    let (key, value) = text.split_once('=')?;
    let (key, is_json) = key.strip_suffix(':').map_or((key, false), |key| (key, true));
    let is_key = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!key.is_empty() && key.chars().all(is_key)).then_some((key, is_json, value))
}

fn object(fields: Vec<(&str, bool, &str)>) -> Result<Value, Error> {
    let mut object = Map::new();
    for (key, is_json, text) in fields {
        let value = match is_json {
            true => from_json(&format!("--args {key}"), text)?,
            false => Value::String(text.to_owned()),
        };
        if object.insert(key.to_owned(), value).is_some() {
            return Err(Error::Config(format!("--args {key} is given more than once")));
        }
    }
    Ok(Value::Object(object))
}

/// Reads JSON that must be stored as it is.
fn from_json(place: &str, text: &str) -> Result<Value, Error> {
    if text.trim().is_empty() {
        return Err(Error::Config(format!("{place} is empty; expected JSON, such as {{}}")));
    }
    let value = serde_json::from_str(text)
        .map_err(|error| Error::Config(format!("{place} is not valid JSON: {error}")))?;
    match cannot_store(text, &value) {
        Some(what) => Err(Error::Config(format!("{place}: {what}"))),
        None => Ok(value),
    }
}

/// What of this JSON would not be the same in the table.
pub(crate) fn cannot_store(text: &str, value: &Value) -> Option<String> {
    if let Some((number, held)) = first_changed(text) {
        let number: String = number.chars().take(50).collect();
        return Some(format!(
            "the number {number} would become {held}; pass it as a string, or dispatch through SQL"
        ));
    }
    has_nul(value).then(|| {
        "a string holds the character \\u0000, which JSON in Postgres has no room for; leave it out"
            .to_owned()
    })
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => {
            fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(args: &[&str]) -> Result<Value, String> {
        let args = args.iter().map(|text| (*text).to_owned()).collect();
        TaskArgs { args, args_file: None }.value().map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_are_json_or_fields() {
        for (args, expected) in [
            (&[][..], json!({})),
            (&["[1, 2]"], json!([1, 2])),
            (&["\"a=b\""], json!("a=b")),
            (&["who=Ada", "n=1"], json!({"who": "Ada", "n": "1"})),
            (&["n:=1", "list:=[true]", "empty="], json!({"n": 1, "list": [true], "empty": ""})),
            (&["url=http://h/?a=b"], json!({"url": "http://h/?a=b"})),
        ] {
            assert_eq!(value(args), Ok(expected), "{args:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (args, message) in [
            (&[""][..], "--args is empty; expected JSON, such as {}"),
            (
                &["{\"a=1"],
                "--args is not valid JSON: EOF while parsing a string at line 1 column 5",
            ),
            (
                &["x"],
                "--args is not valid JSON: expected value at line 1 column 1; expected JSON, or \
                 KEY=VALUE",
            ),
            (&["a:=x"], "--args a is not valid JSON: expected value at line 1 column 1"),
            (&["a=1", "a=2"], "--args a is given more than once"),
            (
                &["a=1", "{}"],
                "--args is given more than once; give one JSON value, or KEY=VALUE several times",
            ),
            (
                &[r#"{"a": "\u0000"}"#],
                "--args: a string holds the character \\u0000, which JSON in Postgres has no room \
                 for; leave it out",
            ),
        ] {
            assert_eq!(value(args), Err(message.to_owned()), "{args:?}");
        }
    }
}
