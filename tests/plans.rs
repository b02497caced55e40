//! What the workers' statements read: not more than what they are about, whatever
//! Postgres' statistics say of the tables.

use millhand::NewTask;
use millhand::client::dispatch_many;
use postgres::Client;
use serde_json::Value;

use crate::support::database::Database;
use crate::support::session::Session;

/// Runs the statement and returns the root of its plan.
fn explain(connection: &mut Client, statement: &str) -> Value {
    let explained = format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}");
    let row = connection.query_one(&explained, &[]).unwrap();
    row.get::<_, Value>(0)[0]["Plan"].clone()
}

/// Pages that were looked at, within functions too.
fn n_pages(plan: &Value) -> u64 {
    let n = |name: &str| plan[name].as_u64().unwrap();
    n("Shared Hit Blocks") + n("Shared Read Blocks")
}

/// Rows that were read in vain, by this node and those below it.
fn n_in_vain(plan: &Value) -> f64 {
    let n = |name: &str| plan[name].as_f64().unwrap_or(0.0);
    let below = plan["Plans"].as_array().into_iter().flatten().map(n_in_vain).sum::<f64>();
    n("Rows Removed by Filter") * n("Actual Loops") + below
}

/// Statistics that know of one long line only, as they are while thousands wait for
/// one task, make the line look like no good way to anything.
#[test]
fn a_look_does_not_walk_along_what_is_parked() {
    let database = Database::new();
    let blocked = NewTask::new("t").shared("long");
    let mut tasks = vec![NewTask::new("t").exclusive("long")];
    tasks.extend(vec![blocked; 2000]);
    tasks.extend((0..1000).map(|number| NewTask::new("t").exclusive(format!("{number}"))));
    let ids = dispatch_many(&mut database.connect(), &tasks).unwrap();
    let mut session = Session::new(&database, "a");
    let connection = &mut session.connection;
    let far: Vec<i64> = ids[101..2001].iter().map(|id| id.0).collect();
    connection.execute("SELECT millhand.park($1, 0, '{}')", &[&far]).unwrap();
    connection.batch_execute("ANALYZE millhand.task, millhand.parked").unwrap();
    let look = include_str!("../sql/queries/look.sql");
    connection
        .batch_execute(&format!("PREPARE look (bigint, bigint[], bigint, text[]) AS {look}"))
        .unwrap();
    let plan = explain(connection, "EXECUTE look (0, '{}', 1000, '{t}')");
    assert_eq!(plan["Actual Rows"].as_f64(), Some(1000.0));
    assert!(n_in_vain(&plan) < 1000.0, "{plan:#}");
}

/// A table that was small when it was analyzed, and has grown since, makes it look
/// cheap to read all of it.
#[test]
fn a_turn_reads_its_own_tasks_only() {
    let database = Database::new();
    let mut connection = database.connect();
    let tasks = |n: usize| -> Vec<NewTask> {
        (0..n).map(|number| NewTask::new("t").exclusive(format!("{number}"))).collect()
    };
    let ids = dispatch_many(&mut connection, &tasks(100)).unwrap();
    connection.batch_execute("VACUUM ANALYZE millhand.task").unwrap();
    let mut session = Session::new(&database, "a");
    let worker = session.worker;
    let (first, second, third) = (ids[0], ids[1], ids[2]);
    let start = format!(
        "SELECT * FROM millhand.joint_turn('{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}',
                                           '{{{first},{second}}}', '{{{worker},{worker}}}')"
    );
    let end = format!(
        "SELECT * FROM millhand.joint_turn('{{{first},{second}}}', '{{{worker},{worker}}}',
             '{{completed,completed}}', '{{null,null}}', '{{null,null}}', '{{null,null}}',
             '{{{third}}}', '{{{worker}}}')"
    );
    // The plans are made now, and kept.
    for statement in [&start, &end] {
        let connection = &mut session.connection;
        connection.batch_execute("BEGIN").unwrap();
        explain(connection, statement);
        connection.batch_execute("ROLLBACK").unwrap();
    }
    dispatch_many(&mut connection, &tasks(20_000)).unwrap();
    for statement in [&start, &end] {
        let plan = explain(&mut session.connection, statement);
        // (All of the index is 400 pages and more.)
        assert!(n_pages(&plan) < 200, "{statement}: {plan:#}");
    }
}
