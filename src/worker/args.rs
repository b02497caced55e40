//! The arguments of a claimed task, as they stand in its row.
//!
//! They are text until somebody needs more of them: Postgres holds numbers that no
//! type of ours does, and lists nested deeper than our parser goes. A command gets
//! them unchanged, and what a function cannot be given ends its own task alone.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// JSON text, and its fields if it is an object.
#[derive(Debug, Clone)]
pub(crate) struct Args {
    text: Option<String>,
    fields: OnceCell<BTreeMap<String, Box<RawValue>>>,
}

impl Args {
    /// As a turn returns them: null if they are too long (`args_text`).
    pub(crate) fn new(text: Option<String>) -> Args {
        Args { text, fields: OnceCell::new() }
    }

    /// The text, or why there is none.
    pub(crate) fn text(&self) -> Result<&str, String> {
        self.text.as_deref().ok_or_else(|| {
            "the arguments cannot be read: they take more than 16 MiB as text; \
             store large data elsewhere and pass where it is"
                .to_owned()
        })
    }

    /// The field of this name: a string as it is, anything else as JSON.
    pub(crate) fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        let json = self.json(name)?;
        match serde_json::from_str::<String>(json) {
            Ok(text) => Some(Cow::Owned(text)),
            Err(_) => Some(Cow::Borrowed(json)),
        }
    }

    /// Whether the field of this name is there and holds nothing.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.json(name) == Some("null")
    }

    fn json(&self, name: &str) -> Option<&str> {
        let fields = self.fields.get_or_init(|| {
            let text = self.text.as_deref().unwrap_or_default();
            serde_json::from_str(text).unwrap_or_default()
        });
        fields.get(name).map(|json| json.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_is_beside_them() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let args = Args::new(Some(format!(
            r#"{{"a": "x\ny", "n": 1e400, "m": 123456789012345678901234567890, "deep": {deep}}}"#
        )));
        for (name, expected) in [
            ("a", Some("x\ny")),
            ("n", Some("1e400")),
            ("m", Some("123456789012345678901234567890")),
            ("deep", Some(deep.as_str())),
            ("gone", None),
        ] {
            assert_eq!(args.field(name).as_deref(), expected, "{name}");
        }
        assert_eq!(Args::new(Some("[1]".to_owned())).field("a"), None);
    }
}
