//! A worker as a service of systemd: what it tells, what it obeys, and the units.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use millhand::TaskState;
use rustix::process::Signal;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{GATE_HANDLERS, WorkerProcess, Workshop, gate_task, run};
use crate::support::{SOON, WORKER_TYPES};

/// What the service manager hears, until a line is heard that this holds for.
fn hear(socket: &UnixDatagram, is_it: impl Fn(&str) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{error} after {lines:?}"));
        let message = String::from_utf8(buffer[..n].to_vec()).unwrap();
        lines.extend(message.lines().map(str::to_owned));
        if lines.iter().any(|line| is_it(line)) {
            return lines;
        }
    }
}

#[test]
fn the_service_manager_hears_how_a_worker_is() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let path = workshop.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
        let mut worker = WorkerProcess::start(command);
        hear(&socket, |line| line == "READY=1");
        assert_eq!(database.wait_for_workers(1).len(), 1);
        hear(&socket, |line| line == "WATCHDOG=1");
        hear(&socket, |line| line == "WATCHDOG=1");
        let id = database.dispatch(&gate_task(&workshop, "gate", "1"));
        workshop.wait_at_gate(&database, "1");
        hear(&socket, |line| line == "STATUS=1 of 1 threads busy");
        worker.signal(Signal::TERM);
        let said = hear(&socket, |line| line == "EXTEND_TIMEOUT_USEC=60000000");
        assert!(said.iter().any(|line| line == "STOPPING=1"), "{said:?}");
        hear(&socket, |line| line == "EXTEND_TIMEOUT_USEC=60000000");
        assert_eq!(database.task(id).state, TaskState::Running);
        workshop.open_gate("1");
        assert!(worker.wait(SOON).success(), "{}", worker.stderr());
        assert_eq!(database.task(id).state, TaskState::Completed);
        assert_clean(&database, &workshop);
    }
}

#[test]
fn a_worker_whose_server_is_away_is_no_dead_one() {
    // A server of its own, which stops for a while.
    let server = crate::support::database::start_server();
    let database = Database::of(&server);
    let workshop = Workshop::new(&database, "");
    let path = workshop.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut command = workshop.millhand(["worker"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000");
    let worker = WorkerProcess::start(command);
    hear(&socket, |line| line == "READY=1");
    let processes = crate::support::process::server_processes(&server);
    crate::support::process::signal_all(&processes, Signal::STOP);
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    // More often than its lease takes to end.
    for _ in 0..5 {
        hear(&socket, |line| line == "WATCHDOG=1");
    }
    crate::support::process::signal_all(&processes, Signal::CONT);
    worker.stop(Signal::TERM);
}

/// Where there is a systemd-analyze, as on Debian, Fedora, Arch, openSUSE.
#[test]
fn the_units_are_what_systemd_takes() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("left out: there is no systemd-analyze");
        return;
    };
    let version = String::from_utf8(version.stdout).unwrap();
    let version: u32 = version.split_whitespace().nth(1).unwrap().parse().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd");
    let copies = tempfile::tempdir().unwrap();
    for (name, instance) in
        [("millhand.service", "millhand.service"), ("millhand@.service", "millhand@images.service")]
    {
        let unit = fs::read_to_string(folder.join(name)).unwrap();
        // It has to be where the unit says.
        let unit = unit.replace("/usr/local/bin/millhand", env!("CARGO_BIN_EXE_millhand"));
        // Older ones leave that out and complain.
        let is_known = |line: &&str| {
            version >= 254
                || !line.starts_with("RestartSteps") && !line.starts_with("RestartMaxDelaySec")
        };
        let unit: Vec<&str> = unit.lines().filter(is_known).collect();
        fs::write(copies.path().join(name), unit.join("\n")).unwrap();
        let path = copies.path().join(instance);
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no", "--recursive-errors=no"]).arg(path);
        let said = run(&mut command);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    }
}
