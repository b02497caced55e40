//! Private servers, `millhand dev` and `millhand demo`.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use millhand::server::{PostgresOptions, PrivatePostgres, PrivateRedis};
use millhand::{NewTask, client, db, migrate};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{SOON, look_until};

fn millhand() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millhand"));
    command.stdin(Stdio::null());
    command
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[track_caller]
fn wait_until(label: &str, mut is_so: impl FnMut() -> bool) {
    let seen = look_until(SOON, || if is_so() { Ok(()) } else { Err(()) });
    assert!(seen.is_ok(), "waited in vain: {label}");
}

/// Whether a process has this text in its arguments or its environment.
fn is_named(path: &Path) -> bool {
    let path = path.to_str().unwrap().as_bytes();
    fs_entries("/proc").any(|process| {
        ["cmdline", "environ"].iter().any(|file| {
            let content = std::fs::read(process.join(file)).unwrap_or_default();
            content.windows(path.len()).any(|part| part == path)
        })
    })
}

fn fs_entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path())
}

#[test]
fn committed_tasks_survive_every_kind_of_stop() {
    let mut postgres = PrivatePostgres::start(&PostgresOptions::default()).unwrap();
    let directory = postgres.directory().to_owned();
    migrate::migrate(&mut db::connect(&postgres.url(), "test").unwrap()).unwrap();
    for stop in [PrivatePostgres::stop_fast, PrivatePostgres::stop_hard, PrivatePostgres::kill_hard]
    {
        let mut connection = db::connect(&postgres.url(), "test").unwrap();
        let id = client::dispatch(&mut connection, &NewTask::new("a")).unwrap();
        let pid = postgres.pid();
        stop(&mut postgres);
        assert_eq!(postgres.pid(), None);
        assert!(client::get_task(&mut connection, id).is_err());
        postgres.start_again().unwrap();
        assert_ne!(postgres.pid(), pid);
        let mut connection = db::connect(&postgres.url(), "test").unwrap();
        client::get_task(&mut connection, id).unwrap();
    }
    drop(postgres);
    assert!(!directory.exists());
    assert!(!is_named(&directory));
}

#[test]
fn a_private_redis_starts_again_empty_on_the_same_url() {
    let mut server = PrivateRedis::start().unwrap();
    let url = server.url();
    let connect = || redis::Client::open(url.as_str()).unwrap().get_connection().unwrap();
    redis::cmd("SET").arg("a").arg(1).exec(&mut connect()).unwrap();
    for stop in [PrivateRedis::stop_fast, PrivateRedis::kill_hard] {
        stop(&mut server);
        assert!(redis::Client::open(url.as_str()).unwrap().get_connection().is_err());
        server.start_again().unwrap();
        assert_eq!(redis::cmd("DBSIZE").query::<u64>(&mut connect()).unwrap(), 0);
    }
}

#[test]
fn dev_gives_a_command_urls_for_psql_and_redis_cli() {
    let script = r#"psql "$MILLHAND_DATABASE_URL" -Atc 'SELECT count(*) FROM millhand.task' &&
        redis-cli --no-auth-warning -u "$MILLHAND_REDIS_URL" PING"#;
    let output = millhand().args(["dev", "--", "sh", "-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "0\nPONG\n");
}

#[test]
fn dev_passes_the_fate_of_its_command_on() {
    for (script, code) in [("exit 7", 7), ("kill -9 $$", 137), ("no-such-program", 127)] {
        let output = millhand().args(["dev", "--", "sh", "-c", script]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{script}: {}", text(&output.stderr));
    }
}

/// Starts `dev` with a command that leaves its process group, and tells which
/// directories there are: that of Postgres and that of the command.
fn start_dev() -> (Child, [PathBuf; 2]) {
    let script = r#"setsid sleep 1000 &
        echo "$MILLHAND_DATABASE_URL"
        echo "$MILLHAND_DIRECTORY"
        exec sleep 1000"#;
    let mut dev =
        millhand().args(["dev", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines().map(Result::unwrap);
    let url: postgres::Config = lines.next().unwrap().parse().unwrap();
    let postgres::config::Host::Unix(postgres) = &url.get_hosts()[0] else {
        panic!("{url:?} is not a socket")
    };
    (dev, [postgres.clone(), lines.next().unwrap().into()])
}

#[test]
fn dev_leaves_nothing_behind_however_it_ends() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::KILL] {
        let (mut dev, directories) = start_dev();
        assert!(directories.iter().all(|directory| directory.exists() && is_named(directory)));
        kill_process(Pid::from_child(&dev), signal).unwrap();
        let status = dev.wait().unwrap();
        match signal {
            Signal::KILL => assert_eq!(status.signal(), Some(9)),
            other => assert_eq!(status.code(), Some(128 + other.as_raw())),
        }
        for directory in directories {
            wait_until("the directory is gone", || !directory.exists());
            wait_until("its processes are gone", || !is_named(&directory));
        }
    }
}

fn small_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub folder")).unwrap();
    for name in ["a", "b c", "sub folder/d", "$(e)", "-f", "g'h\"", "empty"] {
        std::fs::write(folder.path().join(name), name.repeat(10)).unwrap();
    }
    std::fs::write(folder.path().join("empty"), "").unwrap();
    folder
}

fn demo(folder: &Path) -> Output {
    millhand().args(["demo", "--repositories", "3"]).arg(folder).output().unwrap()
}

#[test]
fn the_demo_takes_any_folder() {
    let folder = small_folder();
    let output = demo(folder.path());
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let said = text(&output.stdout);
    for line in
        ["45 tasks in ", "57 files OK in 12 checks", "no violation of the order in 45 tasks"]
    {
        assert!(said.contains(line), "{line} is not in {said}");
    }
}

#[test]
fn two_demos_at_once_do_not_meet() {
    let folder = small_folder();
    thread::scope(|scope| {
        let runs: Vec<_> = (0..2).map(|_| scope.spawn(|| demo(folder.path()))).collect();
        for run in runs {
            assert!(run.join().unwrap().status.success());
        }
    });
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..100 {
        std::fs::write(folder.path().join(number.to_string()), number.to_string()).unwrap();
    }
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        // Its servers may run under another account.
        let temporary = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(temporary.path(), open).unwrap();
        let mut demo = millhand()
            .arg("demo")
            .arg(folder.path())
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(demo.stderr.take().unwrap()).lines().map(Result::unwrap);
        lines.find(|line| line.ends_with("tasks done")).expect("the demo gets that far");
        assert!(std::fs::read_dir(temporary.path()).unwrap().count() >= 2);
        kill_process(Pid::from_child(&demo), signal).unwrap();
        let status = demo.wait().unwrap();
        match signal {
            Signal::KILL => assert_eq!(status.signal(), Some(9)),
            other => assert_eq!(status.code(), Some(128 + other.as_raw())),
        }
        wait_until("the directories are gone", || {
            std::fs::read_dir(temporary.path()).unwrap().next().is_none()
        });
        wait_until("the processes are gone", || !is_named(temporary.path()));
    }
}

#[test]
fn the_demo_says_what_is_wrong_with_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    for (path, reason) in [(folder.path(), "no files"), (Path::new("/no/such"), "could not read")] {
        let output = demo(path);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(reason), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr).lines().count(), 1);
    }
}
