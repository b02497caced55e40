//! A CSV file that begins with comments, which say what was run and on what.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::Outcome;

#[derive(Debug, PartialEq)]
pub(crate) struct Table {
    /// Names and values, in order.
    pub(crate) comments: Vec<(String, String)>,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A row, and the names of its fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    columns: &'a [String],
    fields: &'a [String],
}

impl<'a> Record<'a> {
    /// Empty if there is none.
    pub(crate) fn text(&self, column: &str) -> &'a str {
        let place = self.columns.iter().position(|name| name == column);
        place.and_then(|place| self.fields.get(place)).map_or("", String::as_str)
    }

    /// None of a run that failed.
    pub(crate) fn number(&self, column: &str) -> Option<f64> {
        self.text(column).parse().ok()
    }

    /// Numbers in one field, between spaces.
    pub(crate) fn numbers(&self, column: &str) -> Vec<f64> {
        self.text(column).split(' ').filter_map(|number| number.parse().ok()).collect()
    }
}

impl Table {
    pub(crate) fn read(path: &Path) -> Outcome<Table> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("{error}; run it without --from to measure"))?;
        Table::parse(&text)
    }

    pub(crate) fn write(&self, path: &Path) -> Outcome<()> {
        fs::write(path, self.to_text()?)
            .map_err(|error| format!("could not write {}: {error}", path.display()).into())
    }

    fn parse(text: &str) -> Outcome<Table> {
        let comments = text.lines().filter_map(|line| line.strip_prefix("# ")?.split_once(": "));
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        let texts = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect();
        Ok(Table {
            comments: comments.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            columns: texts(reader.headers()?),
            rows: reader.records().map(|row| Ok(texts(&row?))).collect::<Outcome<_>>()?,
        })
    }

    fn to_text(&self) -> Outcome<String> {
        let comments = self.comments.iter().map(|(name, value)| format!("# {name}: {value}\n"));
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(&self.columns)?;
        for row in &self.rows {
            writer.write_record(row)?;
        }
        writer.flush()?;
        let bytes = writer.into_inner().map_err(|error| error.to_string())?;
        Ok(comments.collect::<String>() + &String::from_utf8(bytes)?)
    }

    /// The value of the comment of this name; empty if there is none.
    pub(crate) fn comment(&self, name: &str) -> &str {
        self.comments.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.rows.iter().map(|fields| Record { columns: &self.columns, fields })
    }

    /// What is in this column, each once; a number that is not there is an error.
    pub(crate) fn distinct(&self, column: &str) -> Outcome<Vec<u64>> {
        let parse = |record: Record<'_>| {
            let text = record.text(column);
            text.parse().map_err(|_| format!("its column {column} says `{text}`, not a number"))
        };
        let values: Result<BTreeSet<u64>, String> = self.records().map(parse).collect();
        Ok(values?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |fields: [&str; 3]| fields.map(str::to_owned).to_vec();
        Table {
            comments: vec![("command".to_owned(), "millhand bench: a, b".to_owned())],
            columns: row(["type", "threads", "ends"]),
            rows: vec![row(["redis", "8", "1 2 3"]), row(["a, \"b\"", "2", ""])],
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let table = table();
        assert_eq!(Table::parse(&table.to_text().unwrap()).unwrap(), table);
    }

    #[test]
    fn an_empty_field_is_no_number() {
        let table = table();
        let records: Vec<Record<'_>> = table.records().collect();
        assert_eq!(records[0].numbers("ends"), [1.0, 2.0, 3.0]);
        assert_eq!(records[1].number("ends"), None);
        assert_eq!(table.distinct("threads").unwrap(), [2, 8]);
        assert!(table.distinct("type").is_err());
        assert_eq!(table.comment("command"), "millhand bench: a, b");
    }
}
