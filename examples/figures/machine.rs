//! What the runs were made on, without a name or a path of it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Where distributions keep Postgres; a version is between the two.
const FOLDERS: [(&str, &str, &str); 2] =
    [("/usr/lib/postgresql", "", "bin"), ("/usr", "pgsql-", "bin")];

/// Such as `2 cores (NAME), 16 GiB RAM, Linux 6.1.0, Postgres 15.14, Redis 7.0.15`.
pub(crate) fn describe() -> String {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<f64>().ok())
        .map_or_else(|| "unknown".to_owned(), |kib| format!("{:.0} GiB", kib / 1024.0 / 1024.0));
    let linux = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let linux = linux.trim().split('-').next().unwrap_or_default();
    let unknown = || "(version unknown)".to_owned();
    let postgres = postgres_programs().into_iter().find_map(version).unwrap_or_else(unknown);
    let redis = ["redis-server", "valkey-server"].into_iter().map(PathBuf::from);
    let redis = redis.into_iter().find_map(version).unwrap_or_else(unknown);
    format!(
        "{n_cores} cores ({model}), {memory} RAM, Linux {linux}, Postgres {postgres}, Redis {redis}"
    )
}

/// The first value of this name in a file of lines `name : value`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(known, _)| known.trim_end() == name).map(|(_, value)| value.trim().to_owned())
}

/// In the order in which the bench looks for it: in the path, then the newest.
fn postgres_programs() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for (folder, prefix, suffix) in FOLDERS {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            versions.extend(number.map(|n| (n, entry.path().join(suffix).join("postgres"))));
        }
    }
    versions.sort_by(|a, b| b.cmp(a));
    let found = versions.into_iter().map(|(_, program)| program);
    std::iter::once(PathBuf::from("postgres"))
        .chain(found)
        .chain([PathBuf::from("/usr/local/pgsql/bin/postgres")])
        .collect()
}

fn version(program: PathBuf) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    version_in(&String::from_utf8(output.stdout).ok()?)
}

/// The first word that is a version, without the `v=` that Redis puts before it.
fn version_in(text: &str) -> Option<String> {
    let words = text.split_whitespace().map(|word| word.trim_start_matches("v="));
    let is_version = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    words.into_iter().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_servers_say() {
        let version = |text| version_in(text).unwrap();
        assert_eq!(version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), "15.14");
        assert_eq!(version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc"), "7.0.15");
        assert_eq!(version_in("nothing"), None);
    }
}
