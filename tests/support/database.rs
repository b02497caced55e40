//! One private Postgres for a test binary, one database for a test.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};

use millhand::client::TaskFilter;
use millhand::server::{PostgresOptions, PrivatePostgres};
use millhand::{NewTask, Task, TaskId, TaskState, client, db, fleet, migrate};
use postgres::Client;

/// Ends with the test binary, by whatever means that ends.
static SERVER: LazyLock<PrivatePostgres> = LazyLock::new(|| {
    let server = start_server();
    // Nobody stops it hard, and databases come and go twice as fast.
    let mut admin = db::connect(&server.url(), "test").unwrap();
    admin.execute("ALTER SYSTEM SET fsync = off", &[]).unwrap();
    admin.execute("SELECT pg_reload_conf()", &[]).unwrap();
    server
});

/// Made once for the shared server.
static TEMPLATE: LazyLock<()> = LazyLock::new(|| make_template(&SERVER.url()));

/// CREATE DATABASE wants the template for itself.
static CREATING: Mutex<()> = Mutex::new(());

static N_DATABASES: AtomicU32 = AtomicU32::new(0);

const TEMPLATE_NAME: &str = "template_migrated";

/// A private server of its own, for tests that stop it.
pub(crate) fn start_server() -> PrivatePostgres {
    PrivatePostgres::start(&PostgresOptions { max_connections: 400, ..PostgresOptions::default() })
        .unwrap_or_else(|error| panic!("{}", millhand::error::chain(&error)))
}

/// The same server, another database.
pub(crate) fn url_of(server_url: &str, database: &str) -> String {
    server_url.replace("/millhand?", &format!("/{database}?"))
}

/// How many tasks are parked.
pub(crate) fn count_parked(connection: &mut Client) -> i64 {
    connection.query_one("SELECT count(DISTINCT task_id) FROM millhand.parked", &[]).unwrap().get(0)
}

fn make_template(server_url: &str) {
    let mut admin = db::connect(server_url, "test").unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {TEMPLATE_NAME}")).unwrap();
    let mut template = db::connect(&url_of(server_url, TEMPLATE_NAME), "test").unwrap();
    migrate::migrate(&mut template).unwrap();
}

/// A database that is dropped with this value.
#[derive(Debug)]
pub(crate) struct Database {
    server_url: String,
    name: String,
    dropped: bool,
}

impl Database {
    /// With the newest schema; ids start at a random number, so that nobody
    /// takes one kind of id for another.
    pub(crate) fn new() -> Database {
        LazyLock::force(&TEMPLATE);
        let database = Database::create(&SERVER.url(), TEMPLATE_NAME);
        let start = 1000 + super::random() % 1_000_000;
        database
            .connect()
            .batch_execute(&format!(
                "ALTER TABLE millhand.task ALTER COLUMN id RESTART WITH {start};
                 ALTER TABLE millhand.worker ALTER COLUMN id RESTART WITH {}",
                start * 3
            ))
            .unwrap();
        database
    }

    /// Without any schema.
    pub(crate) fn empty() -> Database {
        Database::create(&SERVER.url(), "template1")
    }

    /// The same, and its text is of this encoding.
    pub(crate) fn of_encoding(encoding: &str) -> Database {
        let template = format!("template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
        Database::create(&SERVER.url(), &template)
    }

    /// The one of a server of its own, migrated; it goes with the server.
    pub(crate) fn of(server: &PrivatePostgres) -> Database {
        let database =
            Database { server_url: server.url(), name: "millhand".to_owned(), dropped: true };
        migrate::migrate(&mut database.connect()).unwrap();
        database
    }

    /// The one behind a URL that is more than a server's, as it is.
    pub(crate) fn behind(url: String) -> Database {
        Database { server_url: url, name: "millhand".to_owned(), dropped: true }
    }

    fn create(server_url: &str, template: &str) -> Database {
        let _guard = CREATING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = format!("test_{}", N_DATABASES.fetch_add(1, Ordering::Relaxed));
        db::connect(server_url, "test")
            .unwrap()
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}"))
            .unwrap();
        Database { server_url: server_url.to_owned(), name, dropped: false }
    }

    pub(crate) fn url(&self) -> String {
        url_of(&self.server_url, &self.name)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn connect(&self) -> Client {
        db::connect(&self.url(), "test").unwrap()
    }

    pub(crate) fn dispatch(&self, task: &NewTask) -> TaskId {
        client::dispatch(&mut self.connect(), task).unwrap()
    }

    /// All tasks, in the order of their ids.
    pub(crate) fn tasks(&self) -> Vec<Task> {
        let all = TaskFilter { oldest_first: true, limit: u32::MAX, ..TaskFilter::default() };
        client::list_tasks(&mut self.connect(), &all).unwrap()
    }

    pub(crate) fn task(&self, id: TaskId) -> Task {
        client::get_task(&mut self.connect(), id).unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_for_state(&self, id: TaskId, state: TaskState) -> Task {
        let mut connection = self.connect();
        super::wait_until(self, &format!("task {id} {state}"), super::SOON, || {
            let task = client::get_task(&mut connection, id).unwrap();
            if task.state == state { Ok(task) } else { Err((task.state, task.error)) }
        })
    }

    #[track_caller]
    pub(crate) fn wait_for_all_final(&self) {
        let mut connection = self.connect();
        super::wait_until(self, "all tasks final", super::SOON, || {
            let n: i64 = connection
                .query_one(
                    "SELECT count(*) FROM millhand.task
                      WHERE state NOT IN ('completed', 'failed', 'canceled')",
                    &[],
                )
                .unwrap()
                .get(0);
            if n == 0 { Ok(()) } else { Err(n) }
        });
    }

    /// The ids of the workers that are registered.
    pub(crate) fn worker_ids(&self) -> BTreeSet<i64> {
        let workers = fleet::workers(&mut self.connect()).unwrap();
        workers.iter().map(|worker| worker.id).collect()
    }

    /// The same, once there are this many.
    #[track_caller]
    pub(crate) fn wait_for_workers(&self, n: usize) -> BTreeSet<i64> {
        super::wait_until(self, &format!("{n} workers are registered"), super::SOON, || {
            let ids = self.worker_ids();
            if ids.len() == n { Ok(ids) } else { Err(ids) }
        })
    }

    /// Cuts the sessions on this database of which the condition on
    /// `pg_stat_activity` holds, and returns how many there were.
    pub(crate) fn terminate(&self, condition: &str) -> i64 {
        self.connect()
            .query_one(
                &format!(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()
                        AND {condition}"
                ),
                &[],
            )
            .unwrap()
            .get(0)
    }

    /// For the messages of tests that fail.
    pub(crate) fn task_table(&self) -> String {
        let Ok(mut connection) = db::connect(&self.url(), "test") else {
            return "(no connection for the task table)".to_owned();
        };
        let newest = TaskFilter { limit: 100, ..TaskFilter::default() };
        let tasks = client::list_tasks(&mut connection, &newest).unwrap_or_default();
        let mut text = String::new();
        for task in tasks.iter().rev() {
            text.push_str(&format!(
                "{} {} {} position {:?} exclusive {:?} shared {:?} attempt {} worker {:?} \
                 created {} started {:?} finished {:?} error {:?}\n",
                task.id,
                task.name,
                task.state,
                task.position,
                task.exclusive,
                task.shared,
                task.attempt,
                task.worker,
                task.created_at,
                task.started_at,
                task.finished_at,
                task.error
            ));
        }
        text
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !self.dropped
            && let Ok(mut admin) = db::connect(&self.server_url, "test")
        {
            let _ = admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// How far the tasks of a database have come: it changes with each start and each end.
pub(crate) fn progress(url: &str) -> String {
    let said = db::connect(url, "test").ok().and_then(|mut connection| {
        let sql = "SELECT format('%s %s %s', count(*), count(finished_at), max(fence))
                     FROM millhand.task";
        connection.query_one(sql, &[]).ok().map(|row| row.get(0))
    });
    said.unwrap_or_default()
}
