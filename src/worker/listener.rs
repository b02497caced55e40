//! The thread that hears of wake-ups and cancels.
//!
//! They carry nothing that is not in the table. One that is lost, because the
//! connection was down, is made good by the safety poll.

use std::sync::Arc;

use super::{LOOK, Shared};
use crate::error::{self, Error};

/// Listens until the workers have left. What waiting cannot mend is reported.
pub(crate) fn listen(shared: &Arc<Shared>, report: &dyn Fn(Error)) {
    let mut warned = false;
    while !shared.has_ended() {
        let ended = shared.back_end.listen(shared, &mut || {
            if std::mem::take(&mut warned) {
                log::info!("listener: connected again");
            }
            // Whatever was said meanwhile.
            shared.back_end.ring();
        });
        if let Err(error) = ended
            && !std::mem::replace(&mut warned, true)
        {
            if error.is_unavailable() {
                log::warn!("listener: {}; trying again", error::chain(&error));
            } else {
                report(error);
            }
        }
        shared.pause(LOOK);
    }
}
