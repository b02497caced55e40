//! How many tasks have been started, asked for many times a second.

use millhand::{Error, fleet};
use postgres::Client;

/// Counts the tasks that have been started, by the fencing tokens: one is drawn at each
/// start, and to read the last costs nothing, however many tasks there are.
///
/// Workers draw some, too, to rehearse before they come online. Until all are, the rows are
/// counted instead. (Starts that are under way at that moment are missing from then on,
/// until `set` makes up for them.)
pub(super) struct Starts {
    n_workers: usize,
    /// Tokens that were not drawn for what is in the table.
    n_others: Option<i64>,
}

impl Starts {
    /// Of a fleet of so many workers, which may not be online yet.
    pub(super) fn new(n_workers: usize) -> Starts {
        Starts { n_workers, n_others: None }
    }

    /// So many have been started, and none is being started.
    pub(super) fn set(&mut self, n: usize, client: &mut Client) -> Result<(), Error> {
        if let Some(n_others) = &mut self.n_others {
            *n_others = n_tokens(client)? - n as i64;
        }
        Ok(())
    }

    /// How many have been started so far.
    pub(super) fn count(&mut self, client: &mut Client) -> Result<usize, Error> {
        let n_others = match self.n_others {
            Some(n_others) => n_others,
            None => {
                let are_online = fleet::workers(client)?.len() >= self.n_workers;
                let n_tokens = n_tokens(client)?;
                let n_begun = count(client, include_str!("../../../sql/bench/n_begun.sql"))?;
                if !are_online {
                    return Ok(n_begun as usize);
                }
                *self.n_others.insert(n_tokens - n_begun)
            }
        };
        Ok((n_tokens(client)? - n_others) as usize)
    }
}

fn n_tokens(client: &mut Client) -> Result<i64, Error> {
    count(client, include_str!("../../../sql/bench/n_tokens.sql"))
}

fn count(client: &mut Client, query: &str) -> Result<i64, Error> {
    let row = client
        .query_one(query, &[])
        .map_err(|error| Error::postgres("could not count what was started", error))?;
    Ok(row.get("n"))
}
