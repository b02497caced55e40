//! Housekeeping: heartbeats, and the safety poll, what looks may leave out.

use std::collections::BTreeSet;

use millhand::{NewTask, client};
use postgres::Client;
use rustix::process::Signal;

use crate::support::clean::assert_clean;
use crate::support::database::Database;
use crate::support::process::{WorkerProcess, Workshop};
use crate::support::session::{Session, Turn};
use crate::support::{SOON, WORKER_TYPES, wait_until};

/// The safety poll as one process makes it, from one to the next.
#[derive(Default)]
struct Poll {
    low: i64,
    stragglers: Vec<i64>,
    mark: Option<i64>,
    mark_xid: Option<i64>,
}

impl Poll {
    fn poll(&mut self, connection: &mut Client) -> i64 {
        let row = connection
            .query_one(
                "SELECT low, stragglers, mark, mark_xid FROM millhand.poll('p', $1, $2, $3, $4)",
                &[&self.low, &self.stragglers, &self.mark, &self.mark_xid],
            )
            .unwrap();
        *self = Poll {
            low: row.get(0),
            stragglers: row.get(1),
            mark: row.get(2),
            mark_xid: row.get(3),
        };
        self.low
    }

    /// The positions that a look meets.
    fn sight(&self, connection: &mut Client) -> Vec<i64> {
        let rows = connection
            .query(
                "SELECT task_position FROM millhand.in_sight($1, $2) ORDER BY task_position",
                &[&self.low, &self.stragglers],
            )
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}

/// Dispatches in a transaction that stays open over many polls; its task must
/// not end up below `low` when it is committed at last.
#[track_caller]
fn check_open_dispatch(database: &Database, poll: &mut Poll) {
    let mut poller = database.connect();
    let mut connection = database.connect();
    let mut open = connection.transaction().unwrap();
    let id = client::dispatch(&mut open, &NewTask::new("t")).unwrap();
    for _ in 0..4 {
        poll.poll(&mut poller);
        // Others come and go meanwhile.
        let other = database.dispatch(&NewTask::new("other"));
        client::cancel(&mut poller, other).unwrap();
    }
    open.commit().unwrap();
    let position = database.task(id).position.unwrap();
    let low = poll.poll(&mut poller);
    assert!(low <= position, "low is {low}, and a task waits at {position}");
}

#[test]
fn low_never_passes_an_open_dispatch() {
    let database = Database::new();
    let mut poll = Poll::default();
    // The very first position of all is drawn after the first poll.
    poll.poll(&mut database.connect());
    check_open_dispatch(&database, &mut poll);
    check_open_dispatch(&database, &mut poll);
}

#[test]
fn low_never_passes_a_bulk_in_an_open_transaction() {
    let database = Database::new();
    let mut poll = Poll::default();
    let mut poller = database.connect();
    poll.poll(&mut poller);
    let mut connection = database.connect();
    let mut open = connection.transaction().unwrap();
    let ids = client::dispatch_many(&mut open, &[NewTask::new("a"), NewTask::new("b")]).unwrap();
    for _ in 0..4 {
        poll.poll(&mut poller);
    }
    open.commit().unwrap();
    let position = database.task(ids[0]).position.unwrap();
    assert!(poll.poll(&mut poller) <= position);
}

#[test]
fn low_follows_what_has_ended() {
    let database = Database::new();
    let mut poll = Poll::default();
    let mut connection = database.connect();
    for _ in 0..10 {
        let id = database.dispatch(&NewTask::new("t"));
        client::cancel(&mut connection, id).unwrap();
    }
    let id = database.dispatch(&NewTask::new("t"));
    let position = database.task(id).position.unwrap();
    crate::support::wait_until(&database, "low has followed", SOON, || {
        // Other databases of this server hold transactions open, too.
        match poll.poll(&mut connection) {
            low if low == position => Ok(()),
            low => Err(low),
        }
    });
}

/// Long tasks, and what waits for them, do not make looks walk over all that
/// has ended since.
#[test]
fn low_passes_stragglers_and_looks_find_them() {
    let database = Database::new();
    let mut poll = Poll::default();
    let mut connection = database.connect();
    let task = NewTask::new("t").exclusive("r");
    let stragglers = client::dispatch_many(&mut connection, &vec![task.clone(); 2]).unwrap();
    let positions: Vec<i64> =
        stragglers.iter().map(|id| database.task(*id).position.unwrap()).collect();
    let ended = client::dispatch_many(&mut connection, &vec![NewTask::new("t"); 2000]).unwrap();
    for id in ended {
        client::cancel(&mut connection, id).unwrap();
    }
    crate::support::wait_until(&database, "low has passed them", SOON, || {
        poll.poll(&mut connection);
        if poll.stragglers == positions { Ok(()) } else { Err(poll.stragglers.clone()) }
    });
    assert!(poll.low > positions[1] + 2000);
    database.dispatch(&task);
    let mut session = Session::new(&database, "w");
    let mut next = |ended: Option<i64>| -> Option<i64> {
        let turn = Turn { low: poll.low, stragglers: &poll.stragglers, ended, ..Turn::default() };
        session.turn(&turn).unwrap().task
    };
    let first = next(None);
    assert_eq!(first, Some(stragglers[0].0));
    assert_eq!(next(None), None);
    assert_eq!(next(first), Some(stragglers[1].0));
    assert_eq!(next(None), None);
}

/// Whatever comes, ends and is parked: what a poll has learned hides nothing.
#[test]
fn looks_miss_nothing_wherever_they_begin() {
    let database = Database::new();
    let mut connection = database.connect();
    let seed = crate::support::random();
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut polls = [Poll::default(), Poll::default()];
    let mut waiting = Vec::new();
    for _ in 0..60 {
        match random.u8(..4) {
            0 => {
                let n = random.choice([1, 5, 150, 1500]).unwrap();
                let tasks: Vec<NewTask> = (0..n)
                    .map(|_| NewTask::new("t").exclusive(format!("r{}", random.u8(..50))))
                    .collect();
                waiting.extend(client::dispatch_many(&mut connection, &tasks).unwrap());
            }
            1 => {
                let n = random.usize(..=waiting.len());
                random.shuffle(&mut waiting);
                let mut transaction = connection.transaction().unwrap();
                for id in waiting.split_off(waiting.len() - n) {
                    client::cancel(&mut transaction, id).unwrap();
                }
                transaction.commit().unwrap();
            }
            2 => {
                let ids: Vec<i64> =
                    waiting.iter().map(|id| id.0).filter(|_| random.bool()).collect();
                connection.execute("SELECT millhand.park($1, 0, '{}')", &[&ids]).unwrap();
            }
            _ => {
                connection.execute("SELECT millhand.unpark_behind('{r1,r2,r3}')", &[]).unwrap();
            }
        }
        let everything = Poll::default().sight(&mut connection);
        for poll in &mut polls {
            assert_eq!(poll.sight(&mut connection), everything);
            if random.bool() {
                poll.poll(&mut connection);
                assert_eq!(poll.sight(&mut connection), everything);
            }
        }
    }
}

/// A registration whose answer was lost with its connection.
#[test]
fn a_row_that_no_worker_knows_of_is_forgotten() {
    let database = Database::new();
    let register = |connection: &mut Client| -> i64 {
        let sql = "SELECT millhand.add_worker('w', 'postgres', 'p', 'h', 1, '30 s', NULL, NULL, NULL, NULL, NULL, NULL)";
        connection.query_one(sql, &[]).unwrap().get(0)
    };
    let n_workers = |connection: &mut Client| millhand::fleet::workers(connection).unwrap().len();
    let mut first = database.connect();
    let first_id = register(&mut first);
    register(&mut database.connect());
    // Its session ends a moment after its client.
    crate::support::wait_until(&database, "only those with a session are left", SOON, || {
        let mut second = database.connect();
        let id = register(&mut second);
        let n = n_workers(&mut second);
        second.execute("SELECT millhand.leave($1)", &[&id]).unwrap();
        if n == 2 { Ok(()) } else { Err(n) }
    });
    assert_eq!(n_workers(&mut first), 1);
    first.execute("SELECT millhand.leave($1)", &[&first_id]).unwrap();
    assert_eq!(n_workers(&mut first), 0);
}

#[test]
fn rows_are_renewed_however_seldom_a_process_polls() {
    for worker_type in WORKER_TYPES {
        let database = Database::new();
        let workshop = Workshop::new(&database, "");
        let mut command = workshop.millhand(["worker", "--type", worker_type]);
        command.env("MILLHAND_TTL", "1s").env("MILLHAND_POLL_INTERVAL", "1h");
        let worker = WorkerProcess::start(command);
        let mut connection = database.connect();
        let mut heartbeats = BTreeSet::new();
        wait_until(&database, "it renews its row again and again", SOON, || {
            let workers = millhand::fleet::workers(&mut connection).unwrap();
            heartbeats.extend(workers.iter().map(|worker| (worker.id, worker.last_heartbeat)));
            if heartbeats.len() > 8 { Ok(()) } else { Err(heartbeats.len()) }
        });
        let ids: BTreeSet<i64> = heartbeats.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), 1, "it was never taken for missing: {}", worker.stderr());
        worker.stop(Signal::TERM);
        assert_clean(&database, &workshop);
    }
}
