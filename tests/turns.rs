//! One turn after another, taken by the test: what a look finds, tells and
//! leaves behind beside others that happen at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use millhand::{NewTask, TaskId, TaskState, client};
use rustix::process::Signal;

use crate::support::database::{Database, count_parked};
use crate::support::process::{GATE_HANDLERS, Workshop, gate_task};
use crate::support::scenario::with_resources;
use crate::support::session::{Session, Turn};
use crate::support::{SOON, clean, oracle, wait_until};

/// Each of two who end tasks at once sees the other's task running still. The
/// one that came second knows of the first and says that it must be looked again.
#[test]
fn of_two_ends_at_once_one_says_to_look_again() {
    let database = Database::new();
    for resources in ["a", "b", "a b"] {
        database.dispatch(&with_resources(NewTask::new("t"), resources));
    }
    let (mut first, mut second) = (Session::new(&database, "a"), Session::new(&database, "b"));
    let look = Turn { idle_siblings: true, ..Turn::default() };
    let [first_task, second_task] = [&mut first, &mut second].map(|session| {
        let task = session.turn(&look).unwrap().task;
        assert!(task.is_some());
        task
    });
    let end = |ended| Turn { ended, idle_siblings: true, ..Turn::default() };
    first.connection.batch_execute("BEGIN").unwrap();
    let found = first.turn(&end(first_task)).unwrap();
    assert_eq!((found.task, found.inconclusive), (None, false));
    second.connection.batch_execute("BEGIN").unwrap();
    let found = second.turn(&end(second_task)).unwrap();
    assert_eq!((found.task, found.inconclusive), (None, true));
    first.connection.batch_execute("COMMIT").unwrap();
    second.connection.batch_execute("COMMIT").unwrap();
    assert!(first.turn(&look).unwrap().task.is_some());
}

/// While one worker of type `pulpcore` marks what may start, another one that does not
/// mark looks in vain, and is told to look again.
#[test]
fn who_looks_while_another_marks_says_to_look_again() {
    let database = Database::new();
    for resources in ["a", "b"] {
        database.dispatch(&with_resources(NewTask::new("t"), resources));
    }
    let mut walker = Session::pulpcore(&database, "a", true);
    let mut auxiliary = Session::pulpcore(&database, "b", false);
    walker.connection.batch_execute("BEGIN").unwrap();
    assert!(walker.turn(&Turn::default()).unwrap().task.is_some());
    let hang = Turn { hang_bell: true, ..Turn::default() };
    let found = auxiliary.turn(&hang).unwrap();
    assert_eq!((found.task, found.inconclusive, found.bell_hung), (None, true, true));
    walker.connection.batch_execute("COMMIT").unwrap();
    let again = Turn { take_bell_down: true, hang_bell: true, ..Turn::default() };
    assert!(auxiliary.turn(&again).unwrap().task.is_some());
}

/// A worker of type `pulpcore` that is woken because a task has ended, and finds
/// another one marked, has not done what it was woken for: somebody else walks.
#[test]
fn who_finds_something_marked_leaves_the_walk_to_the_next() {
    let database = Database::new();
    for resources in ["a", "b", "c", "a"] {
        database.dispatch(&with_resources(NewTask::new("t"), resources));
    }
    let mut sessions = ["a", "b", "c"].map(|name| Session::pulpcore(&database, name, true));
    let look = Turn { idle_siblings: true, ..Turn::default() };
    let first = sessions[0].turn(&look).unwrap();
    assert!(first.task.is_some() && first.more, "{first:?}");
    // The fourth may start now, but the second is marked already.
    let found = sessions[0].turn(&Turn { ended: first.task, ..look }).unwrap();
    assert!(found.task.is_some() && found.more, "{found:?}");
    let look = Turn { idle_siblings: true, ..Turn::default() };
    let found = sessions[1].turn(&look).unwrap();
    assert!(found.task.is_some() && found.more, "{found:?}");
    let found = sessions[2].turn(&look).unwrap();
    assert!(found.task.is_some(), "{found:?}");
}

/// Looks, deep each time; what it gets ends with its next look. Nobody wakes it
/// and it waits for nobody, so what it misses for good, nobody finds.
fn look_until_all_have_ended(
    database: &Database,
    number: usize,
    handler: &str,
    left: &AtomicUsize,
) {
    let mut session = Session::new(database, &format!("w{number}"));
    let handlers = &[handler];
    let mut turn = Turn { handlers, idle_siblings: true, hang_bell: true, ..Turn::default() };
    while left.load(Ordering::Relaxed) > 0 {
        let found = session.turn(&turn).unwrap();
        if turn.ended.is_some() {
            one_less(left);
        }
        (turn.ended, turn.take_bell_down) = (found.task, found.bell_hung);
    }
    session.leave();
}

/// Never below 0, where a test that fails puts it.
fn one_less(left: &AtomicUsize) {
    let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
}

/// Lets the looks end when the test fails.
struct NothingLeft<'a>(&'a AtomicUsize);

impl Drop for NothingLeft<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[test]
fn looks_that_park_while_others_end_and_cancel_forget_nothing() {
    look_end_and_cancel_at_once(5, &["t"]);
}

/// Most of what a deep look passes over cannot be parked, because somebody keeps the row
/// of what it waits for locked: what is free far behind is found all the same, not in
/// steps of the few that can be parked.
#[test]
fn few_that_can_be_parked_among_many_that_cannot_take_few_looks() {
    const FEW_LOOKS: usize = 10;
    let database = Database::new();
    let mut sessions = ["a", "b", "c"].map(|name| Session::new(&database, name));
    for (session, resource) in sessions.iter_mut().zip(["locked", "held"]) {
        database.dispatch(&NewTask::new("t").exclusive(resource));
        assert!(session.turn(&Turn::default()).unwrap().task.is_some());
    }
    let mut other = database.connect();
    let mut open = other.transaction().unwrap();
    client::cancel(&mut open, database.tasks()[0].id).unwrap();
    let mut connection = database.connect();
    let readers = vec![NewTask::new("t").shared("locked"); 198];
    client::dispatch_many(&mut connection, &readers).unwrap();
    let behind = vec![NewTask::new("t").exclusive("held"); 2_000];
    client::dispatch_many(&mut connection, &behind).unwrap();
    let free = database.dispatch(&NewTask::new("t"));
    let mut bell_hung = false;
    for _ in 0..FEW_LOOKS {
        let look = Turn { hang_bell: true, take_bell_down: bell_hung, ..Turn::default() };
        let found = sessions[2].turn(&look).unwrap();
        if let Some(id) = found.task {
            assert_eq!(TaskId(id), free);
            return;
        }
        bell_hung = found.bell_hung;
    }
    panic!("the free task was not found in {FEW_LOOKS} looks");
}

/// A burst is not parked while it is dispatched, unless it gets in the way.
#[test]
fn what_has_just_come_is_parked_later_or_if_a_look_gets_to_200() {
    for (n_behind, n_at_once) in [(199, 0), (200, 180)] {
        let database = Database::new();
        let mut sessions = ["a", "b"].map(|name| Session::new(&database, name));
        database.dispatch(&NewTask::new("t").exclusive("held"));
        assert!(sessions[0].turn(&Turn::default()).unwrap().task.is_some());
        let mut connection = database.connect();
        let behind = vec![NewTask::new("t").exclusive("held"); n_behind];
        client::dispatch_many(&mut connection, &behind).unwrap();
        let mut n_parked = |age: &str| {
            let older =
                format!("UPDATE millhand.task SET created_at = created_at - interval '{age}'");
            connection.batch_execute(&older).unwrap();
            let found = sessions[1].turn(&Turn { hang_bell: true, ..Turn::default() }).unwrap();
            if found.bell_hung {
                let down = Turn { take_bell_down: true, ..Turn::default() };
                assert_eq!(sessions[1].turn(&down).unwrap().task, None);
            }
            count_parked(&mut connection)
        };
        // An hour later, so that the machine may be as slow as it likes.
        assert_eq!(n_parked("-1 h"), n_at_once, "behind: {n_behind}");
        assert_eq!(n_parked("2 h"), n_behind as i64 - 20, "behind: {n_behind}");
    }
}

#[test]
fn looks_that_park_for_others_forget_nothing() {
    look_end_and_cancel_at_once(500, &["t", "u"]);
}

/// Tasks of these names on so many resources, several that look and end at
/// once, each for one of the names, and some that cancel.
fn look_end_and_cancel_at_once(n_resources: usize, names: &[&str]) {
    const TASKS: usize = 1000;
    let database = Database::new();
    let mut connection = database.connect();
    let seed = crate::support::random();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let tasks: Vec<NewTask> = (0..TASKS)
        .map(|_| {
            let name = names[random.usize(..names.len())];
            (0..random.usize(1..=3)).fold(NewTask::new(name), |task, _| {
                let name = format!("r{}", random.usize(..n_resources));
                if random.u8(..3) > 0 { task.exclusive(name) } else { task.shared(name) }
            })
        })
        .collect();
    let ids = client::dispatch_many(&mut connection, &tasks).unwrap();
    let drawn: Vec<Vec<TaskId>> =
        (0..2).map(|_| (0..TASKS / 4).map(|_| ids[random.usize(..TASKS)]).collect()).collect();
    let left = AtomicUsize::new(TASKS);
    thread::scope(|scope| {
        let _ends = NothingLeft(&left);
        for number in 0..5 {
            let (database, left) = (&database, &left);
            let handler = names[number % names.len()];
            scope.spawn(move || look_until_all_have_ended(database, number, handler, left));
        }
        for ids in &drawn {
            let (database, left) = (&database, &left);
            scope.spawn(move || {
                let mut connection = database.connect();
                for pair in ids.chunks(2) {
                    let mut transaction = connection.transaction().unwrap();
                    // In the order of ids, as whoever cancels several should.
                    let mut pair = pair.to_vec();
                    pair.sort();
                    pair.dedup();
                    let before = |client: &mut postgres::Transaction<'_>, id: TaskId| {
                        client
                            .query_one(
                                "SELECT state FROM millhand.task WHERE id = $1 FOR UPDATE",
                                &[&id.0],
                            )
                            .unwrap()
                            .get::<_, String>(0)
                    };
                    let mut n_canceled = 0;
                    for id in pair {
                        if before(&mut transaction, id) == "waiting" {
                            client::cancel(&mut transaction, id).unwrap();
                            n_canceled += 1;
                        }
                    }
                    transaction.commit().unwrap();
                    (0..n_canceled).for_each(|_| one_less(left));
                }
            });
        }
        wait_until(&database, "all have ended", SOON, || match left.load(Ordering::Relaxed) {
            0 => Ok(()),
            n => Err(n),
        });
    });
    assert_eq!(count_parked(&mut connection), 0);
    oracle::assert_sound(&database);
}

/// What each session rehearses as it opens is undone: no row, no drawn id and no lock;
/// all that tells of it are fencing tokens.
#[test]
fn a_rehearsal_leaves_nothing() {
    for worker_type in ["postgres", "pulpcore"] {
        let database = Database::new();
        let workshop = Workshop::new(&database, GATE_HANDLERS);
        let gate_task = gate_task(&workshop, "gate", "all");
        let first = database.dispatch(&gate_task);
        let worker = workshop.worker(worker_type, &["--threads", "4"]);
        let mut ids = vec![first];
        ids.extend((0..3).map(|_| database.dispatch(&gate_task)));
        // Whoever runs a task has rehearsed.
        for id in ids {
            database.wait_for_state(id, TaskState::Running);
        }
        assert_eq!(database.dispatch(&gate_task), TaskId(first.0 + 4));
        workshop.open_gate("all");
        database.wait_for_all_final();
        assert_eq!(database.tasks().len(), 5);
        let mut connection = database.connect();
        let drawn =
            connection.query_one("SELECT last_value FROM millhand.task_fence", &[]).unwrap();
        assert_eq!(drawn.get::<_, i64>(0), 5 + 4 * 2);
        wait_until(&database, "sessions hold what belongs to an idle worker", SOON, || {
            let locks = connection
                .query_one(
                    "SELECT count(*) FILTER (WHERE key <> ALL (w.locks || millhand.bell_lock())),
                            count(*) FILTER (WHERE key = millhand.bell_lock())
                       FROM (SELECT l.classid::bigint << 32 | l.objid::bigint AS key
                               FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                              WHERE a.application_name LIKE 'millhand worker %'
                                AND a.datname = current_database()
                                AND l.locktype = 'advisory') AS l
                      CROSS JOIN (SELECT array_agg(millhand.worker_lock(id)) AS locks
                                    FROM millhand.worker) AS w",
                    &[],
                )
                .unwrap();
            match (locks.get::<_, i64>(0), locks.get::<_, i64>(1)) {
                (0, 1) => Ok(()),
                (n, n_bells) => Err(format!("{n} other locks, and the bell {n_bells} times")),
            }
        });
        worker.stop(Signal::TERM);
        clean::assert_clean(&database, &workshop);
    }
}

/// Others park between the turns of a rehearsal: it goes on, and all that is parked stays.
#[test]
fn what_is_parked_during_a_rehearsal_stays_parked() {
    for script in [
        include_str!("../sql/queries/rehearse.sql"),
        include_str!("../sql/queries/rehearse_unblocked.sql"),
    ] {
        let statements: Vec<&str> = script.split_inclusive(";\n").collect();
        assert!(statements.len() > 5);
        for n_before in 1..statements.len() {
            let (before, after) = statements.split_at(n_before);
            let database = Database::new();
            let mut rehearser = database.connect();
            rehearser
                .batch_execute(include_str!("../sql/queries/worker_session.sql"))
                .and_then(|()| rehearser.batch_execute(&before.concat()))
                .unwrap();
            let mut connection = database.connect();
            let held = vec![NewTask::new("t").exclusive("held"); 61];
            client::dispatch_many(&mut connection, &held).unwrap();
            connection
                .batch_execute("UPDATE millhand.task SET created_at = created_at - interval '1 h'")
                .unwrap();
            let mut sessions = ["a", "b"].map(|name| Session::new(&database, name));
            assert!(sessions[0].turn(&Turn::default()).unwrap().task.is_some());
            let deep = Turn { hang_bell: true, ..Turn::default() };
            assert_eq!(sessions[1].turn(&deep).unwrap().task, None);
            let said = format!("after {n_before} of {} statements", statements.len());
            rehearser.batch_execute(&after.concat()).expect(&said);
            let locks: i64 = rehearser
                .query_one(
                    "SELECT count(*) FROM pg_locks
                      WHERE pid = pg_backend_pid() AND locktype = 'advisory'",
                    &[],
                )
                .unwrap()
                .get(0);
            let parked = count_parked(&mut connection);
            assert_eq!((locks, parked, database.tasks().len()), (0, 40, 61), "{said}");
        }
    }
}
