//! The database's clock is set anew while workers live: nobody is taken for dead by it,
//! and nobody who is dead is taken for alive.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use millhand::server::{PostgresOptions, PrivatePostgres};
use millhand::{NewTask, TaskId, TaskState};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{
    GATE_HANDLERS, WorkerProcess, Workshop, children_of, gate_task, signal_all,
};
use crate::support::{SOON, WORKER_TYPES, wait_until};

const TTL: Duration = Duration::from_secs(3);

/// Two worker processes with a task each, and what waits for them.
struct Shift {
    workers: [WorkerProcess; 2],
    ids: BTreeSet<i64>,
    running: [TaskId; 2],
    waiting: TaskId,
    workshop: Workshop,
    database: Database,
}

impl Shift {
    fn start(database: Database, worker_type: &str) -> Shift {
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let worker = || {
            let mut command = workshop.millhand(["worker", "--type", worker_type]);
            command.env("MILLHAND_TTL", format!("{}s", TTL.as_secs()));
            WorkerProcess::start(command)
        };
        // One after the other, so that each has the task of its name.
        let (mut running, mut workers) = (Vec::new(), Vec::new());
        for (n, name) in ["a", "b"].into_iter().enumerate() {
            running.push(database.dispatch(&gate_task(&workshop, "gate", name).exclusive(name)));
            workers.push(worker());
            workshop.wait_at_gate(&database, name);
            database.wait_for_workers(n + 1);
        }
        let ids = database.worker_ids();
        let both = NewTask::new("millhand.noop").exclusive("a").exclusive("b");
        let waiting = database.dispatch(&both);
        let (workers, running) = (workers.try_into().unwrap(), running.try_into().unwrap());
        Shift { workers, ids, running, waiting, workshop, database }
    }

    /// Asserts for some ttls that nobody was swept, doing something each time.
    #[track_caller]
    fn expect_peace(&self, mut act: impl FnMut()) {
        let end = Instant::now() + 3 * TTL;
        while Instant::now() < end {
            act();
            assert_eq!(self.database.worker_ids(), self.ids, "{}", self.workers[0].stderr());
            for task in self.running {
                assert_eq!(self.database.task(task).state, TaskState::Running);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends all.
    #[track_caller]
    fn finish(self) {
        self.workshop.open_gate("a");
        self.workshop.open_gate("b");
        for task in self.running.into_iter().chain([self.waiting]) {
            self.database.wait_for_state(task, TaskState::Completed);
        }
        for worker in self.workers {
            worker.stop(Signal::TERM);
        }
        assert_clean(&self.database, &self.workshop);
    }
}

/// As a clock that has just gone forward would have it, for whoever believes in clocks.
#[test]
fn nobody_is_swept_because_all_heartbeats_look_old() {
    for worker_type in WORKER_TYPES {
        let shift = Shift::start(Database::new(), worker_type);
        let mut connection = shift.database.connect();
        shift.expect_peace(|| {
            let age = "UPDATE millhand.worker
                          SET last_heartbeat = last_heartbeat - interval '1 hour'";
            connection.execute(age, &[]).unwrap();
        });
        shift.finish();
    }
}

/// A Postgres whose clock the test sets.
struct Clock {
    server: PrivatePostgres,
    offset: PathBuf,
    _folder: TempDir,
}

impl Clock {
    fn start() -> Clock {
        let library = library().expect(
            "libfaketime is not installed; `make setup` installs it where it may, else install \
             the package faketime (Debian, Ubuntu) or libfaketime (others)",
        );
        let folder = TempDir::with_prefix("millhand-test-").unwrap();
        // The server runs as somebody else.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let offset = folder.path().join("offset");
        fs::write(&offset, "+0\n").unwrap();
        let wrapper = [
            "env".to_owned(),
            format!("LD_PRELOAD={}", library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ];
        let wrapper = wrapper.map(Into::into).into();
        let options = PostgresOptions { wrapper, ..PostgresOptions::default() };
        Clock { server: PrivatePostgres::start(&options).unwrap(), offset, _folder: folder }
    }

    /// Sets it to this many seconds from the right time, and waits until it shows.
    fn set(&self, database: &Database, seconds: i64) {
        let new = self.offset.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        // At once, so that nobody reads half of it.
        fs::rename(&new, &self.offset).unwrap();
        let mut connection = database.connect();
        wait_until(database, "the clock is set", SOON, || {
            let query = "SELECT extract(epoch FROM clock_timestamp())::float8";
            let server: f64 = connection.query_one(query, &[]).unwrap().get(0);
            let now = jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
            let found = server - now;
            if (found - seconds as f64).abs() < 60.0 { Ok(()) } else { Err(found) }
        });
    }
}

fn library() -> Option<PathBuf> {
    let folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    let below = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders
        .into_iter()
        .chain(below)
        .map(|folder| folder.join("faketime/libfaketime.so.1"))
        .find(|library| library.exists())
}

#[test]
fn a_clock_that_is_set_forward_ends_no_living_worker() {
    for worker_type in WORKER_TYPES {
        let clock = Clock::start();
        let shift = Shift::start(Database::of(&clock.server), worker_type);
        clock.set(&shift.database, 3600);
        shift.expect_peace(|| {});
        shift.finish();
    }
}

/// The order of times in the rows is none after that: there is nothing for the oracle.
#[test]
fn a_clock_that_is_set_back_keeps_no_dead_worker() {
    for worker_type in WORKER_TYPES {
        let clock = Clock::start();
        let shift = Shift::start(Database::of(&clock.server), worker_type);
        clock.set(&shift.database, -3600);
        let [living, dead] = &shift.workers;
        let pid = Pid::from_raw(dead.pid().cast_signed()).unwrap();
        let all = [vec![pid], children_of(dead.pid())].concat();
        signal_all(&all, Signal::KILL);
        shift.database.wait_for_state(shift.running[1], TaskState::Failed);
        assert_eq!(shift.database.task(shift.running[0]).state, TaskState::Running);
        shift.workshop.open_gate("a");
        shift.database.wait_for_state(shift.waiting, TaskState::Completed);
        assert_eq!(shift.database.worker_ids().len(), 1, "{}", living.stderr());
    }
}
