//! The pool of sessions that the workers of a process share: with their statements
//! prepared, and for no longer than a statement takes.

use std::time::{Duration, Instant};

use postgres::{Client, NoTls, Statement};
use r2d2::{ManageConnection, NopErrorHandler, PooledConnection};
use r2d2_postgres::PostgresConnectionManager;

use crate::db;
use crate::error::Error;

/// How long a thread waits for a session before it reports that there is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a session is taken to be there still.
const MOMENT: Duration = Duration::from_millis(100);

pub(super) struct Sessions {
    pool: r2d2::Pool<Manager>,
    place: String,
}

pub(super) struct Session {
    used_at: Instant,
    pub(super) client: Client,
    pub(super) look: Statement,
    pub(super) joint_turn: Statement,
}

impl Sessions {
    /// At most `size`, opened as needed. They bear the name of the process: whoever
    /// settles its workers ends a session that is in the midst of something for them
    /// (settle_worker).
    pub(super) fn new(url: &str, size: u32, process: &str) -> Result<Sessions, Error> {
        let parameters = db::parameters(url, &format!("millhand worker {process}"))?;
        let pool = r2d2::Pool::builder()
            .max_size(size)
            .min_idle(Some(0))
            .connection_timeout(PATIENCE)
            // Most turns begin with a look, which changes nothing and shows as well
            // whether the session is alive.
            .test_on_check_out(false)
            // Whoever asks in vain says so.
            .error_handler(Box::new(NopErrorHandler))
            .build_unchecked(Manager(PostgresConnectionManager::new(parameters, NoTls)));
        Ok(Sessions { pool, place: db::place(url) })
    }

    /// One that may have been cut while nobody used it.
    pub(super) fn get(&self) -> Result<PooledConnection<Manager>, Error> {
        self.pool.get().map_err(|error| self.unavailable(error))
    }

    fn unavailable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Unavailable {
            doing: format!("could not connect to Postgres at {}", self.place),
            source: error.into(),
        }
    }

    /// One that has just answered.
    pub(super) fn get_checked(&self) -> Result<PooledConnection<Manager>, Error> {
        // All that are in the pool may have been cut; one more is new.
        let mut n_left = self.pool.max_size();
        loop {
            let mut session = self.get()?;
            match session.client.is_valid(PATIENCE) {
                Ok(()) => return Ok(session),
                Err(error) if n_left == 0 => return Err(self.unavailable(error)),
                Err(_) => n_left -= 1,
            }
        }
    }
}

impl Session {
    /// Makes sure that it is there still, unless it was in use a moment ago.
    pub(super) fn check(&mut self) -> Result<(), postgres::Error> {
        if self.used_at.elapsed() > MOMENT {
            self.client.simple_query("")?;
        }
        self.used_at = Instant::now();
        Ok(())
    }
}

pub(super) struct Manager(PostgresConnectionManager<NoTls>);

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = postgres::Error;

    fn connect(&self) -> Result<Session, postgres::Error> {
        let mut client = self.0.connect()?;
        client.batch_execute(include_str!("../../../../sql/queries/worker_session.sql"))?;
        Ok(Session {
            used_at: Instant::now(),
            look: client.prepare(include_str!("../../../../sql/queries/look.sql"))?,
            joint_turn: client.prepare(include_str!("../../../../sql/queries/joint_turn.sql"))?,
            client,
        })
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), postgres::Error> {
        self.0.is_valid(&mut session.client)
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        self.0.has_broken(&mut session.client)
    }
}
