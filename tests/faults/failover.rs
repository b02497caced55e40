//! A server that is replaced by its standby, with and without all that was committed.
//!
//! What a lost commit said cannot be known to the new server; the workers know some of it.
//! Whatever they can make of that: nothing stays `running` that nobody runs, no process
//! goes on with what it does not own, and fencing tokens only go up.

use std::collections::BTreeSet;
use std::fs;

use millhand::server::{PostgresOptions, PrivatePostgres};
use millhand::{NewTask, TaskId, TaskState, client, db};
use postgres::Client;
use rustix::process::Signal;

use super::server::{NOTED, assert_each_ran_once, dispatch_load};
use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{WorkerProcess, Workshop, gate_task, run};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Short, so that there are many heartbeats in a test.
const TTL: &str = "3s";

/// A server counts that many values of a sequence as drawn, and more than that are lost
/// with a failover.
const MANY_FENCES: usize = 70;

/// Notes each start with its fencing token, and whether somebody is still at the same
/// gate.
const JOURNAL: &str = r#"
[handlers.journal]
command = ["sh", "-c", "kill -0 $(cat \"$0/pid-$1\") 2>&- && echo $1 >>\"$0/overlaps\"; echo $$ >\"$0/pid-$1\"; echo $MILLHAND_TASK_ID $MILLHAND_FENCE >>\"$0/fences\"; : >\"$0/at-$1\"; while [ ! -e \"$0/gate-$1\" ]; do sleep 0.01; done", "{folder}", "{gate}"]
"#;

/// Two servers, a worker that knows both, and what the test does.
struct Pair {
    worker: WorkerProcess,
    workshop: Workshop,
    /// Whichever of the two can be written to.
    database: Database,
    standby: PrivatePostgres,
    primary: PrivatePostgres,
}

impl Pair {
    fn start(worker_type: &str, attributes: &str, threads: u32) -> Pair {
        let options = PostgresOptions::default();
        let primary = PrivatePostgres::start(&options).unwrap();
        Database::of(&primary);
        let standby = primary.start_standby(&options).unwrap();
        let database = Database::behind(url_of_both(&primary, &standby, attributes));
        let workshop = Workshop::new(&database, &format!("{NOTED}{JOURNAL}"));
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.args(["--threads", &threads.to_string()]).env("MILLHAND_TTL", TTL);
        let worker = WorkerProcess::start(command);
        database.wait_for_workers(threads as usize);
        Pair { worker, workshop, database, standby, primary }
    }

    fn dispatch(&self, gate: &str, resource: &str) -> TaskId {
        let task = gate_task(&self.workshop, "journal", gate).exclusive(resource);
        self.database.dispatch(&task)
    }

    fn run_one(&self, gate: &str, resource: &str) -> TaskId {
        let id = self.dispatch(gate, resource);
        self.workshop.wait_at_gate(&self.database, gate);
        id
    }

    fn at(&self, server: &PrivatePostgres) -> Client {
        db::connect(&server.url(), "test").unwrap()
    }

    /// Has the standby hear of nothing any more, once it knows all that is there now.
    fn cut(&self) {
        let (mut primary, mut standby) = (self.at(&self.primary), self.at(&self.standby));
        let now = primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).unwrap();
        let now: String = now.get(0);
        wait_until(&self.database, "the standby has all", SOON, || {
            let query = format!("SELECT pg_last_wal_replay_lsn() >= '{now}'");
            let row = standby.query_one(&query, &[]).unwrap();
            if row.get(0) { Ok(()) } else { Err("not yet") }
        });
        standby.execute("ALTER SYSTEM SET primary_conninfo = ''", &[]).unwrap();
        standby.execute("SELECT pg_reload_conf()", &[]).unwrap();
        wait_until(&self.database, "nobody follows", SOON, || {
            let row = primary.query_one("SELECT count(*) FROM pg_stat_replication", &[]).unwrap();
            if row.get::<_, i64>(0) == 0 { Ok(()) } else { Err("one does") }
        });
    }

    /// Loses what the standby does not have.
    fn fail_over(&mut self) {
        self.primary.kill_hard();
        self.standby.promote().unwrap();
    }

    /// Has the primary give away more fencing tokens than the standby knows of.
    fn draw_fences(&self) {
        let tasks: Vec<NewTask> =
            (0..MANY_FENCES).map(|_| NewTask::new("millhand.noop").exclusive("many")).collect();
        let ids = client::dispatch_many(&mut self.database.connect(), &tasks).unwrap();
        self.database.wait_for_state(*ids.last().unwrap(), TaskState::Completed);
    }

    /// Each start of a command, in order: the task and its token.
    fn starts(&self) -> Vec<(i64, i64)> {
        let notes = fs::read_to_string(self.workshop.path().join("fences")).unwrap_or_default();
        let pair = |line: &str| {
            let (id, fence) = line.split_once(' ')?;
            Some((id.parse().ok()?, fence.parse().ok()?))
        };
        notes.lines().filter_map(pair).collect()
    }

    fn n_starts(&self, id: TaskId) -> usize {
        self.starts().iter().filter(|(other, _)| *other == id.0).count()
    }

    /// The commands that run now, by the gates they wait at.
    fn running(&self) -> BTreeSet<String> {
        let processes = self.workshop.processes();
        let commands = processes.iter().filter(|process| process.contains("/at-"));
        commands
            .filter_map(|process| process.split_whitespace().last())
            .map(str::to_owned)
            .collect()
    }

    /// Waits until only these commands run.
    #[track_caller]
    fn expect_running(&self, gates: &[&str]) {
        let gates: BTreeSet<String> = gates.iter().map(|gate| (*gate).to_owned()).collect();
        wait_until(&self.database, &format!("only {gates:?} run"), SOON, || {
            let running = self.running();
            if running == gates { Ok(()) } else { Err((running, self.worker.stderr())) }
        });
    }

    /// Runs a task more on a resource, asserts that tokens and positions only ever went
    /// up, stops the worker, and looks for what is left.
    #[track_caller]
    fn finish(self, resource: &str) {
        let highest_place = self.database.tasks().iter().filter_map(|task| task.position).max();
        let next = self.run_one("next", resource);
        assert!(self.database.task(next).position > highest_place);
        self.workshop.open_gate("next");
        self.database.wait_for_state(next, TaskState::Completed);
        self.database.wait_for_all_final();
        let fences: Vec<i64> = self.starts().iter().map(|(_, fence)| *fence).collect();
        assert!(fences.is_sorted_by(|first, second| first < second), "{fences:?}");
        let overlaps = fs::read_to_string(self.workshop.path().join("overlaps"));
        assert_eq!(overlaps.unwrap_or_default(), "", "two ran one task at once");
        self.worker.stop(Signal::TERM);
        assert_clean(&self.database, &self.workshop);
    }
}

fn url_of_both(first: &PrivatePostgres, second: &PrivatePostgres, attributes: &str) -> String {
    let [first, second] = [first, second].map(|server| {
        let url = server.url();
        let (_, rest) = url.split_once("?host=").unwrap();
        rest.replace("&port=", ":")
    });
    format!("postgresql://postgres@{first},{second}/millhand{attributes}")
}

const READ_WRITE: &str = "?target_session_attrs=read-write";

#[test]
fn a_task_whose_end_was_lost_fails_and_what_waits_for_it_goes_on() {
    for worker_type in WORKER_TYPES {
        let mut pair = Pair::start(worker_type, READ_WRITE, 2);
        let id = pair.run_one("a", "r");
        pair.cut();
        pair.workshop.open_gate("a");
        pair.database.wait_for_state(id, TaskState::Completed);
        pair.draw_fences();
        let last = pair.run_one("last", "s");
        pair.workshop.open_gate("last");
        pair.database.wait_for_state(last, TaskState::Completed);
        pair.fail_over();
        // It was done, and nobody can say so any more: but nobody does it again.
        pair.database.wait_for_state(id, TaskState::Failed);
        assert_eq!(pair.n_starts(id), 1);
        pair.finish("r");
    }
}

/// Of two tasks the end of the first one is lost and the start of the second one.
fn lose_a_start(worker_type: &str) -> (Pair, TaskId, TaskId) {
    let mut pair = Pair::start(worker_type, READ_WRITE, 1);
    let first = pair.run_one("a", "r");
    let second = pair.dispatch("b", "r");
    pair.cut();
    pair.workshop.open_gate("a");
    pair.workshop.wait_at_gate(&pair.database, "b");
    pair.fail_over();
    pair.database.wait_for_state(first, TaskState::Failed);
    (pair, first, second)
}

#[test]
fn a_task_whose_start_was_lost_is_killed_before_anybody_begins_it() {
    for worker_type in WORKER_TYPES {
        let (pair, first, second) = lose_a_start(worker_type);
        pair.workshop.open_gate("b");
        pair.database.wait_for_all_final();
        assert_eq!(pair.n_starts(first), 1);
        assert!(pair.n_starts(second) <= 2, "{:?}", pair.starts());
        pair.finish("r");
    }
}

/// The only worker there is knows that it had begun the second one, too.
#[test]
fn a_task_whose_start_was_lost_is_not_begun_again_by_itself() {
    for worker_type in WORKER_TYPES {
        let (pair, first, second) = lose_a_start(worker_type);
        pair.database.wait_for_state(second, TaskState::Failed);
        pair.expect_running(&[]);
        assert_eq!((pair.n_starts(first), pair.n_starts(second)), (1, 1));
        pair.finish("r");
    }
}

#[test]
fn a_task_whose_dispatch_was_lost_is_killed() {
    for worker_type in WORKER_TYPES {
        let mut pair = Pair::start(worker_type, READ_WRITE, 2);
        let kept = pair.run_one("kept", "r");
        pair.cut();
        pair.draw_fences();
        let lost = pair.run_one("lost", "s");
        pair.fail_over();
        assert!(client::get_task(&mut pair.database.connect(), lost).is_err());
        wait_until(&pair.database, "the lost one is dead", SOON, || {
            let running = pair.running();
            if running.contains("lost") { Err(pair.worker.stderr()) } else { Ok(()) }
        });
        // Where a claim is in a session it is lost with it; else it can go on.
        pair.workshop.open_gate("kept");
        pair.database.wait_for_all_final();
        assert_eq!(pair.n_starts(kept), 1);
        pair.finish("s");
    }
}

#[test]
fn nothing_confirmed_is_lost_with_a_synchronous_standby() {
    for worker_type in WORKER_TYPES {
        let mut pair = Pair::start(worker_type, READ_WRITE, 4);
        let mut admin = pair.at(&pair.primary);
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", &[]).unwrap();
        admin.execute("SELECT pg_reload_conf()", &[]).unwrap();
        wait_until(&pair.database, "the standby is synchronous", SOON, || {
            let query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
            let row = admin.query_one(query, &[]).unwrap();
            if row.get::<_, i64>(0) == 1 { Ok(()) } else { Err("not yet") }
        });
        let mut ids = dispatch_load(&pair.database, &pair.workshop, 100);
        super::server::wait_for_n_final(&pair.database, 30);
        ids.extend(dispatch_load(&pair.database, &pair.workshop, 100));
        let before = pair.database.tasks();
        pair.fail_over();
        for task in before.iter().filter(|task| task.state.is_final()) {
            let now = pair.database.task(task.id);
            assert_eq!((now.state, now.finished_at), (task.state, task.finished_at));
        }
        pair.database.wait_for_all_final();
        let there: BTreeSet<TaskId> = pair.database.tasks().iter().map(|task| task.id).collect();
        assert!(ids.iter().all(|id| there.contains(id)));
        assert_each_ran_once(&pair.database, &pair.workshop);
        pair.finish("r");
    }
}

#[test]
fn workers_wait_while_the_only_server_is_a_standby_and_go_on_after_its_promotion() {
    for worker_type in WORKER_TYPES {
        // The first of the two that answers.
        let mut pair = Pair::start(worker_type, "", 2);
        let before = pair.database.dispatch(&NewTask::new("millhand.noop"));
        pair.database.wait_for_state(before, TaskState::Completed);
        pair.cut();
        pair.primary.kill_hard();
        wait_until(&pair.database, "the worker met the standby", SOON, || {
            let stderr = pair.worker.stderr();
            if ["read-only", "standby"].iter().any(|word| stderr.contains(word)) {
                Ok(())
            } else {
                Err(stderr)
            }
        });
        let said = run(&mut pair.workshop.millhand(["dispatch", "millhand.noop"]));
        assert_eq!(said.code, Some(75), "{said:?}");
        pair.standby.promote().unwrap();
        let after = pair.database.dispatch(&NewTask::new("millhand.noop"));
        pair.database.wait_for_state(after, TaskState::Completed);
        pair.finish("r");
    }
}
