//! Tells workers of type `redis`, after the commit, what was done to the table.
//!
//! Workers of type `postgres` are told by the database, at the commit itself. Those
//! of type `redis` do not listen there: they learn of a task that was dispatched, or
//! canceled, from a message through Redis, or from their own look at the table each
//! `poll_interval` (a second by default). So no message is needed, and one that is
//! sent too early or gets lost does no harm.

use std::sync::Arc;

use postgres::GenericClient;

use crate::config::Config;
use crate::error::Error;
use crate::lock_store::{Link, LockStore};
use crate::task::TaskId;

/// A connection to the Redis through which workers hear.
///
/// ```no_run
/// # let config = millhand::Config::load(None)?;
/// # let mut client = millhand::db::connect(config.database_url()?, "example")?;
/// let mut waker = millhand::Waker::new(&config)?;
/// let mut transaction = client.transaction().unwrap();
/// millhand::dispatch(&mut transaction, &millhand::NewTask::new("publish"))?;
/// transaction.commit().unwrap();
/// waker.wake()?;
/// # Ok::<(), millhand::Error>(())
/// ```
pub struct Waker {
    link: Link,
}

impl Waker {
    /// For the Redis that the settings name. Connects when it is used first, and
    /// again when the connection was lost.
    pub fn new(config: &Config) -> Result<Waker, Error> {
        Ok(Waker { link: Link::new(Arc::new(LockStore::new(config)?)) })
    }

    /// The same, if the workers of this database hear through Redis and the settings
    /// name one.
    pub fn for_fleet(
        config: &Config,
        client: &mut impl GenericClient,
    ) -> Result<Option<Waker>, Error> {
        if config.redis_url.is_none() {
            return Ok(None);
        }
        let row = client
            .query_typed_one(include_str!("../sql/queries/hears_redis.sql"), &[])
            .map_err(|error| Error::postgres("could not look for workers", error))?;
        if row.get(0) { Waker::new(config).map(Some) } else { Ok(None) }
    }

    /// There are tasks that were not there before: idle workers look.
    pub fn wake(&mut self) -> Result<(), Error> {
        self.link.wake()
    }

    /// This task was canceled: its worker looks at it.
    pub fn cancel(&mut self, id: TaskId) -> Result<(), Error> {
        self.link.cancel(id)
    }
}
