//! Connection strings, read as libpq reads them: a URL, or words such as `host=db user=ada`.
//!
//! No message quotes anything but a key: what cannot be read may be part of a password.

use crate::error::Error;

/// What can be expected where nothing can be read.
const EXPECTED: &str = "expected postgresql://USER@HOST:PORT/DATABASE or host=HOST dbname=DATABASE";

/// The keys and values of a connection string, in its order; of two with one key the later
/// one counts.
pub(super) fn split(text: &str) -> Result<Vec<(String, String)>, Error> {
    if text.trim().is_empty() {
        return Err(wrong("it is empty; name a database, as in postgresql:///mydb"));
    }
    match ["postgresql://", "postgres://"].iter().find_map(|start| text.strip_prefix(start)) {
        Some(rest) => split_url(rest),
        None => split_words(text),
    }
}

/// Whether it is a URL and not words.
pub(super) fn is_url(text: &str) -> bool {
    text.starts_with("postgresql://") || text.starts_with("postgres://")
}

/// The same string with one more setting, which counts more than any before it.
pub(super) fn append(text: &mut String, key: &str, value: &str) {
    if is_url(text) {
        text.push(if text.contains('?') { '&' } else { '?' });
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            text.push_str(&format!("%{byte:02X}"));
        }
    } else {
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        text.push_str(&format!(" {key}='{value}'"));
    }
}

pub(super) fn wrong(what: &str) -> Error {
    Error::Config(format!("the database URL cannot be read: {what}"))
}

fn split_url(text: &str) -> Result<Vec<(String, String)>, Error> {
    let mut settings = Vec::new();
    let mut rest = text;
    // (A password may hold a question mark.)
    let end = text.find(['@', '/']).unwrap_or(text.len());
    if text[end..].starts_with('@') {
        let (user, password) = text[..end].split_once(':').unwrap_or((&text[..end], ""));
        put(&mut settings, "user", &decode(user, "the user")?);
        put(&mut settings, "password", &decode(password, "the password")?);
        rest = &text[end + 1..];
    }
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
    if hosts.contains('@') || database.contains(['@', '/']) {
        return Err(wrong("in a user, a password or a database @ is written %40, and a slash %2F"));
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(address) => {
                let (address, port) =
                    address.split_once(']').ok_or_else(|| wrong("a [ has no ]"))?;
                if !port.is_empty() && !port.starts_with(':') {
                    return Err(wrong("after ] a colon and a port are expected"));
                }
                (address, port.trim_start_matches(':'))
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(decode(name, "a host")?);
        ports.push(decode(port, "a port")?);
    }
    put_list(&mut settings, "host", &names);
    put_list(&mut settings, "port", &ports);
    put(&mut settings, "dbname", &decode(database, "the database")?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| wrong("a key after the ? has no value"))?;
        let (key, value) = (decode(key, "a key")?, decode(value, "a value")?);
        // As JDBC says it; libpq knows that, too.
        if (key.as_str(), value.as_str()) == ("ssl", "true") {
            settings.push(("sslmode".to_owned(), "require".to_owned()));
        } else {
            settings.push((key, value));
        }
    }
    Ok(settings)
}

fn put(settings: &mut Vec<(String, String)>, key: &str, value: &str) {
    if !value.is_empty() {
        settings.push((key.to_owned(), value.to_owned()));
    }
}

fn put_list(settings: &mut Vec<(String, String)>, key: &str, values: &[String]) {
    if values.iter().any(|value| !value.is_empty()) {
        put(settings, key, &values.join(","));
    }
}

fn decode(text: &str, what: &str) -> Result<String, Error> {
    let bad = || wrong(&format!("{what} is not well encoded; a % itself is written %25"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(bad()) };
        let Ok(byte @ 1..) = u8::try_from(high * 16 + low) else { return Err(bad()) };
        bytes.push(byte);
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn split_words(text: &str) -> Result<Vec<(String, String)>, Error> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let key = &rest[..end];
        let Some(value) = rest[end..].trim_start().strip_prefix('=').filter(|_| end > 0) else {
            return Err(wrong(if settings.is_empty() { EXPECTED } else { BLANKS }));
        };
        let (value, left) = value_of(value.trim_start())?;
        settings.push((key.to_owned(), value));
        rest = left.trim_start();
    }
    Ok(settings)
}

/// What mostly is the reason for a word that is none.
const BLANKS: &str = "a word has no `=`; a value with blanks is written in '...'";

/// The first value of the text, and what follows it.
fn value_of(text: &str) -> Result<(String, &str), Error> {
    let (text, is_quoted) = match text.strip_prefix('\'') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\'' if is_quoted => return Ok((value, &text[index + 1..])),
            character if !is_quoted && character.is_whitespace() => {
                return Ok((value, &text[index..]));
            }
            '\\' => value.extend(characters.next().map(|(_, character)| character)),
            character => value.push(character),
        }
    }
    if is_quoted { Err(wrong("a ' has no end")) } else { Ok((value, "")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    fn joined(text: &str) -> String {
        let pairs = split(text).unwrap();
        pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn urls_and_words_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("postgresql://", ""),
            ("postgresql:///", ""),
            ("postgresql:///d", "dbname=d"),
            ("postgres://h", "host=h"),
            ("postgresql://h:7/", "host=h port=7"),
            ("postgresql://u@h", "user=u host=h"),
            ("postgresql://u:p@h/d", "user=u password=p host=h dbname=d"),
            ("postgresql://u:p%40%2F%3a@h/d", "user=u password=p@/: host=h dbname=d"),
            ("postgresql://u:p?q@h/d", "user=u password=p?q host=h dbname=d"),
            ("postgresql://u:p:q@h", "user=u password=p:q host=h"),
            ("postgresql://a,b:7/d", "host=a,b port=,7 dbname=d"),
            ("postgresql://[::1]:7,[::2]/d", "host=::1,::2 port=7, dbname=d"),
            ("postgresql://%2Ftmp/d", "host=/tmp dbname=d"),
            ("postgresql:///d?host=/tmp&port=7", "dbname=d host=/tmp port=7"),
            ("postgresql://h/?user=u@v", "host=h user=u@v"),
            ("postgresql://h/d?ssl=true", "host=h dbname=d sslmode=require"),
            ("postgresql:///d?a=b=c", "dbname=d a=b=c"),
            ("host=a,b port=6", "host=a,b port=6"),
            ("  host = a   user= 'x y'  ", "host=a user=x y"),
            (r"password='a\'b\\c' user=\ a", r"password=a'b\c user= a"),
            ("host='' user=u", "host= user=u"),
            ("host=a\nuser=u", "host=a user=u"),
        ] {
            assert_eq!(joined(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_without_a_quote() {
        for text in [
            "",
            " \t\n",
            "secret",
            "nonsense://u:secret@h/d",
            "postgresql://u:secret/x@h/d",
            "postgresql://u:5/secret@h/d",
            "postgresql://u:p@secret@h/d",
            "postgresql://u:secret%@h/d",
            "postgresql://u:secret%4@h/d",
            "postgresql://u:secret%00@h/d",
            "postgresql://u:secret%ff@h/d",
            "postgresql://[secret/d",
            "postgresql://[::1]secret/d",
            "postgresql:///d?secret",
            "password=a secret",
            "password='secret",
            "=secret",
            "host=a =secret",
        ] {
            let said = split(text).unwrap_err().to_string();
            assert!(!said.contains("secret") && !said.contains('\n'), "{text}: {said}");
        }
    }

    #[test]
    fn what_is_appended_counts_most() {
        for mut text in ["postgresql://h", "postgresql://h/d?a=b", "host=h"].map(str::to_owned) {
            append(&mut text, "sslrootcert", r"/a b'&\%ü");
            let (key, value) = split(&text).unwrap().pop().unwrap();
            assert_eq!((key.as_str(), value.as_str()), ("sslrootcert", r"/a b'&\%ü"));
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        let parts = ["postgresql://", "@", ":", "/", "?", "&", "=", "%", "%4", "[", "]", ",", "'"]
            .into_iter()
            .chain(["\\", " ", "a", "ü", "host=", "\0"])
            .collect::<Vec<_>>();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let text: String =
                (0..random.usize(..9)).map(|_| parts[random.usize(..parts.len())]).collect();
            let _ = split(&text);
        }
    }
}
