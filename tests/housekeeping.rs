//! The safety poll: what looks may leave out.

use millhand::{NewTask, client};
use postgres::Client;

use crate::support::SOON;
use crate::support::database::Database;

/// The safety poll as one process makes it, from one to the next.
#[derive(Default)]
struct Poll {
    low: i64,
    mark: Option<i64>,
    mark_xid: Option<i64>,
}

impl Poll {
    fn poll(&mut self, connection: &mut Client) -> i64 {
        let row = connection
            .query_one(
                "SELECT low, mark, mark_xid FROM millhand.poll('p', $1, $2, $3)",
                &[&self.low, &self.mark, &self.mark_xid],
            )
            .unwrap();
        *self = Poll { low: row.get(0), mark: row.get(1), mark_xid: row.get(2) };
        self.low
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

/// A registration whose answer was lost with its connection.
#[test]
fn a_row_that_no_worker_knows_of_is_forgotten() {
    let database = Database::new();
    let register = |connection: &mut Client| -> i64 {
        let sql =
            "SELECT millhand.register_worker('w', 'postgres', 'p', 'h', 1, '30 s', NULL, NULL)";
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
