//! Scenarios of order: which tasks run at each step, for every worker type.

use millhand::{NewTask, TaskState, client, fleet};
use rustix::process::Signal;

use crate::support::scenario::{Scenario, with_resources};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// Runs a scenario for each worker type.
fn each_type(test: impl Fn(Scenario)) {
    for worker_type in WORKER_TYPES {
        test(Scenario::new(worker_type));
    }
}

#[test]
fn readers_run_together() {
    each_type(|mut scenario| {
        for letter in ["a", "b", "c"] {
            scenario.dispatch(letter, "+r");
        }
        scenario.start_worker(4);
        scenario.expect_running("a b c");
        scenario.end("a b c");
        scenario.finish();
    });
}

#[test]
fn a_writer_runs_alone() {
    each_type(|mut scenario| {
        for letter in ["a", "b", "c"] {
            scenario.dispatch(letter, "r");
        }
        scenario.start_worker(4);
        for letter in ["a", "b", "c"] {
            scenario.expect_running(letter);
            scenario.end(letter);
        }
        scenario.assert_after("b c", "a");
        scenario.finish();
    });
}

#[test]
fn a_writer_between_readers_keeps_its_place() {
    each_type(|mut scenario| {
        scenario.dispatch("a", "+r");
        scenario.dispatch("b", "+r");
        scenario.dispatch("c", "r");
        scenario.dispatch("d", "+r");
        scenario.dispatch("e", "+r");
        scenario.start_worker(8);
        scenario.expect_running("a b");
        scenario.end("b");
        scenario.expect_running("a");
        scenario.end("a");
        scenario.expect_running("c");
        scenario.end("c");
        scenario.expect_running("d e");
        scenario.end("d e");
        scenario.assert_after("c", "a b");
        scenario.assert_after("d e", "c");
        scenario.finish();
    });
}

#[test]
fn a_task_on_two_resources_waits_for_both_and_reserves_both() {
    each_type(|mut scenario| {
        scenario.dispatch("a", "x");
        scenario.dispatch("b", "x y");
        scenario.dispatch("c", "y");
        scenario.dispatch("d", "z");
        scenario.start_worker(4);
        // `y` is free, but `b` comes first there.
        scenario.expect_running("a d");
        scenario.end("a");
        scenario.expect_running("b d");
        scenario.end("b");
        scenario.expect_running("c d");
        scenario.end("c d");
        scenario.assert_after("b", "a");
        scenario.assert_after("c", "b");
        scenario.finish();
    });
}

#[test]
fn tasks_on_different_resources_run_in_two_processes() {
    each_type(|mut scenario| {
        for letter in ["a", "b", "c", "d"] {
            scenario.dispatch(letter, &format!("{letter} +s"));
        }
        scenario.start_worker(2);
        scenario.start_worker(2);
        scenario.expect_running("a b c d");
        scenario.end("a b c d");
        scenario.finish();
    });
}

/// `n` tasks behind a running one on `r`, then a free one.
fn free_task_behind_blocked_ones(n: usize) {
    each_type(|mut scenario| {
        scenario.dispatch("a", "r");
        let blocked = vec![NewTask::new("millhand.noop").exclusive("r"); n];
        for chunk in blocked.chunks(5000) {
            client::dispatch_many(&mut scenario.connection, chunk).unwrap();
        }
        scenario.dispatch("free", "q");
        scenario.start_worker(2);
        scenario.expect_running("a free");
        // A dispatch while all are busy or blocked is seen, too.
        scenario.end("free");
        scenario.dispatch("late", "q +s");
        scenario.expect_running("a late");
        scenario.end("late a");
        scenario.finish();
    });
}

#[test]
fn a_free_task_behind_20_blocked_ones_starts() {
    free_task_behind_blocked_ones(20);
}

#[test]
fn a_free_task_behind_21_blocked_ones_starts() {
    free_task_behind_blocked_ones(21);
}

#[test]
fn a_free_task_behind_200_blocked_ones_starts() {
    free_task_behind_blocked_ones(200);
}

/// As above, but without running all of them, one after the other.
#[test]
fn a_free_task_behind_20_000_blocked_ones_starts() {
    each_type(|mut scenario| {
        scenario.dispatch("a", "r");
        let blocked = vec![NewTask::new("millhand.noop").exclusive("r"); 5000];
        for _ in 0..4 {
            client::dispatch_many(&mut scenario.connection, &blocked).unwrap();
        }
        scenario.dispatch("free", "q");
        scenario.start_worker(2);
        scenario.expect_running("a free");
        scenario
            .connection
            .batch_execute(
                "SELECT millhand.cancel(id) FROM millhand.task WHERE name = 'millhand.noop'",
            )
            .unwrap();
        scenario.end("free a");
        scenario.finish();
    });
}

#[test]
fn tasks_passed_over_reserve_all_their_resources() {
    each_type(|mut scenario| {
        scenario.dispatch("holder", "A");
        for _ in 0..20 {
            scenario.database.dispatch(&NewTask::new("millhand.noop").exclusive("A"));
        }
        scenario.dispatch("both", "A B");
        scenario.dispatch("b", "B");
        scenario.dispatch("mark", "C");
        scenario.start_worker(3);
        // `B` is free, and still `b` must not pass `both`.
        scenario.expect_running("holder mark");
        scenario.end("holder");
        scenario.expect_running("both mark");
        scenario.end("both");
        scenario.expect_running("b mark");
        scenario.end("b mark");
        scenario.assert_after("b", "both");
        scenario.finish();
    });
}

#[test]
fn twenty_one_shared_tasks_wait_behind_an_exclusive_one() {
    each_type(|mut scenario| {
        scenario.dispatch("writer", "r");
        let readers: Vec<String> = (0..21).map(|number| format!("r{number}")).collect();
        for reader in &readers {
            scenario.dispatch(reader, "+r");
        }
        scenario.dispatch("mark", "q");
        scenario.start_worker(24);
        scenario.expect_running("writer mark");
        scenario.end("writer");
        let all = readers.join(" ");
        scenario.expect_running(&format!("{all} mark"));
        scenario.end(&format!("{all} mark"));
        scenario.assert_after(&all, "writer");
        scenario.finish();
    });
}

#[test]
fn a_task_that_nobody_here_can_run_keeps_its_place() {
    each_type(|mut scenario| {
        let unknown = scenario.database.dispatch(&NewTask::new("elsewhere").exclusive("r"));
        scenario.adopt("unknown", unknown);
        scenario.dispatch("behind", "+r");
        scenario.dispatch("free", "q");
        scenario.start_worker(2);
        scenario.expect_running("free");
        scenario.end("free");
        scenario.expect_running("");
        assert_eq!(scenario.database.task(unknown).state, TaskState::Waiting);
        scenario.cancel("unknown");
        scenario.expect_running("behind");
        scenario.end("behind");
        scenario.assert_after("behind", "unknown");
        scenario.finish();
    });
}

#[test]
fn dispatches_that_commit_in_reverse_order_run_in_commit_order() {
    each_type(|mut scenario| {
        scenario.start_worker(4);
        let (a, b) = (scenario.gate("a", "x +s"), scenario.gate("b", "y +s"));
        let mut first = scenario.database.connect();
        let mut second = scenario.database.connect();
        let mut first = first.transaction().unwrap();
        let mut second = second.transaction().unwrap();
        let a = client::dispatch(&mut first, &a).unwrap();
        let b = client::dispatch(&mut second, &b).unwrap();
        second.commit().unwrap();
        scenario.adopt("a", a);
        scenario.adopt("b", b);
        scenario.expect_running("b");
        // It conflicts with both; one of them can be seen by now.
        let c = scenario.gate("c", "y s");
        let database = &scenario.database;
        let c = std::thread::scope(|scope| {
            let c = scope.spawn(|| database.dispatch(&c));
            first.commit().unwrap();
            c.join().unwrap()
        });
        scenario.adopt("c", c);
        scenario.expect_running("a b");
        scenario.end("a b");
        scenario.expect_running("c");
        scenario.end("c");
        scenario.assert_after("c", "a b");
        scenario.finish();
    });
}

#[test]
fn a_task_dispatched_long_before_its_commit_is_found() {
    each_type(|mut scenario| {
        scenario.start_worker(2);
        scenario.dispatch("a", "r");
        scenario.expect_running("a");
        let late = scenario.gate("late", "q");
        let mut connection = scenario.database.connect();
        let mut open = connection.transaction().unwrap();
        let late = client::dispatch(&mut open, &late).unwrap();
        scenario.end("a");
        // Others come and go meanwhile.
        for letter in ["b", "c", "d"] {
            scenario.dispatch(letter, "r");
            scenario.expect_running(letter);
            scenario.end(letter);
        }
        open.commit().unwrap();
        scenario.adopt("late", late);
        scenario.expect_running("late");
        scenario.end("late");
        scenario.finish();
    });
}

#[test]
fn a_finalizer_runs_after_its_siblings() {
    each_type(|mut scenario| {
        scenario.start_worker(4);
        let tasks = [
            scenario.gate("a", "+group x"),
            scenario.gate("b", "+group y"),
            scenario.gate("c", "+group x"),
            scenario.gate("final", "group"),
        ];
        let ids = client::dispatch_many(&mut scenario.connection, &tasks).unwrap();
        for (letter, id) in ["a", "b", "c", "final"].into_iter().zip(ids) {
            scenario.adopt(letter, id);
        }
        scenario.expect_running("a b");
        scenario.end("b a");
        scenario.expect_running("c");
        scenario.end("c");
        scenario.expect_running("final");
        scenario.end("final");
        scenario.assert_after("final", "a b c");
        scenario.finish();
    });
}

#[test]
fn canceled_tasks_free_what_they_kept_waiting() {
    each_type(|mut scenario| {
        scenario.dispatch("a", "r");
        scenario.dispatch("b", "r q");
        scenario.dispatch("c", "q");
        scenario.start_worker(3);
        scenario.expect_running("a");
        // Canceled while it waits: what waited for it alone starts.
        scenario.cancel("b");
        scenario.expect_running("a c");
        // Canceled while it runs: its command is ended.
        scenario.cancel("a");
        scenario.expect_running("c");
        assert!(scenario.database.task(scenario.id("a")).started_at.is_some());
        scenario.end("c");
        scenario.finish();
    });
}

#[test]
fn a_burst_ends_when_nothing_is_left_that_could_run() {
    each_type(|scenario| {
        for number in 0..50 {
            let task = NewTask::new("millhand.noop");
            scenario.database.dispatch(&with_resources(task, &format!("r{} +s", number % 3)));
        }
        let other = scenario.database.dispatch(&NewTask::new("elsewhere").exclusive("s"));
        let behind = scenario.database.dispatch(&NewTask::new("millhand.noop").shared("s"));
        scenario.burst(4);
        for (id, state) in [(other, TaskState::Waiting), (behind, TaskState::Waiting)] {
            assert_eq!(scenario.database.task(id).state, state);
        }
        let left = scenario
            .database
            .tasks()
            .iter()
            .filter(|task| task.state != TaskState::Completed)
            .count();
        assert_eq!(left, 2);
        scenario.assert_clean();
    });
}

#[test]
fn a_worker_stopped_by_each_gentle_signal_ends_its_task_first() {
    for signal in [Signal::TERM, Signal::INT] {
        each_type(|mut scenario| {
            scenario.dispatch("a", "r");
            scenario.dispatch("b", "r");
            scenario.start_worker(2);
            scenario.expect_running("a");
            let mut worker = scenario.take_worker();
            scenario.database.wait_for_workers(2);
            worker.signal(signal);
            // The idle one of the two has left: both were told.
            wait_until(&scenario.database, "it drains", SOON, || {
                let workers = fleet::workers(&mut scenario.connection).unwrap();
                if workers.len() == 1 { Ok(()) } else { Err(workers) }
            });
            scenario.workshop.open_gate("a");
            assert!(worker.wait(SOON).success(), "{}", worker.stderr());
            assert_eq!(scenario.database.task(scenario.id("a")).state, TaskState::Completed);
            // `b` is left to others.
            assert_eq!(scenario.database.task(scenario.id("b")).state, TaskState::Waiting);
            scenario.assert_clean();
        });
    }
}

/// A cancel in a transaction that stays open keeps the row of a free task locked. There
/// are more such tasks than workers.
#[test]
fn free_tasks_whose_rows_are_locked_are_in_nobodys_way() {
    each_type(|mut scenario| {
        let noops = |n| vec![NewTask::new("millhand.noop"); n];
        let locked = client::dispatch_many(&mut scenario.connection, &noops(5)).unwrap();
        let mut other = scenario.database.connect();
        let mut open = other.transaction().unwrap();
        for id in &locked {
            client::cancel(&mut open, *id).unwrap();
        }
        let free = client::dispatch_many(&mut scenario.connection, &noops(30)).unwrap();
        scenario.start_worker(2);
        for id in free {
            scenario.database.wait_for_state(id, TaskState::Completed);
        }
        open.commit().unwrap();
        scenario.finish();
    });
}

/// More ends than a process takes turns at once are held up, each by an open cancel.
/// Idle workers are woken for other tasks all the same, one beside another.
#[test]
fn ends_that_are_held_up_keep_no_idle_worker_idle() {
    each_type(|mut scenario| {
        let letters = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        for letter in letters {
            scenario.dispatch(letter, "");
        }
        scenario.start_worker(12);
        scenario.expect_running(&letters.join(" "));
        let mut other = scenario.database.connect();
        let mut open = other.transaction().unwrap();
        for letter in letters {
            client::cancel(&mut open, scenario.id(letter)).unwrap();
            scenario.workshop.open_gate(letter);
        }
        // (Sessions of type redis wait for no row: there they are tried again.)
        if scenario.worker_type() != "redis" {
            let connection = &mut scenario.connection;
            wait_until(&scenario.database, "all ends are held up", SOON, || {
                let n: i64 = connection
                    .query_one(
                        "SELECT count(*) FROM pg_stat_activity
                          WHERE datname = current_database() AND wait_event_type = 'Lock'",
                        &[],
                    )
                    .unwrap()
                    .get(0);
                if n == letters.len() as i64 { Ok(()) } else { Err(format!("{n}")) }
            });
        }
        for letter in ["x", "y", "z"] {
            scenario.dispatch(letter, "");
        }
        scenario.expect_running(&format!("{} x y z", letters.join(" ")));
        scenario.end("x y z");
        open.rollback().unwrap();
        scenario.finish();
    });
}
