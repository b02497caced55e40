//! What a command has left behind: when its task is final, nothing of it is alive, in
//! whichever way the task ended and however well the descendants have hidden.

use std::collections::BTreeSet;
use std::fs;

use millhand::{NewTask, TaskId, TaskState, client};
use rustix::process::{Pid, Signal};
use serde_json::json;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{
    GATE_HANDLERS, WorkerProcess, Workshop, children_of, signal_all, within,
};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Of workers that are to be swept soon.
const TTL: &str = "3s";

const HANDLERS: &str = r#"
[handlers.leave]
command = ["sh", "{folder}/leave", "{folder}", "{code}"]
[handlers.witness]
command = ["sh", "{folder}/witness", "{folder}"]
[handlers.litter]
command = ["sh", "-c", "(sleep 0.05 &); setsid sleep 1000 & exit 0"]
"#;

/// Each of those who are left, by how it has left.
const WHO: &str = "child daemon bare-child bare-daemon";

/// Leaves four descendants, none of them in its process group and two without any
/// environment, and waits at a gate.
const LEAVE: &str = r#"
setsid sh "$1/resident" "$1" child &
setsid sh -c 'sh "$0/resident" "$0" daemon &' "$1"
env -i setsid sh "$1/resident" "$1" bare-child &
env -i setsid sh -c 'sh "$0/resident" "$0" bare-daemon &' "$1"
for who in $WHO; do
    while [ ! -e "$1/$who" ]; do sleep 0.01; done
done
: >"$1/at-leave"
while [ ! -e "$1/gate-leave" ]; do sleep 0.01; done
exit "$2"
"#;

/// Notes itself, and lives for ever, but not longer than the test.
const RESIDENT: &str = r#"
trap '' TERM INT HUP
echo $$ >"$1/$2.new"
mv "$1/$2.new" "$1/$2"
while [ -d "$1" ]; do sleep 0.05; done
"#;

/// Says who is alive; all are dead if it says nothing but that. (Who is dead and not yet reaped by its parent is dead.)
const WITNESS: &str = r#"
for who in $WHO; do
    grep -q '^State:.[^ZX]' "/proc/$(cat "$1/$who")/status" 2>/dev/null && echo "$who"
done
echo "no more"
"#;

/// A command that has left somebody, with its worker and another one.
struct Home {
    task: TaskId,
    first: WorkerProcess,
    second: WorkerProcess,
    workshop: Workshop,
    database: Database,
}

impl Home {
    /// The command ends with this code when its gate is opened.
    fn start(worker_type: &str, code: u8) -> Home {
        let database = Database::new();
        let workshop = Workshop::new(&database, &format!("{GATE_HANDLERS}{HANDLERS}"));
        for (name, text) in [("leave", LEAVE), ("resident", RESIDENT), ("witness", WITNESS)] {
            fs::write(workshop.path().join(name), text.replace("$WHO", WHO)).unwrap();
        }
        let worker = || {
            let mut command = workshop.millhand(["worker", "--type", worker_type]);
            command.env("MILLHAND_TTL", TTL).env("MILLHAND_CANCEL_GRACE_INTERVAL", "100ms");
            WorkerProcess::start(command)
        };
        let first = worker();
        let folder = workshop.path().display().to_string();
        let args = json!({ "folder": folder, "code": code.to_string() });
        let task = database.dispatch(&NewTask::new("leave").args(args).exclusive("r"));
        workshop.wait_at_gate(&database, "leave");
        let second = worker();
        database.wait_for_workers(2);
        Home { task, first, second, workshop, database }
    }

    fn worker(&self) -> Vec<Pid> {
        vec![Pid::from_raw(self.first.pid().cast_signed()).unwrap()]
    }

    /// The warden of the worker.
    fn warden(&self) -> Vec<Pid> {
        let is_warden = |pid: &Pid| {
            let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap();
            words.split(|byte| *byte == 0).any(|word| word == b"warden")
        };
        let wardens: Vec<Pid> =
            children_of(self.first.pid()).into_iter().filter(is_warden).collect();
        assert_eq!(wardens.len(), 1);
        wardens
    }

    /// Asserts that the next task on the resource, which the other worker runs if this
    /// one is in no state to, finds nobody alive.
    #[track_caller]
    fn expect_nobody(&self, state: TaskState) {
        let folder = self.workshop.path().display().to_string();
        let args = json!({ "folder": folder });
        let witness = NewTask::new("witness").args(args).exclusive("r");
        let witness = self.database.dispatch(&witness);
        self.database.wait_for_state(self.task, state);
        let task = self.database.wait_for_state(witness, TaskState::Completed);
        assert_eq!(task.result, Some(json!("no more")), "these are alive");
    }

    #[track_caller]
    fn finish(self) {
        self.second.stop(Signal::TERM);
        assert_clean(&self.database, &self.workshop);
    }
}

#[test]
fn nothing_outlives_a_task_that_ended_by_itself() {
    for worker_type in WORKER_TYPES {
        for (code, state) in [(0, TaskState::Completed), (3, TaskState::Failed)] {
            let home = Home::start(worker_type, code);
            home.workshop.open_gate("leave");
            home.expect_nobody(state);
            home.first.signal(Signal::TERM);
            home.finish();
        }
    }
}

#[test]
fn nothing_outlives_a_canceled_task() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        client::cancel(&mut home.database.connect(), home.task).unwrap();
        home.expect_nobody(TaskState::Canceled);
        home.first.signal(Signal::TERM);
        home.finish();
    }
}

/// Where no session holds the claim, there is none to be lost.
#[test]
fn nothing_outlives_a_task_whose_session_was_lost() {
    for worker_type in WORKER_TYPES.into_iter().filter(|name| *name != "redis") {
        let home = Home::start(worker_type, 0);
        let n = home.database.terminate(&format!(
            "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
                        AND (classid::bigint << 32 | objid::bigint) = millhand.task_lock({}))",
            home.task
        ));
        assert_eq!(n, 1);
        home.expect_nobody(TaskState::Failed);
        home.first.signal(Signal::TERM);
        home.finish();
    }
}

#[test]
fn nothing_outlives_a_task_whose_worker_had_to_end_at_once() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        home.first.signal(Signal::QUIT);
        home.expect_nobody(TaskState::Failed);
        home.finish();
    }
}

#[test]
fn nothing_outlives_a_task_whose_worker_was_killed() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        signal_all(&home.worker(), Signal::KILL);
        home.expect_nobody(TaskState::Failed);
        home.finish();
    }
}

/// The other worker, on the same host, finds them.
#[test]
fn nothing_outlives_a_task_whose_worker_and_warden_were_killed() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        let warden = home.warden();
        signal_all(&[home.worker(), warden].concat(), Signal::KILL);
        home.expect_nobody(TaskState::Failed);
        home.finish();
    }
}

/// A worker on another host, which sees none of them, leaves that to the one on this host.
#[test]
fn those_on_the_same_host_sweep_first() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        // It has no handler of ours, so what it sweeps is all that it does.
        let redis = home.workshop.redis.clone();
        let elsewhere = Workshop::with_redis(&home.database, redis, "");
        let mut command = elsewhere.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_TTL", TTL).env("MILLHAND_POLL_INTERVAL", "100ms");
        let unshare = ["unshare", "--uts", "--pid", "--fork", "--mount-proc"];
        let rename = ["sh", "-c", "hostname elsewhere && exec \"$0\" \"$@\""];
        let mut far = WorkerProcess::start(within(&[&unshare[..], &rename].concat(), &command));
        home.database.wait_for_workers(3);
        let hosts: BTreeSet<String> = millhand::fleet::workers(&mut home.database.connect())
            .unwrap()
            .into_iter()
            .map(|worker| worker.hostname)
            .collect();
        assert_eq!(hosts.len(), 2, "{hosts:?}");
        signal_all(&[home.worker(), home.warden()].concat(), Signal::KILL);
        home.expect_nobody(TaskState::Failed);
        signal_all(&children_of(far.pid()), Signal::TERM);
        assert!(far.wait(SOON).success(), "{}", far.stderr());
        home.finish();
    }
}

#[test]
fn nothing_outlives_a_task_whose_worker_was_frozen() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        home.first.signal(Signal::STOP);
        home.expect_nobody(TaskState::Failed);
        home.first.signal(Signal::CONT);
        home.first.signal(Signal::TERM);
        home.finish();
    }
}

#[test]
fn nothing_outlives_a_task_whose_worker_and_warden_were_frozen() {
    for worker_type in WORKER_TYPES {
        let home = Home::start(worker_type, 0);
        let frozen = [home.worker(), home.warden()].concat();
        signal_all(&frozen, Signal::STOP);
        home.expect_nobody(TaskState::Failed);
        signal_all(&frozen, Signal::CONT);
        home.first.signal(Signal::TERM);
        home.finish();
    }
}

/// All that loses its parent in a container becomes a child of its first process.
#[test]
fn a_worker_that_is_process_1_leaves_no_zombies() {
    let database = Database::new();
    let workshop = Workshop::new(&database, HANDLERS);
    let worker = workshop.millhand(["worker", "--type", "postgres", "--threads", "2"]);
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc"];
    let mut worker = WorkerProcess::start(within(&unshare, &worker));
    database.wait_for_workers(2);
    let first = children_of(worker.pid());
    let [first] = first[..] else { panic!("no process 1 in {first:?}: {}", worker.stderr()) };
    let tasks = vec![NewTask::new("litter"); 10];
    client::dispatch_many(&mut database.connect(), &tasks).unwrap();
    database.wait_for_all_final();
    wait_until(&database, "it has no zombies", SOON, || {
        let children = children_of(first.as_raw_nonzero().get().cast_unsigned());
        let stat = |pid: &Pid| fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        let mut zombies: Vec<String> = children.iter().filter_map(|pid| stat(pid).ok()).collect();
        zombies.retain(|stat| stat.contains(") Z "));
        if zombies.is_empty() { Ok(()) } else { Err(zombies) }
    });
    for task in database.tasks() {
        assert_eq!(task.state, TaskState::Completed, "{task:?}");
    }
    signal_all(&[first], Signal::TERM);
    assert!(worker.wait(SOON).success(), "{}", worker.stderr());
    assert_clean(&database, &workshop);
}
