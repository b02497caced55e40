//! Connection services, as libpq reads them: named sections of settings, in a file.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// Where a system keeps its own, as Debian and Red Hat build libpq.
const SYSTEM_FOLDERS: [&str; 2] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql"];

/// The file of all services in one of the system's folders.
const SYSTEM_FILE: &str = "pg_service.conf";

/// The settings of a service: in the user's own file, or else in the system's.
pub(super) fn settings_of(
    service: &str,
    user_file: Option<&Path>,
    system_folder: Option<&str>,
) -> Result<Vec<(String, String)>, Error> {
    let system: Vec<PathBuf> = match system_folder {
        Some(folder) => vec![folder.into()],
        None => SYSTEM_FOLDERS.map(PathBuf::from).into(),
    };
    let system = system.into_iter().map(|folder| folder.join(SYSTEM_FILE));
    for file in user_file.map(Path::to_owned).into_iter().chain(system) {
        let Ok(text) = std::fs::read(&file) else { continue };
        let found = find_in(&String::from_utf8_lossy(&text), service).map_err(|(line, what)| {
            Error::Config(format!("{}: line {line}: {what}", file.display()))
        })?;
        if let Some(settings) = found {
            return Ok(settings);
        }
    }
    Err(Error::Config(format!(
        "there is no service `{service}`; PGSERVICEFILE, or else ~/.pg_service.conf, is to name \
         the file that has it"
    )))
}

/// The settings of a service, or a line that is wrong and why.
#[allow(clippy::type_complexity, reason = "it is said above")]
fn find_in(text: &str, service: &str) -> Result<Option<Vec<(String, String)>>, (usize, String)> {
    let mut found: Option<Vec<(String, String)>> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                found = Some(Vec::new());
            }
        } else if let Some(settings) = &mut found {
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| (number, "a key, = and a value are expected".to_owned()))?;
            if ["service", "servicefile"].contains(&key) {
                return Err((number, "a service cannot name another one".to_owned()));
            }
            settings.push((key.to_owned(), value.to_owned()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_what_stands_under_its_name() {
        let text = "# all\n[a]\nhost=one\n\n [b] \nhost=two\n# not this\nuser=u\n[c]\nhost=three\n";
        let pairs = |found: Vec<(String, String)>| {
            found.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        let found = find_in(text, "b").map(|found| found.map(pairs));
        assert_eq!(found, Ok(Some(vec!["host=two".to_owned(), "user=u".to_owned()])));
        assert_eq!(find_in(text, "d"), Ok(None));
        assert_eq!(find_in("[a]\n\nhost", "a").map_err(|(line, _)| line), Err(3));
        assert_eq!(find_in("[a]\nservice=b", "a").map_err(|(line, _)| line), Err(2));
    }
}
