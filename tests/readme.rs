//! README is short, and what it tells people to type works.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use millhand::server::PrivatePostgres;

use crate::support::process::run;

const README: &str = include_str!("../README.md");

/// The code blocks of a language, in order.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut fence: Option<&str> = None;
    for line in README.lines() {
        match (fence, line.strip_prefix("```")) {
            (None, Some(opened)) => {
                fence = Some(opened);
                if opened == language {
                    blocks.push(String::new());
                }
            }
            (Some(_), Some(_)) => fence = None,
            (Some(opened), None) if opened == language => {
                let block = blocks.last_mut().unwrap();
                block.push_str(line);
                block.push('\n');
            }
            _ => {}
        }
    }
    blocks
}

/// What stands outside of code, tables and headings; lists are paragraphs of their own.
fn prose() -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    let mut is_code = false;
    for line in README.lines() {
        is_code ^= line.starts_with("```");
        let is_prose = !is_code && !line.starts_with(['`', '|', '#', '!']);
        if line.is_empty() || line.starts_with("- ") || !is_prose {
            paragraphs.push(String::new());
        }
        if is_prose {
            let paragraph = paragraphs.last_mut().unwrap();
            paragraph.push_str(line.trim_start_matches("- "));
            paragraph.push(' ');
        }
    }
    paragraphs
}

#[test]
fn it_is_short_and_so_are_its_sentences() {
    let paragraphs = prose();
    let n_words: usize = paragraphs.iter().map(|text| text.split_whitespace().count()).sum();
    assert!(n_words < 2000, "{n_words} words");
    for paragraph in &paragraphs {
        for sentence in paragraph.split(". ") {
            let n_words = sentence.split_whitespace().count();
            assert!(n_words <= 40, "{n_words} words: {sentence}");
        }
    }
}

#[test]
fn its_commands_run() {
    // What needs a checkout, or minutes, is run by what runs all of this.
    let all = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/run"));
    let is_for_a_checkout = |line: &&str| line.starts_with("make ") || line.starts_with("cargo ");
    let blocks_of_commands = blocks("sh").concat();
    // (A package has no such file.)
    for line in blocks_of_commands.lines().filter(is_for_a_checkout) {
        assert!(all.as_ref().is_ok_and(|all| all.lines().any(|run| run == line)), "{line}");
    }
    let script: Vec<&str> =
        blocks_of_commands.lines().filter(|line| !is_for_a_checkout(line)).collect();
    assert!(script.len() > 3, "{script:?}");

    let server: PrivatePostgres = crate::support::database::start_server();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("millhand.toml"), blocks("toml").concat()).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_millhand")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    // `set -e` says nothing of what runs in the background, which ends with this.
    let script = format!("set -e\ntrap 'kill %1; wait' EXIT\n{}\n", script.join("\n"));
    let mut command = Command::new("bash");
    command.args(["-m", "-c", &script]).current_dir(folder.path()).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("MILLHAND_") || name.starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env("PATH", format!("{}:{path}", program.display()));
    // What `postgresql:///` leaves out.
    command.env("PGHOST", server.directory()).env("PGPORT", "5432").env("PGUSER", "postgres");
    let said = run(&mut command);
    assert_eq!(said.code, Some(0), "{said:?}");
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert!(lines.contains(&"1"), "{said:?}");
    assert!(said.stdout.contains("/etc/hosts\"\n"), "{said:?}");
    assert!(lines.iter().any(|line| line.starts_with("1   completed  checksum")), "{said:?}");

    let url = server.url().replace("/millhand?", "/mydb?");
    let mut client = millhand::db::connect(&url, "test").unwrap();
    let statements = blocks("sql").concat();
    for statement in statements.lines() {
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    assert!(statements.lines().count() > 3);
}
