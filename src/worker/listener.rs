//! The thread that listens on Postgres for wake-ups and cancels.
//!
//! Notifications carry nothing that is not in the table. One that is lost,
//! because the connection was down, is made good by the safety poll.

use std::sync::Arc;
use std::time::Duration;

use fallible_iterator::FallibleIterator;
use postgres::Client;

use super::Shared;
use super::inbox::Event;
use crate::db;
use crate::error::{self, Error};
use crate::task::TaskId;

/// How often the thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);

/// Listens until the workers have left.
pub(crate) fn listen(shared: &Arc<Shared>) {
    let mut warned = false;
    while !shared.has_ended() {
        match connect(shared) {
            Ok(mut client) => {
                if std::mem::take(&mut warned) {
                    log::info!("listener: connected again");
                }
                // Whatever was said meanwhile.
                shared.crew.ring();
                follow(shared, &mut client);
            }
            Err(error) if !warned => {
                warned = true;
                log::warn!("listener: {}; trying again", error::chain(&error));
            }
            Err(_) => {}
        }
        shared.pause(LOOK);
    }
}

fn connect(shared: &Shared) -> Result<Client, Error> {
    let mut client = db::connect(&shared.url, "millhand listener")?;
    client
        .batch_execute("LISTEN millhand_wakeup; LISTEN millhand_cancel")
        .map_err(|error| Error::postgres("could not listen", error))?;
    Ok(client)
}

/// Passes notifications on until the connection ends or the workers have left.
fn follow(shared: &Shared, client: &mut Client) {
    while !shared.has_ended() {
        {
            let mut notifications = client.notifications();
            let mut received = notifications.timeout_iter(LOOK);
            loop {
                match received.next() {
                    Ok(Some(notification)) if notification.channel() == "millhand_cancel" => {
                        if let Ok(id) = notification.payload().parse::<TaskId>() {
                            shared.crew.tell_all(Event::Cancel(id));
                        }
                    }
                    Ok(Some(_)) => shared.crew.ring(),
                    Ok(None) => break,
                    Err(error) => {
                        log::warn!("listener: lost its connection: {}", error::chain(&error));
                        return;
                    }
                }
            }
        }
        if client.is_closed() {
            return;
        }
    }
}
