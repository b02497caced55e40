//! The password file, read as libpq reads it: lines of
//! `host:port:database:user:password`, where `*` stands for anything.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;

/// The password of the first line that fits. A file that is not there has none, nor has one
/// that others may read.
pub(super) fn find(file: &Path, wanted: [&str; 4]) -> Option<Vec<u8>> {
    let metadata = std::fs::metadata(file).ok()?;
    let problem = if !metadata.is_file() {
        "is no plain file"
    } else if metadata.mode() & 0o077 != 0 {
        "can be read by others; chmod 600 makes it yours alone"
    } else {
        return find_in(&std::fs::read(file).ok()?, wanted);
    };
    // Each connection would say so.
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        log::warn!("the password file {} is ignored: it {problem}", file.display());
    });
    None
}

fn find_in(text: &[u8], wanted: [&str; 4]) -> Option<Vec<u8>> {
    text.split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .filter(|line| !line.starts_with(b"#"))
        .find_map(|line| password_in(line, wanted))
}

fn password_in(line: &[u8], wanted: [&str; 4]) -> Option<Vec<u8>> {
    let mut rest = line;
    for name in wanted {
        let (field, left) = next_field(rest)?;
        if rest[..rest.len() - left.len() - 1] != *b"*" && field != name.as_bytes() {
            return None;
        }
        rest = left;
    }
    let mut password = Vec::new();
    let mut bytes = rest.iter();
    while let Some(byte) = bytes.next() {
        // A backslash at the end stands for itself.
        password.push(if *byte == b'\\' { *bytes.next().unwrap_or(byte) } else { *byte });
    }
    Some(password)
}

/// What stands before the next colon, without backslashes, and what follows that.
fn next_field(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut field = Vec::new();
    let mut bytes = text.iter().enumerate();
    while let Some((index, byte)) = bytes.next() {
        match byte {
            b':' => return Some((field, &text[index + 1..])),
            b'\\' => field.push(*bytes.next()?.1),
            byte => field.push(*byte),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        for (text, expected) in [
            ("h:5432:d:u:one", Some("one")),
            ("# h:5432:d:u:no\nh:5432:d:u:one\nh:5432:d:u:two", Some("one")),
            ("h:5432:d:v:no\n*:*:*:*:any", Some("any")),
            ("*:*:*:u:a\\:b\\\\c:d", Some("a:b\\c:d")),
            ("h:5432:d:u:one\r\n", Some("one")),
            ("h:5432:d:u:", Some("")),
            ("\\h:5432:d:u:one", Some("one")),
            ("\\*:5432:d:u:no", None),
            ("h:5432:d:u", None),
            ("hh:5432:d:u:no\n", None),
            ("h*:5432:d:u:no\n", None),
            ("", None),
            ("\\", None),
        ] {
            let found = find_in(text.as_bytes(), ["h", "5432", "d", "u"]);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{text}");
        }
        let odd = find_in(b"a\\:b:1:c\\\\:*:p", ["a:b", "1", "c\\", "u"]);
        assert_eq!(odd.as_deref(), Some(&b"p"[..]));
    }
}
