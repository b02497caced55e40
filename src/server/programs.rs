//! Where the programs of the Postgres server are.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::find_in_path;
use crate::error::Error;

/// The folder of the server's programs: in `$PATH`, or where distributions
/// keep them, the newest version first.
pub(super) fn find_programs() -> Result<PathBuf, Error> {
    // It may be a link in a folder that has no other program of the server.
    let in_path = find_in_path("postgres")
        .and_then(|program| program.canonicalize().ok())
        .and_then(|program| program.parent().map(Path::to_owned));
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for (folder, prefix, suffix) in [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin")]
    {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            if let Some(version) = number.and_then(|number| number.parse().ok()) {
                versions.push((version, entry.path().join(suffix)));
            }
        }
    }
    versions.sort_by(|a, b| b.cmp(a));
    in_path
        .into_iter()
        .chain(versions.into_iter().map(|(_, folder)| folder))
        .chain([PathBuf::from("/usr/local/pgsql/bin")])
        .find(|folder| ["initdb", "postgres"].iter().all(|program| folder.join(program).is_file()))
        .ok_or_else(|| {
            Error::Config(
                "could not find the Postgres programs `initdb` and `postgres`; install the package \
                 postgresql (Debian, Ubuntu) or postgresql-server (Fedora, openSUSE)"
                    .to_owned(),
            )
        })
}

/// Whether the module pg_stat_statements is installed with these programs.
pub(super) fn has_stat_statements(programs: &Path) -> bool {
    let asked = Command::new(programs.join("pg_config")).arg("--pkglibdir").output();
    let asked = asked.ok().filter(|output| output.status.success());
    let asked = asked.and_then(|output| String::from_utf8(output.stdout).ok());
    let near = ["../lib", "../lib/postgresql", "../lib/pgsql", "../lib64/pgsql"];
    asked
        .map(|folder| PathBuf::from(folder.trim_end()))
        .into_iter()
        .chain(near.map(|folder| programs.join(folder)))
        .any(|folder| folder.join("pg_stat_statements.so").is_file())
}
