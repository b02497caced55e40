//! What the demo builds: which files, which tasks, and what must come out.

use std::path::{Path, PathBuf};

use millhand::{Error, NewTask};
use serde_json::json;

/// At most so many files of cargo's download cache, which may be large.
const N_CACHED: usize = 200;

/// So many indexes are published of each repository, evenly spread.
const N_PUBLISHES: usize = 4;

/// So many lists share the files of a repository; two tasks that write to one
/// of them exclude each other.
const N_SHARDS: u32 = 16;

/// A file to take into each repository, under this name.
#[derive(Debug)]
pub(super) struct Archive {
    path: String,
    name: String,
}

/// A task, and what must come out of it.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) task: NewTask,
    /// How many files the index must have; none for an ingest.
    pub(super) entries: Option<usize>,
}

/// All files below this folder, or archives that are there after any build:
/// those that cargo has downloaded.
pub(super) fn find_archives(folder: Option<&Path>) -> Result<Vec<Archive>, Error> {
    if let Some(folder) = folder {
        let archives = files_below(folder, "")?;
        if archives.is_empty() {
            return Err(Error::Config(format!("there are no files in {}", folder.display())));
        }
        return Ok(archives);
    }
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let cache = cargo_home.unwrap_or_default().join("registry/cache");
    let mut archives = files_below(&cache, ".crate").unwrap_or_default();
    archives.truncate(N_CACHED);
    if archives.is_empty() {
        return Err(Error::Config(format!(
            "there are no downloaded archives in {}; name a folder with files: millhand demo DIR",
            cache.display()
        )));
    }
    Ok(archives)
}

fn files_below(folder: &Path, suffix: &str) -> Result<Vec<Archive>, Error> {
    let mut archives = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        let unreadable = |error: std::io::Error| {
            Error::Config(format!("could not read {}: {error}", current.display()))
        };
        for entry in std::fs::read_dir(&current).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = std::path::absolute(entry.path()).map_err(unreadable)?;
            // Links are not followed: they may lead anywhere, and in circles.
            let kind = entry.file_type().map_err(unreadable)?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Some(archive) = archive(folder, &path)
                && archive.name.ends_with(suffix)
            {
                archives.push(archive);
            }
        }
    }
    archives.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(archives)
}

/// None if its name cannot be a line of an index.
fn archive(folder: &Path, path: &Path) -> Option<Archive> {
    let folder = std::path::absolute(folder).ok()?;
    let name = path.strip_prefix(folder).ok()?.to_str()?.to_owned();
    let is_plain = !name.contains(|c: char| c == '\\' || c.is_control());
    is_plain.then_some(Archive { path: path.to_str()?.to_owned(), name })
}

/// The tasks in the order in which they are to be asked for; those of one
/// inner list in one call.
pub(super) fn plan(archives: &[Archive], repositories: usize, folder: &Path) -> Vec<Vec<Step>> {
    let mut rounds = Vec::new();
    for (index, archive) in archives.iter().enumerate() {
        let mut round = Vec::new();
        for number in 1..=repositories {
            let name = repository_name(number);
            let place = folder.join(&name).display().to_string();
            let repository = format!("repository:{name}");
            let shard = format!("{:x}", shard(&archive.name));
            let args = json!({
                "repository": place, "file": archive.path, "name": archive.name, "shard": shard
            });
            let task = NewTask::new("ingest")
                .args(args)
                .exclusive(format!("{repository}/shard:{shard}"))
                .shared(&repository);
            round.push(Step { task, entries: None });
            // The last file is always followed by an index.
            let n_indexes = |n_files: usize| n_files * N_PUBLISHES / archives.len();
            if n_indexes(index + 1) > n_indexes(index) {
                let args = json!({"repository": place});
                let entries = Some(index + 1);
                let publish = NewTask::new("publish").args(args.clone()).exclusive(&repository);
                round.push(Step { task: publish, entries });
                let verify = NewTask::new("verify").args(args).shared(&repository);
                round.push(Step { task: verify, entries });
            }
        }
        rounds.push(round);
    }
    rounds
}

fn repository_name(number: usize) -> String {
    format!("repository-{number}")
}

fn shard(name: &str) -> u32 {
    name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte)) % N_SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_repository_ends_with_an_index_of_all_files() {
        for n_files in [1, 2, 3, 4, 5, 7, 100] {
            let archives: Vec<Archive> = (0..n_files)
                .map(|number| Archive { path: format!("/{number}"), name: number.to_string() })
                .collect();
            let steps: Vec<Step> =
                plan(&archives, 2, Path::new("/x")).into_iter().flatten().collect();
            let publishes: Vec<&Step> =
                steps.iter().filter(|step| step.task.name == "publish").collect();
            assert_eq!(publishes.len(), 2 * n_files.min(N_PUBLISHES));
            assert_eq!(publishes[publishes.len() - 1].entries, Some(n_files));
            assert_eq!(steps.len(), 2 * n_files + 2 * publishes.len());
        }
    }
}
