//! Parking: blocked tasks that are out of the looks' way come back when it is
//! their turn, in their order, whatever happens to those before them.

use millhand::{NewTask, TaskId, TaskState, client};
use postgres::Client;
use rustix::process::Signal;

use crate::support::database::{Database, count_parked};
use crate::support::process::Workshop;
use crate::support::scenario::{Scenario, with_resources};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// More than a look passes over without parking.
const DEEP: usize = 300;

fn each_type(test: impl Fn(Scenario)) {
    for worker_type in WORKER_TYPES {
        test(Scenario::new(worker_type));
    }
}

/// `n` tasks that end at once.
fn dispatch_fill(scenario: &mut Scenario, n: usize, resources: &str) -> Vec<TaskId> {
    let tasks = vec![with_resources(NewTask::new("millhand.noop"), resources); n];
    client::dispatch_many(&mut scenario.connection, &tasks).unwrap()
}

/// Workers of type `pulpcore` park nothing, and bring back what others have parked: all
/// else that is said here holds for them as well.
#[track_caller]
fn wait_for_parked(scenario: &mut Scenario, at_least: i64) {
    if scenario.worker_type() == "pulpcore" {
        return;
    }
    let connection = &mut scenario.connection;
    wait_until(&scenario.database, &format!("{at_least} are parked"), SOON, || {
        let n = count_parked(connection);
        if n >= at_least { Ok(()) } else { Err(n) }
    });
}

/// Parks a task as a deep look would.
#[track_caller]
fn park(connection: &mut Client, id: TaskId) {
    let n_parked: i32 = connection
        .query_one("SELECT millhand.park(ARRAY[$1::bigint], 0, '{}')", &[&id.0])
        .unwrap()
        .get(0);
    assert_eq!(n_parked, 1, "task {id} was not parked");
}

#[track_caller]
fn finish(mut scenario: Scenario) {
    scenario.database.wait_for_all_final();
    assert_eq!(count_parked(&mut scenario.connection), 0);
    scenario.finish();
}

#[test]
fn hundreds_of_readers_behind_a_writer_come_back_and_overlap() {
    each_type(|mut scenario| {
        scenario.dispatch("writer", "r");
        let readers: Vec<String> = (0..DEEP)
            .map(|number| {
                // The first, some in the middle and the last run until told to end.
                let held = number % 50 == 0 || number == DEEP - 1;
                if held {
                    let letter = format!("reader{number}");
                    scenario.dispatch(&letter, "+r");
                    return letter;
                }
                dispatch_fill(&mut scenario, 1, "+r");
                String::new()
            })
            .collect();
        let readers = readers.join(" ");
        scenario.dispatch("last", "r");
        scenario.start_worker(5);
        scenario.start_worker(5);
        wait_for_parked(&mut scenario, 200);
        scenario.expect_running("writer");
        scenario.end("writer");
        scenario.expect_running(&readers);
        scenario.end(&readers);
        scenario.expect_running("last");
        scenario.end("last");
        scenario.assert_after("last", &readers);
        finish(scenario);
    });
}

#[test]
fn a_long_chain_runs_to_its_end() {
    each_type(|mut scenario| {
        scenario.dispatch("first", "r");
        dispatch_fill(&mut scenario, 500, "r");
        scenario.dispatch("last", "r");
        scenario.start_worker(4);
        wait_for_parked(&mut scenario, 400);
        scenario.end("first");
        scenario.expect_running("last");
        scenario.end("last");
        finish(scenario);
    });
}

#[test]
fn parked_tasks_keep_the_order_of_all_their_resources() {
    each_type(|mut scenario| {
        scenario.dispatch("holder", "A");
        dispatch_fill(&mut scenario, DEEP, "A");
        scenario.dispatch("both", "A B");
        scenario.dispatch("b", "B");
        scenario.dispatch("mark", "C");
        scenario.start_worker(3);
        scenario.expect_running("holder mark");
        wait_for_parked(&mut scenario, 200);
        // Those that come now find `B` reserved by one that is parked.
        scenario.dispatch("late", "+B");
        scenario.dispatch("free", "D");
        scenario.expect_running("holder mark free");
        scenario.end("holder");
        scenario.expect_running("both mark free");
        scenario.end("both");
        scenario.expect_running("b mark free");
        scenario.end("b");
        scenario.expect_running("late mark free");
        scenario.end("late mark free");
        scenario.assert_after("b", "both");
        scenario.assert_after("late", "b");
        finish(scenario);
    });
}

#[test]
fn a_parked_task_can_be_canceled() {
    each_type(|mut scenario| {
        scenario.dispatch("holder", "r");
        let fill = dispatch_fill(&mut scenario, DEEP, "r");
        scenario.dispatch("last", "r q");
        scenario.dispatch("behind", "q");
        scenario.start_worker(2);
        wait_for_parked(&mut scenario, 200);
        scenario.cancel("last");
        // Nothing else ends that could have told of it.
        scenario.expect_running("holder behind");
        for id in &fill {
            client::cancel(&mut scenario.connection, *id).unwrap();
        }
        scenario.dispatch("next", "r");
        scenario.end("holder");
        scenario.expect_running("behind next");
        scenario.end("behind next");
        finish(scenario);
    });
}

#[test]
fn what_waits_for_a_waiting_task_comes_back_when_that_is_canceled() {
    each_type(|mut scenario| {
        scenario.dispatch("holder", "q");
        scenario.dispatch("blocker", "q r");
        let fill = dispatch_fill(&mut scenario, DEEP, "r");
        scenario.start_worker(2);
        scenario.expect_running("holder");
        wait_for_parked(&mut scenario, 200);
        scenario.cancel("blocker");
        scenario.database.wait_for_state(fill[DEEP - 1], TaskState::Completed);
        scenario.expect_running("holder");
        scenario.end("holder");
        finish(scenario);
    });
}

#[test]
fn what_waits_for_a_task_comes_back_when_its_worker_is_killed() {
    each_type(|mut scenario| {
        let holder = scenario.dispatch("holder", "r");
        scenario.start_worker(1);
        scenario.expect_running("holder");
        let doomed = scenario.take_worker();
        let fill = dispatch_fill(&mut scenario, DEEP, "r");
        scenario.start_worker(2);
        wait_for_parked(&mut scenario, 200);
        doomed.kill();
        scenario.database.wait_for_state(holder, TaskState::Failed);
        scenario.database.wait_for_state(fill[DEEP - 1], TaskState::Completed);
        finish(scenario);
    });
}

/// A cancel of a task whose place is in the middle of a line, in a transaction
/// that stays open, holds up neither the end of what runs nor those before it,
/// and those behind it come back when it is committed, although it could not
/// see that they were parked.
#[test]
fn a_cancel_in_an_open_transaction_delays_only_what_waits_for_it() {
    each_type(|mut scenario| {
        scenario.dispatch("x", "r");
        scenario.start_worker(1);
        scenario.expect_running("x");
        scenario.dispatch("g", "r");
        let h = scenario.dispatch("h", "r");
        scenario.dispatch("c", "r");
        // The worker is busy, so the test can do its looks.
        park(&mut scenario.connection, h);
        let mut other = scenario.database.connect();
        let mut open = other.transaction().unwrap();
        client::cancel(&mut open, h).unwrap();
        for letter in ["g", "c"] {
            let id = scenario.id(letter);
            park(&mut scenario.connection, id);
        }
        scenario.end("x");
        scenario.expect_running("g");
        scenario.end("g");
        scenario.dispatch("free", "q");
        scenario.expect_running("free");
        scenario.end("free");
        scenario.expect_running("");
        open.commit().unwrap();
        scenario.expect_running("c");
        scenario.end("c");
        finish(scenario);
    });
}

#[test]
fn cancels_of_tasks_in_one_line_do_not_wait_for_each_other() {
    let database = Database::new();
    let mut connection = database.connect();
    let tasks = vec![NewTask::new("t").exclusive("r"); 4];
    let ids = client::dispatch_many(&mut connection, &tasks).unwrap();
    for id in &ids[1..] {
        park(&mut connection, *id);
    }
    let mut other = database.connect();
    connection.batch_execute("SET lock_timeout = '10s'").unwrap();
    for (first, second) in [(3, 1), (0, 2)] {
        let mut open = other.transaction().unwrap();
        client::cancel(&mut open, ids[first]).unwrap();
        client::cancel(&mut connection, ids[second]).unwrap();
        open.commit().unwrap();
    }
    assert_eq!(count_parked(&mut connection), 0);
}

#[test]
fn a_cancel_on_an_old_snapshot_brings_back_what_it_cannot_see() {
    each_type(|mut scenario| {
        scenario.dispatch("x", "r");
        let id = scenario.id("x");
        scenario.dispatch("c", "r");
        let mut other = scenario.database.connect();
        let mut old = other
            .build_transaction()
            .isolation_level(postgres::IsolationLevel::RepeatableRead)
            .start()
            .unwrap();
        old.execute("SELECT FROM millhand.task", &[]).unwrap();
        let behind = scenario.id("c");
        park(&mut scenario.connection, behind);
        client::cancel(&mut old, id).unwrap();
        old.commit().unwrap();
        scenario.start_worker(2);
        scenario.expect_running("c");
        scenario.end("c");
        finish(scenario);
    });
}

#[test]
fn processes_that_park_and_end_at_once_leave_nothing_parked() {
    each_type(|mut scenario| {
        for _ in 0..3 {
            scenario.start_worker(4);
        }
        // Deep queues on few resources, again and again while others run dry.
        for round in 0..3 {
            for number in 0..4 {
                let resources = match (round + number) % 3 {
                    0 => format!("r{number}"),
                    1 => format!("+r{number} s"),
                    _ => format!("r{number} +s"),
                };
                dispatch_fill(&mut scenario, 90, &resources);
            }
        }
        scenario.database.wait_for_all_final();
        assert_eq!(count_parked(&mut scenario.connection), 0);
        let worker = scenario.take_worker();
        worker.stop(Signal::TERM);
        finish(scenario);
    });
}

/// Free tasks whose handler is elsewhere: they are out of the way of those who
/// have none, keep their place, and come back when somebody has one.
#[test]
fn tasks_that_nobody_here_can_run_are_in_nobodys_way() {
    // More than a deep look shows at a time.
    const TASKS: usize = 1_500;
    each_type(|mut scenario| {
        let tasks: Vec<NewTask> = (0..TASKS)
            .map(|number| NewTask::new("elsewhere").exclusive(format!("r{number}")))
            .collect();
        let elsewhere = client::dispatch_many(&mut scenario.connection, &tasks).unwrap();
        scenario.dispatch("behind", &format!("+r{}", TASKS - 1));
        scenario.dispatch("free", "q");
        scenario.start_worker(2);
        scenario.expect_running("free");
        wait_for_parked(&mut scenario, TASKS as i64 - 200);
        scenario.end("free");
        // One that is canceled frees its resource, as it would if it waited in sight.
        let canceled = elsewhere[TASKS - 2];
        scenario.dispatch("freed", &format!("r{}", TASKS - 2));
        client::cancel(&mut scenario.connection, canceled).unwrap();
        scenario.expect_running("freed");
        scenario.end("freed");
        let workshop =
            Workshop::new(&scenario.database, "[handlers.elsewhere]\ncommand = [\"true\"]\n");
        let worker = workshop.worker(scenario.worker_type(), &["--threads", "4"]);
        scenario.expect_running("behind");
        scenario.end("behind");
        scenario.database.wait_for_all_final();
        worker.stop(Signal::TERM);
        assert_eq!(count_parked(&mut scenario.connection), 0);
        scenario.finish();
    });
}

/// A cancel of a running task, in a transaction that stays open, keeps its row
/// locked: what waits for that task is in nobody's way all the same. A chain can be
/// parked, each behind the one before; readers, which wait for nothing else, cannot.
#[test]
fn what_waits_for_a_task_with_an_open_cancel_is_in_nobodys_way() {
    // More than a deep look shows at a time.
    const TASKS: usize = 1_500;
    each_type(|mut scenario| {
        for (number, resource) in ["r", "+r"].into_iter().enumerate() {
            let [page, holder, free] =
                ["page", "holder", "free"].map(|name| name.to_owned() + resource);
            scenario.dispatch(&page, "x");
            let holder_id = scenario.dispatch(&holder, "r");
            if number == 0 {
                scenario.start_worker(4);
            }
            scenario.expect_running(&format!("{page} {holder}"));
            let mut other = scenario.database.connect();
            let mut open = other.transaction().unwrap();
            client::cancel(&mut open, holder_id).unwrap();
            dispatch_fill(&mut scenario, 20, "x");
            let waiting = dispatch_fill(&mut scenario, TASKS, resource);
            scenario.dispatch(&free, "q");
            scenario.expect_running(&format!("{page} {holder} {free}"));
            open.commit().unwrap();
            // One after the other, each would take a turn.
            if resource == "r" {
                for id in waiting {
                    client::cancel(&mut scenario.connection, id).unwrap();
                }
            }
            scenario.end(&format!("{page} {free}"));
            scenario.database.wait_for_all_final();
        }
        finish(scenario);
    });
}

/// An open cancel of those that are first in the line of a handler keeps nobody
/// behind them from coming back.
#[test]
fn an_open_cancel_holds_up_only_its_own_in_the_line_of_a_handler() {
    const TASKS: usize = 300;
    each_type(|mut scenario| {
        let tasks = vec![NewTask::new("elsewhere"); TASKS];
        let elsewhere = client::dispatch_many(&mut scenario.connection, &tasks).unwrap();
        scenario.start_worker(1);
        wait_for_parked(&mut scenario, 200);
        let first: i64 = scenario
            .connection
            .query_one("SELECT coalesce(min(task_id), $1) FROM millhand.parked", &[&elsewhere[0].0])
            .unwrap()
            .get(0);
        let begin = elsewhere.iter().position(|id| id.0 == first).unwrap();
        let (canceled, rest) = elsewhere[begin..].split_at(20);
        let mut other = scenario.database.connect();
        let mut open = other.transaction().unwrap();
        for id in canceled {
            client::cancel(&mut open, *id).unwrap();
        }
        let workshop =
            Workshop::new(&scenario.database, "[handlers.elsewhere]\ncommand = [\"true\"]\n");
        let worker = workshop.worker(scenario.worker_type(), &["--threads", "2"]);
        for id in rest {
            scenario.database.wait_for_state(*id, TaskState::Completed);
        }
        open.commit().unwrap();
        scenario.database.wait_for_all_final();
        worker.stop(Signal::TERM);
        finish(scenario);
    });
}
