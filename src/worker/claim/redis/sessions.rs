//! The pool of sessions that the workers of a process share: with their statements
//! prepared, and for no longer than a statement takes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::{Client, Statement};
use r2d2::{ManageConnection, NopErrorHandler, PooledConnection};

use crate::db;
use crate::error::{self, Error};

/// How long a thread waits for a session before it reports that there is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long a session is taken to be there still.
const MOMENT: Duration = Duration::from_millis(100);

pub(super) struct Sessions {
    pool: r2d2::Pool<Manager>,
    doing: String,
    failure: Arc<Mutex<Option<Error>>>,
}

pub(super) struct Session {
    used_at: Instant,
    /// Whether the server said that it is read-only.
    is_read_only: bool,
    pub(super) client: Client,
    pub(super) look: Statement,
    pub(super) joint_turn: Statement,
}

impl Sessions {
    /// At most `size`, opened as needed. They bear the name of the process: whoever
    /// settles its workers ends a session that is in the midst of something for them
    /// (settle_worker).
    pub(super) fn new(url: &str, size: u32, process: &str) -> Result<Sessions, Error> {
        let purpose = format!("millhand worker {process}");
        let doing = db::Connector::new(url, &purpose)?.doing().to_owned();
        let failure = Arc::new(Mutex::new(None));
        let manager = Manager {
            url: url.to_owned(),
            purpose,
            doing: doing.clone(),
            failure: failure.clone(),
        };
        let build = || {
            let pool = r2d2::Pool::builder()
                .max_size(size)
                .min_idle(Some(0))
                .connection_timeout(PATIENCE)
                // Most turns begin with a look, which changes nothing and shows as well
                // whether the session is alive.
                .test_on_check_out(false)
                // Whoever asks in vain says so.
                .error_handler(Box::new(NopErrorHandler))
                .build_unchecked(manager);
            Ok(pool)
        };
        // It starts threads, and panics where there is none left.
        let pool = error::guard("could not make a pool of sessions", build)?;
        Ok(Sessions { pool, doing, failure })
    }

    /// One that may have been cut while nobody used it.
    pub(super) fn get(&self) -> Result<PooledConnection<Manager>, Error> {
        self.pool.get().map_err(|error| match lock(&self.failure).as_ref() {
            Some(failure) => failure.copy(),
            None => Error::Unavailable { doing: self.doing.clone(), source: error.into() },
        })
    }

    /// One that has just answered.
    pub(super) fn get_checked(&self) -> Result<PooledConnection<Manager>, Error> {
        // All that are in the pool may have been cut; one more is new.
        let mut n_left = self.pool.max_size();
        loop {
            let mut session = self.get()?;
            match session.client.is_valid(PATIENCE) {
                Ok(()) => return Ok(session),
                Err(error) if n_left == 0 => return Err(Error::postgres(&self.doing, error)),
                Err(_) => n_left -= 1,
            }
        }
    }
}

impl Session {
    /// What the server has just refused may say that another session is needed.
    pub(super) fn note(&mut self, error: &postgres::Error) {
        self.is_read_only = error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
    }

    /// Makes sure that it is there still, unless it was in use a moment ago.
    pub(super) fn check(&mut self) -> Result<(), postgres::Error> {
        if self.used_at.elapsed() > MOMENT {
            self.client.simple_query("")?;
        }
        self.used_at = Instant::now();
        Ok(())
    }
}

pub(super) struct Manager {
    url: String,
    purpose: String,
    doing: String,
    /// Why the last attempt failed, if it did: the pool keeps no more of it than text.
    failure: Arc<Mutex<Option<Error>>>,
}

impl Manager {
    fn open(&self) -> Result<Session, Error> {
        // The pool never makes good for an attempt that panicked.
        let mut client = db::connect_for_long(&self.url, &self.purpose)?;
        let mut prepare = |sql| client.prepare(sql).map_err(|e| Error::postgres(&self.doing, e));
        Ok(Session {
            used_at: Instant::now(),
            is_read_only: false,
            look: prepare(include_str!("../../../../sql/queries/look.sql"))?,
            joint_turn: prepare(include_str!("../../../../sql/queries/joint_turn.sql"))?,
            client,
        })
    }
}

impl ManageConnection for Manager {
    type Connection = Session;
    type Error = Error;

    fn connect(&self) -> Result<Session, Error> {
        let opened = self.open();
        *lock(&self.failure) = opened.as_ref().err().map(Error::copy);
        opened
    }

    fn is_valid(&self, session: &mut Session) -> Result<(), Error> {
        let answer = session.client.simple_query("");
        answer.map(drop).map_err(|error| Error::postgres(&self.doing, error))
    }

    fn has_broken(&self, session: &mut Session) -> bool {
        // A primary that was demoted takes nothing any more: the next connection may
        // find its successor.
        session.is_read_only || session.client.is_closed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
