//! A worker without a process: the test takes its turns, with the program's own
//! statements.

use postgres::{Client, Error, Row};

use super::database::Database;

pub(crate) struct Session {
    pub(crate) connection: Client,
    worker: i64,
    name: String,
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
    pub(crate) inconclusive: bool,
    pub(crate) bell_hung: bool,
}

impl Session {
    /// A worker of this name, which is that of its process, too.
    pub(crate) fn new(database: &Database, name: &str) -> Session {
        let mut connection = database.connect();
        connection.batch_execute(include_str!("../../sql/queries/worker_session.sql")).unwrap();
        let hour = 3600.0_f64;
        let worker = connection
            .query_one(
                include_str!("../../sql/queries/register_worker.sql"),
                &[
                    &name,
                    &"postgres",
                    &name,
                    &"h",
                    &1_i32,
                    &hour,
                    &None::<&str>,
                    &None::<i64>,
                    &None::<i64>,
                ],
            )
            .unwrap()
            .get(0);
        Session { connection, worker, name: name.to_owned() }
    }

    /// Takes a turn and wants another task.
    pub(crate) fn turn(&mut self, turn: &Turn<'_>) -> Result<Found, Error> {
        let row = self.connection.query_one(
            include_str!("../../sql/queries/next_task.sql"),
            &[
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
                &true,
                &turn.idle_siblings,
                &turn.take_bell_down,
                &turn.hang_bell,
            ],
        )?;
        let flag = |row: &Row, name: &str| row.get::<_, Option<bool>>(name).unwrap_or(false);
        assert_ne!(row.get::<_, Option<bool>>("owned"), Some(false), "its task was taken away");
        Ok(Found {
            task: row.get("task_id"),
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
