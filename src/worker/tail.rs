//! The end of what a command writes to stderr, as text; while the command runs, with a copy
//! in a file that outlives its worker.
//!
//! The file is named after the task and its fencing token, stands in a directory of the
//! worker's that nobody else may enter, and is gone when the end is stored. After `kill -9` of the worker its warden reads it, or
//! whoever sweeps on that host. It holds the size so far, and then a ring of the newest
//! bytes. Where it cannot be written, there is no copy.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::Pid;

use super::directories::lock_path;
use crate::task::TaskId;

/// How much of the end is kept.
pub(super) const MAX_LOG: usize = 64 << 10;
/// What is appended at once, at most; so much of the ring may be newer than the size says.
const CHUNK: usize = 16 << 10;
const RING: usize = MAX_LOG + CHUNK;
/// Where the ring begins in the file.
const HEADER: u64 = 8;

/// A log while it is written. All of it is text: what is not UTF-8, and NUL, which Postgres
/// has no room for, is U+FFFD.
#[derive(Debug)]
pub(crate) struct Tail {
    text: Vec<u8>,
    /// The beginning of a character.
    rest: Vec<u8>,
    size: u64,
    path: Option<PathBuf>,
    /// Made when there is something to write.
    copy: Option<File>,
}

impl Tail {
    pub(super) fn new(path: Option<PathBuf>) -> Tail {
        Tail { text: Vec::new(), rest: Vec::new(), size: 0, path, copy: None }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.rest);
        let mut left = bytes.as_slice();
        loop {
            match std::str::from_utf8(left) {
                Ok(text) => return self.append(text),
                Err(error) => {
                    let (text, others) = left.split_at(error.valid_up_to());
                    self.append(std::str::from_utf8(text).unwrap_or_default());
                    let Some(n) = error.error_len() else {
                        self.rest = others.to_vec();
                        return;
                    };
                    self.append("\u{fffd}");
                    left = &others[n..];
                }
            }
        }
    }

    /// Nothing will follow.
    pub(super) fn finish(&mut self) {
        if !std::mem::take(&mut self.rest).is_empty() {
            self.append("\u{fffd}");
        }
    }

    /// How long it is in all, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The end of it.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(from_character(&self.text)).into_owned()
    }

    fn append(&mut self, text: &str) {
        if text.contains('\0') {
            return self.append(&text.replace('\0', "\u{fffd}"));
        }
        for chunk in text.as_bytes().chunks(CHUNK) {
            self.write_copy(chunk);
            self.text.extend_from_slice(chunk);
            let n_over = self.text.len().saturating_sub(MAX_LOG);
            self.text.drain(..n_over);
            self.size += chunk.len() as u64;
            if let Some(copy) = &self.copy {
                let _ = copy.write_all_at(&self.size.to_le_bytes(), 0);
            }
        }
    }

    fn write_copy(&mut self, chunk: &[u8]) {
        if self.copy.is_none() && self.size == 0 {
            let mut options = File::options();
            options.write(true).create_new(true).mode(0o600);
            self.copy = self.path.as_ref().and_then(|path| options.open(path).ok());
        }
        let Some(copy) = &self.copy else { return };
        let at = (self.size % RING as u64) as usize;
        let (first, second) = chunk.split_at(chunk.len().min(RING - at));
        let written = copy
            .write_all_at(first, HEADER + at as u64)
            .and_then(|()| copy.write_all_at(second, HEADER));
        if written.is_err() {
            // With a hole in it, it would be no log.
            self.remove_copy();
        }
    }

    fn remove_copy(&mut self) {
        if let (Some(_), Some(path)) = (self.copy.take(), &self.path) {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.remove_copy();
    }
}

/// The log of a start that its worker could not store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Remains {
    pub(super) id: TaskId,
    pub(super) fence: i64,
    pub(super) text: String,
    pub(super) size: u64,
}

impl Remains {
    fn append(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).replace('\0', "\u{fffd}");
        self.size += text.len() as u64;
        self.text.push_str(&text);
        let over = self.text.len().saturating_sub(MAX_LOG);
        let start = (over..=self.text.len()).find(|at| self.text.is_char_boundary(*at));
        self.text.drain(..start.unwrap_or(0));
    }

    /// Reads the copy that a worker has left, if that is what this is.
    fn read(path: &Path) -> Option<Remains> {
        let name = path.file_name()?.to_str()?.strip_suffix(".log")?;
        let (id, fence) = name.split_once('-')?;
        // Whatever stands there instead of a file of ours: nobody waits for it, and no more
        // is read than one holds.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        if !is_ours(&file.metadata().ok()?) {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(HEADER + RING as u64).read_to_end(&mut bytes).ok()?;
        let (header, ring) = bytes.split_at_checked(HEADER as usize)?;
        let size = u64::from_le_bytes(header.try_into().ok()?);
        let n = size.min(MAX_LOG as u64);
        let text: Option<Vec<u8>> =
            (size - n..size).map(|at| ring.get((at % RING as u64) as usize).copied()).collect();
        let text = String::from_utf8_lossy(from_character(&text?)).into_owned();
        Some(Remains { id: id.parse().ok()?, fence: fence.parse().ok()?, text, size })
    }
}

/// What stands in the pipes of commands whose worker has died, by task and fencing token.
pub(crate) type Unread = HashMap<(TaskId, i64), Vec<u8>>;

/// Reads that. It is gone when they are.
pub(crate) fn unread(groups: impl Iterator<Item = Pid>) -> Unread {
    let folders = groups.map(|pid| PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero())));
    folders.filter_map(|folder| unread_of(&folder)).collect()
}

fn unread_of(folder: &Path) -> Option<((TaskId, i64), Vec<u8>)> {
    let environ = std::fs::read(folder.join("environ")).ok()?;
    let value = |name: &str| {
        let mut variables = environ.split(|byte| *byte == 0);
        let value = variables.find_map(|it| it.strip_prefix(name.as_bytes())?.strip_prefix(b"="));
        std::str::from_utf8(value?).ok()?.parse::<i64>().ok()
    };
    let key = (TaskId(value("MILLHAND_TASK_ID")?), value("MILLHAND_FENCE")?);
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let path = folder.join("fd/2");
    // It may have closed that or put something else there, which must not be read.
    if !std::fs::read_link(&path).ok()?.as_os_str().as_encoded_bytes().starts_with(b"pipe:") {
        return None;
    }
    let mut pipe = File::options().read(true).custom_flags(flags).open(path).ok()?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; CHUNK]);
    // A pipe holds a megabyte at most, but what writes to this may go on.
    while bytes.len() < 1 << 20 {
        match pipe.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => break,
        }
    }
    Some((key, bytes))
}

/// The logs that a worker process which has died could not store: what its copies in this
/// folder hold, and what it had not read yet.
pub(crate) fn logs_of(process: &str, folder: &Path, mut unread: Unread) -> Vec<Remains> {
    let copies = copies_of(process, folder).unwrap_or_default();
    let mut logs: Vec<Remains> = copies.iter().filter_map(|path| Remains::read(path)).collect();
    for log in &mut logs {
        if let Some(bytes) = unread.remove(&(log.id, log.fence)) {
            log.append(&bytes);
        }
    }
    for ((id, fence), bytes) in unread {
        let mut log = Remains { id, fence, text: String::new(), size: 0 };
        log.append(&bytes);
        logs.push(log);
    }
    logs.retain(|log| log.size > 0);
    logs
}

fn copies_of(process: &str, folder: &Path) -> Option<Vec<PathBuf>> {
    let directory = lock_path(folder, process);
    // The folder may be one where everybody may put something.
    let metadata = directory.symlink_metadata().ok()?;
    if !metadata.is_dir() || !is_own(&metadata) {
        return None;
    }
    Some(std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect())
}

fn is_ours(metadata: &Metadata) -> bool {
    metadata.is_file() && is_own(metadata)
}

/// Whether nobody else can write there, or read.
fn is_own(metadata: &Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0
}

/// The name of a start's copy.
pub(super) fn file_name(id: TaskId, fence: i64) -> String {
    format!("{id}-{fence}.log")
}

/// Without the end of a character that has lost its beginning.
fn from_character(bytes: &[u8]) -> &[u8] {
    let n = bytes.iter().take(3).take_while(|byte| (0x80..0xc0).contains(*byte)).count();
    &bytes[n..]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: TaskId = TaskId(7);

    #[test]
    fn bytes_become_text_wherever_they_are_cut() {
        let bytes = b"a\xc3\xa9\xff\x00\xe2\x82\xac\xe2\x82";
        for at in 0..bytes.len() {
            let mut tail = Tail::new(None);
            tail.push(&bytes[..at]);
            tail.push(&bytes[at..]);
            tail.finish();
            assert_eq!(tail.text(), "aé\u{fffd}\u{fffd}€\u{fffd}");
            assert_eq!(tail.size(), tail.text().len() as u64);
        }
    }

    #[test]
    fn the_copy_holds_the_end_and_is_gone_with_the_log() {
        let folder = tempfile::tempdir().expect("there is room");
        let path = folder.path().join(file_name(ID, -3));
        let mut tail = Tail::new(Some(path.clone()));
        assert!(!path.exists(), "nothing was written");
        for n in 0..30_000 {
            tail.push(format!("{n}é\n").as_bytes());
            if n % 1000 == 0 {
                let remains = Remains::read(&path).expect("there is a copy");
                let expected = Remains { id: ID, fence: -3, text: tail.text(), size: tail.size() };
                assert_eq!(remains, expected);
            }
        }
        assert!(tail.text().len() > MAX_LOG - 4 && tail.text().ends_with("29999é\n"));
        drop(tail);
        assert!(!path.exists());
    }

    /// In a folder where everybody may put something.
    #[test]
    fn what_is_no_file_of_ours_is_neither_read_nor_waited_for() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let folder = tempfile::tempdir().expect("there is room");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, [0; 64]).expect("there is room");
        let kept = lock_path(folder.path(), "p");
        std::fs::create_dir(&kept).expect("there is room");
        let set_mode = |path: &Path, mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("it is ours");
        };
        set_mode(&kept, 0o700);
        let fifo = kept.join(file_name(ID, 1));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).expect("it is new");
        symlink(&secret, kept.join(file_name(ID, 2))).expect("it is new");
        std::fs::write(kept.join(file_name(ID, 3)), [0; 64]).expect("there is room");
        assert_eq!(logs_of("p", folder.path(), Unread::new()), []);

        let path = kept.join(file_name(ID, 4));
        let mut tail = Tail::new(Some(path));
        tail.push(b"said");
        let logs = logs_of("p", folder.path(), Unread::new());
        assert_eq!(logs, [Remains { id: ID, fence: 4, text: "said".to_owned(), size: 4 }]);
        set_mode(&kept, 0o755);
        assert_eq!(logs_of("p", folder.path(), Unread::new()), [], "others may enter");
    }
}
