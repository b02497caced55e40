//! What a connection is told: by its string, else by a service, else by the environment,
//! as libpq does it (`postgresql:///` reaches what `psql postgresql:///` does).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::text;
use super::{password, service};
use crate::error::Error;

/// What a key is good for here.
#[derive(Clone, Copy)]
enum Use {
    /// It counts.
    Counts,
    /// Nothing here depends on it.
    Ignored,
    /// Only these values can be had.
    Only(&'static [&'static str]),
}
use Use::{Counts, Ignored, Only};

/// Every key of libpq, and the variable that stands for it.
const KEYS: [(&str, &str, Use); 49] = [
    ("host", "PGHOST", Counts),
    ("hostaddr", "PGHOSTADDR", Counts),
    ("port", "PGPORT", Counts),
    ("dbname", "PGDATABASE", Counts),
    ("user", "PGUSER", Counts),
    ("password", "PGPASSWORD", Counts),
    ("passfile", "PGPASSFILE", Counts),
    ("service", "PGSERVICE", Counts),
    ("servicefile", "PGSERVICEFILE", Counts),
    ("options", "PGOPTIONS", Counts),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Counts),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Counts),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Counts),
    ("keepalives", "", Counts),
    ("keepalives_idle", "", Counts),
    ("keepalives_interval", "", Counts),
    ("keepalives_count", "", Counts),
    ("tcp_user_timeout", "", Counts),
    ("sslmode", "PGSSLMODE", Counts),
    ("sslnegotiation", "PGSSLNEGOTIATION", Counts),
    ("sslrootcert", "PGSSLROOTCERT", Counts),
    ("sslcert", "PGSSLCERT", Counts),
    ("sslkey", "PGSSLKEY", Counts),
    ("sslsni", "PGSSLSNI", Counts),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", Counts),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", Counts),
    ("channel_binding", "PGCHANNELBINDING", Counts),
    // Ours says what a session is for, and others look at it.
    ("application_name", "PGAPPNAME", Ignored),
    ("fallback_application_name", "", Ignored),
    ("client_encoding", "PGCLIENTENCODING", Ignored),
    ("sslcompression", "PGSSLCOMPRESSION", Ignored),
    ("krbsrvname", "PGKRBSRVNAME", Ignored),
    ("gsslib", "PGGSSLIB", Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Ignored),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Ignored),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", Only(&["3.0"])),
    ("gssencmode", "PGGSSENCMODE", Only(&["disable", "prefer"])),
    ("sslcertmode", "PGSSLCERTMODE", Only(&["allow"])),
    ("replication", "", Only(&["false", "off", "no", "0"])),
    // What would be weaker, or mean something else, if it were ignored.
    ("require_auth", "PGREQUIREAUTH", Only(&[])),
    ("requirepeer", "PGREQUIREPEER", Only(&[])),
    ("sslcrl", "PGSSLCRL", Only(&[])),
    ("sslcrldir", "PGSSLCRLDIR", Only(&[])),
    ("sslpassword", "", Only(&[])),
    ("sslkeylogfile", "", Only(&[])),
    ("scram_client_key", "", Only(&[])),
    ("scram_server_key", "", Only(&[])),
    ("oauth_issuer", "", Only(&[])),
    ("oauth_client_id", "", Only(&[])),
];

/// The keys whose values are files.
const FILES: [&str; 5] = ["passfile", "servicefile", "sslrootcert", "sslcert", "sslkey"];

/// The values of all keys that count and are not empty.
pub(super) struct Parameters {
    values: BTreeMap<&'static str, String>,
    /// Where files are that are not named.
    home: Option<PathBuf>,
}

impl Parameters {
    pub(super) fn read(text: &str) -> Result<Parameters, Error> {
        Parameters::read_in(text, std::env::home_dir(), &|name| std::env::var(name).ok())
    }

    fn read_in(
        text: &str,
        home: Option<PathBuf>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Parameters, Error> {
        let mut values = known(text::split(text)?, text::is_url(text))?;
        let variable = |wanted: &str| {
            let (_, name, _) = KEYS.iter().find(|(key, _, _)| *key == wanted)?;
            environment(name)
        };
        // An address belongs to the host that it was said with.
        let says_host = values.get("host").is_some_and(|host| !host.is_empty());
        let or_variable = |values: &BTreeMap<&str, String>, key: &str| {
            let value = values.get(key).cloned().or_else(|| variable(key));
            value.filter(|value| !value.is_empty())
        };
        if let Some(name) = or_variable(&values, "service") {
            let own = home.as_ref().map(|home| home.join(".pg_service.conf"));
            let file = or_variable(&values, "servicefile").map(PathBuf::from).or(own);
            let folder = environment("PGSYSCONFDIR");
            let settings = service::settings_of(&name, file.as_deref(), folder.as_deref())?;
            for (key, value) in known(settings, true)? {
                values.entry(key).or_insert(value);
            }
        }
        for (key, name, _) in KEYS {
            let skip = name.is_empty() || key == "hostaddr" && says_host;
            if !skip && let Some(value) = environment(name) {
                values.entry(key).or_insert(value);
            }
        }
        values.retain(|_, value| !value.is_empty());
        for (key, _, what) in KEYS {
            let Some(value) = values.get(key) else { continue };
            match what {
                Only([]) => return Err(refused(key, "is not supported; leave it out")),
                Only(possible) if !possible.contains(&value.as_str()) => {
                    return Err(refused(key, &format!("can only be {}", list(possible))));
                }
                _ => {}
            }
        }
        Ok(Parameters { values, home })
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        debug_assert!(KEYS.iter().any(|(known, _, _)| *known == key), "{key}");
        self.values.get(key).map(String::as_str)
    }

    /// The value, which has to be one of these words.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                Err(refused(key, &format!("can only be {}", list(&words))))
            }
        }
    }

    pub(super) fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>, Error> {
        let number = self.get(key).map(|value| value.trim().parse());
        number.transpose().map_err(|_| refused(key, "is no number that it can have"))
    }

    /// A file that is named, or one that is not and that is there.
    pub(super) fn file(&self, key: &str, default: &str) -> Option<PathBuf> {
        match self.get(key) {
            Some(name) => Some(name.into()),
            None => Some(self.home.as_ref()?.join(default)).filter(|file| file.exists()),
        }
    }

    /// The role, which is that of the operating system where none is named.
    pub(super) fn user(&self) -> Result<String, Error> {
        if let Some(user) = self.get("user") {
            return Ok(user.to_owned());
        }
        whoami::username().map_err(|error| {
            Error::Config(format!("no database user is named, and this process has none: {error}"))
        })
    }

    /// The password for one of the hosts.
    pub(super) fn password(
        &self,
        host: &str,
        port: u16,
        database: &str,
        user: &str,
    ) -> Option<Vec<u8>> {
        if let Some(password) = self.get("password") {
            return Some(password.as_bytes().to_vec());
        }
        let file = self.file("passfile", ".pgpass")?;
        password::find(&file, [host, &port.to_string(), database, user])
    }

    /// What has to be added to a connection string for a process in another folder.
    pub(super) fn files_elsewhere(&self) -> Vec<(&'static str, String)> {
        let is_relative = |key: &str, name: &str| {
            Path::new(name).is_relative() && (key, name) != ("sslrootcert", "system")
        };
        let files = FILES.into_iter().filter_map(|key| Some((key, self.get(key)?)));
        files
            .filter(|(key, name)| is_relative(key, name))
            .filter_map(|(key, name)| {
                Some((key, std::path::absolute(name).ok()?.to_str()?.to_owned()))
            })
            .collect()
    }
}

/// A setting that is wrong; its value may be a secret, or stand in the wrong place.
pub(super) fn refused(key: &str, what: &str) -> Error {
    let variable = KEYS.iter().find(|(known, _, _)| *known == key).map_or("", |(_, name, _)| name);
    let variable = if variable.is_empty() { String::new() } else { format!(" ({variable})") };
    Error::Config(format!("the database connection's `{key}`{variable} {what}"))
}

fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// The settings, if all their keys are known; the last of two with one key.
fn known(
    settings: Vec<(String, String)>,
    has_clear_keys: bool,
) -> Result<BTreeMap<&'static str, String>, Error> {
    let mut values = BTreeMap::new();
    let mut before = String::new();
    for (key, value) in settings {
        let Some((name, _, _)) = KEYS.iter().find(|(known, _, _)| *known == key) else {
            // Here a password with blanks looks like keys.
            if !has_clear_keys && before.contains("password") {
                return Err(text::wrong(
                    "what follows the password is no key; a value with blanks is written in '...'",
                ));
            }
            let likeness = |known: &str| strsim::jaro_winkler(known, &key);
            let nearest = KEYS
                .iter()
                .filter(|(_, _, what)| !matches!(what, Only([])))
                .map(|(known, _, _)| *known)
                .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
            let key: String = key.chars().take(40).collect();
            let nearest = nearest.unwrap_or_default();
            return Err(text::wrong(&format!("unknown key `{key}`; did you mean `{nearest}`?")));
        };
        values.insert(*name, value);
        before = key;
    }
    Ok(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<String, Error> {
        let lookup = |name: &str| {
            let (_, value) = environment.iter().find(|(known, _)| *known == name)?;
            Some((*value).to_owned())
        };
        let parameters = Parameters::read_in(text, None, &lookup)?;
        let pairs = parameters.values.iter().map(|(key, value)| format!("{key}={value}"));
        Ok(pairs.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_string_comes_first_then_the_service_then_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("services");
        std::fs::write(&file, "[s]\nhost=of-service\nport=2\nuser=of-service\n").unwrap();
        let file = file.to_str().unwrap();
        let environment = [
            ("PGHOST", "of-environment"),
            ("PGPORT", "3"),
            ("PGDATABASE", "of-environment"),
            ("PGSERVICE", "s"),
            ("PGSERVICEFILE", file),
            ("PGPASSWORD", ""),
        ];
        let said = read("postgresql://of-string", &environment).unwrap();
        assert_eq!(
            said,
            format!(
                "dbname=of-environment host=of-string port=2 service=s servicefile={file} \
                 user=of-service"
            )
        );
        // What is empty counts, as "the default".
        assert_eq!(read("host='' user=u", &environment[..2]).unwrap(), "port=3 user=u");
        assert_eq!(read("host=a host=b", &[]).unwrap(), "host=b");
    }

    #[test]
    fn an_address_of_the_environment_is_not_for_a_host_of_the_string() {
        let environment = [("PGHOST", "h"), ("PGHOSTADDR", "127.0.0.1")];
        assert_eq!(read("postgresql:///", &environment).unwrap(), "host=h hostaddr=127.0.0.1");
        assert_eq!(read("postgresql://g", &environment).unwrap(), "host=g");
    }

    #[test]
    fn keys_that_are_wrong_are_named_and_values_are_not() {
        for (text, environment, message) in [
            (
                "postgresql:///d?sslrootcrt=secret",
                &[][..],
                "the database URL cannot be read: unknown key `sslrootcrt`; did you mean \
                 `sslrootcert`?",
            ),
            (
                "hots=secret",
                &[],
                "the database URL cannot be read: unknown key `hots`; did you mean `host`?",
            ),
            (
                "host=h password=correct secret=b",
                &[],
                "the database URL cannot be read: what follows the password is no key; a value \
                 with blanks is written in '...'",
            ),
            (
                "postgresql:///d?require_auth=secret",
                &[],
                "the database connection's `require_auth` (PGREQUIREAUTH) is not supported; leave \
                 it out",
            ),
            (
                "postgresql:///d",
                &[("PGGSSENCMODE", "secret")],
                "the database connection's `gssencmode` (PGGSSENCMODE) can only be disable or \
                 prefer",
            ),
        ] {
            assert_eq!(read(text, environment).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn files_are_named_so_that_another_folder_is_no_matter() {
        let parameters =
            Parameters::read_in("host=h sslcert=a/b sslrootcert=system", None, &|name| {
                (name == "PGSSLKEY").then(|| "key".to_owned())
            });
        let here = std::env::current_dir().unwrap().display().to_string();
        assert_eq!(
            parameters.map(|parameters| parameters.files_elsewhere()).unwrap(),
            [("sslcert", format!("{here}/a/b")), ("sslkey", format!("{here}/key"))]
        );
    }
}
