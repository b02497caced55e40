//! A worker without a process: the test takes its turns, with the program's own
//! statements.

use postgres::types::ToSql;
use postgres::{Client, Error, Row};

use super::database::Database;

pub(crate) struct Session {
    pub(crate) connection: Client,
    pub(crate) worker: i64,
    name: String,
    way: Way,
}

/// The worker type, and for `pulpcore` whether it marks what may start.
#[derive(Clone, Copy)]
enum Way {
    Postgres,
    Pulpcore { unblocks: bool },
}

/// A turn as the program would ask for it; by default, of a worker that ended
/// nothing, has the handler `t`, looks everywhere, and is alone.
pub(crate) struct Turn<'a> {
    pub(crate) handlers: &'a [&'a str],
    pub(crate) low: i64,
    pub(crate) stragglers: &'a [i64],
    /// Completed.
    pub(crate) ended: Option<i64>,
    pub(crate) idle_siblings: bool,
    pub(crate) take_bell_down: bool,
    pub(crate) hang_bell: bool,
}

impl Default for Turn<'_> {
    fn default() -> Self {
        Turn {
            handlers: &["t"],
            low: 0,
            stragglers: &[],
            ended: None,
            idle_siblings: false,
            take_bell_down: false,
            hang_bell: false,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) task: Option<i64>,
    pub(crate) more: bool,
    pub(crate) inconclusive: bool,
    pub(crate) bell_hung: bool,
}

impl Session {
    /// A worker of this name, which is that of its process, too.
    pub(crate) fn new(database: &Database, name: &str) -> Session {
        Session::of_type(database, name, Way::Postgres)
    }

    /// The same of type `pulpcore`; an auxiliary one does not unblock.
    pub(crate) fn pulpcore(database: &Database, name: &str, unblocks: bool) -> Session {
        Session::of_type(database, name, Way::Pulpcore { unblocks })
    }

    fn of_type(database: &Database, name: &str, way: Way) -> Session {
        let worker_type = match way {
            Way::Postgres => "postgres",
            Way::Pulpcore { .. } => "pulpcore",
        };
        let mut connection = database.connect();
        connection.batch_execute(include_str!("../../sql/queries/worker_session.sql")).unwrap();
        let hour = 3600.0_f64;
        let worker = connection
            .query_one(
                include_str!("../../sql/queries/add_worker.sql"),
                &[
                    &name,
                    &worker_type,
                    &name,
                    &"h",
                    &1_i32,
                    &hour,
                    &None::<&str>,
                    &None::<i64>,
                    &None::<i64>,
                    &None::<i64>,
                    &None::<&str>,
                    &None::<i32>,
                ],
            )
            .unwrap()
            .get(0);
        Session { connection, worker, name: name.to_owned(), way }
    }

    /// Takes a turn and wants another task.
    pub(crate) fn turn(&mut self, turn: &Turn<'_>) -> Result<Found, Error> {
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![
            &self.worker,
            &self.name,
            &turn.handlers,
            &turn.low,
            &turn.stragglers,
            &turn.ended,
            &"completed",
            &None::<serde_json::Value>,
            &None::<&str>,
            &None::<&str>,
            &None::<i64>,
            &None::<serde_json::Value>,
            &true,
            &turn.idle_siblings,
            &turn.take_bell_down,
            &turn.hang_bell,
        ];
        let statement = match &self.way {
            Way::Postgres => include_str!("../../sql/queries/next_task.sql"),
            Way::Pulpcore { unblocks } => {
                parameters.push(unblocks);
                include_str!("../../sql/queries/unblocked_turn.sql")
            }
        };
        let row = self.connection.query_one(statement, &parameters)?;
        let flag = |row: &Row, name: &str| row.get::<_, Option<bool>>(name).unwrap_or(false);
        assert_ne!(row.get::<_, Option<bool>>("owned"), Some(false), "its task was taken away");
        Ok(Found {
            task: row.get("task_id"),
            more: flag(&row, "more"),
            inconclusive: flag(&row, "inconclusive"),
            bell_hung: flag(&row, "bell_hung"),
        })
    }

    /// Signs off; it must own nothing.
    pub(crate) fn leave(mut self) {
        self.connection
            .execute(include_str!("../../sql/queries/leave.sql"), &[&self.worker])
            .unwrap();
    }
}
