//! Every example runs, and prints exactly what its header says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::database::Database;
use crate::support::redis::Redis;
use crate::support::{oracle, process};

/// What stands between "```text" and "```" in the header.
fn expected_output(source: &str) -> Option<String> {
    let header = source.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim_start);
    let mut block = header.skip_while(|line| *line != "```text").skip(1).peekable();
    block.peek()?;
    let lines: Vec<&str> = block.take_while(|line| *line != "```").collect();
    Some(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// Where cargo puts the examples, beside the folder of this test's program.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is missing; run `cargo build --examples`", program.display());
    program
}

#[test]
fn every_example_prints_what_its_header_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut n_examples = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        n_examples += 1;
        let source = fs::read_to_string(&path).unwrap();
        let expected = expected_output(&source)
            .unwrap_or_else(|| panic!("{} does not say what it prints", path.display()));
        let database = Database::new();
        let mut command = Command::new(program(path.file_stem().unwrap().to_str().unwrap()));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("MILLHAND_") {
                command.env_remove(variable);
            }
        }
        // Handlers that are functions need no warden, so no `millhand` in the PATH.
        command
            .env("MILLHAND_DATABASE_URL", database.url())
            .env("MILLHAND_REDIS_URL", Redis::new().url)
            .env("PATH", "")
            .current_dir("/")
            .stdin(Stdio::null());
        let said = process::run(&mut command);
        let shown = path.display();
        assert_eq!(said.stdout, expected, "{shown}, stderr:\n{}", said.stderr);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{shown}");
        oracle::assert_sound(&database);
        let workers =
            database.connect().query_one("SELECT count(*) FROM millhand.worker", &[]).unwrap();
        assert_eq!(workers.get::<_, i64>(0), 0, "{shown} left a worker's row");
    }
    assert!(n_examples > 0);
}
