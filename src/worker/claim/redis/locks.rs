//! The locks of a turn: taken, let go, and mended when the lock store is another one
//! or answers were lost.

use std::collections::HashMap;
use std::sync::Arc;

use postgres::Row;

use super::desk::{Hand, Joint};
use super::find::{Found, read_needs};
use super::sessions::Session;
use super::turn::Leader;
use crate::error::{self, Error};
use crate::lock_store::{Lock, Needs, PassedOn, abandoned};
use crate::task::TaskId;
use crate::worker::claim::BackEnd;

/// How many more tasks are tried than there are workers, in case that others have
/// some of them, before all the rest is.
const SPARE: usize = 4;
/// How often a turn asks for locks while it finds another epoch each time.
const MAX_EPOCHS: usize = 3;

impl Leader<'_> {
    /// Gives up what this owner still holds.
    pub(super) fn forget(&mut self, owner: &str) {
        self.back_end.forget(owner);
        let given_up = if self.back_end.store.is_up() && !self.back_end.wants_audit() {
            self.release();
            // And what it was given in answers that got lost.
            self.link.release_all_of(owner)
        } else {
            // Others may have left before it and relied on an audit, and perhaps no turn
            // is taken here any more that would make one.
            self.release_abandoned(owner)
        };
        if let Err(error) = given_up {
            self.gave_up(&error);
        }
    }

    fn release_abandoned(&mut self, owner: &str) -> Result<(), Error> {
        let (mut gone, others): (Vec<Lock>, Vec<Lock>) =
            self.link.registry()?.into_iter().partition(|lock| lock.owner == owner);
        let mut session = self.back_end.sessions.get_checked()?;
        gone.extend(abandoned(&mut session.client, others)?);
        self.link.release(&gone, None)
    }

    /// There is a task that was not there before.
    pub(super) fn tell_of_work(&mut self) {
        self.back_end.ring();
        self.back_end.wake_others();
        self.release();
    }

    /// Lets go of the locks of what has ended, if no turn has done so.
    pub(super) fn release(&mut self) {
        if !self.back_end.store.is_up() {
            // The audit finds them when it is back.
            return;
        }
        let (locks, wake) = self.back_end.take_released();
        let told_by = wake.then_some(self.shared.identity.process.as_str());
        if let Err(error) = self.link.release(&locks, told_by) {
            self.gave_up(&error);
        }
    }

    /// Locks are not as they should be. If it is the store that failed, nothing can be
    /// started now; the listener finds out when it is back.
    fn gave_up(&self, error: &Error) {
        self.back_end.want_audit();
        if self.back_end.store.is_up() {
            log::warn!("{}; trying again", error::chain(error));
        } else if self.back_end.store.tell() {
            log::warn!("{}; nothing new is started until it is back", error::chain(error));
        }
    }

    /// Gives the locks of what may start to those who are to have it.
    pub(super) fn take_locks<'h>(
        &mut self,
        session: &mut Session,
        joint: &Joint,
        hands: &[&'h Hand],
        found: &Found,
    ) -> Vec<(Lock, &'h Hand)> {
        let audited = match self.back_end.begin_audit() {
            true => self.audit(session),
            false => Ok(()),
        };
        let locked = audited.and_then(|()| match found.free.is_empty() {
            true => Ok(Vec::new()),
            false => self.acquire(session, joint, hands, found),
        });
        let locked = locked.unwrap_or_else(|error| {
            self.gave_up(&error);
            Vec::new()
        });
        let by_owner: HashMap<&str, &Hand> =
            hands.iter().map(|hand| (hand.owner.as_str(), *hand)).collect();
        let given = locked.into_iter().filter_map(|lock| {
            let hand = *by_owner.get(lock.owner.as_str())?;
            self.back_end.hold(lock.clone());
            Some((lock, hand))
        });
        given.collect()
    }

    /// Takes the locks of what may start, for as many workers as there are.
    fn acquire(
        &mut self,
        session: &mut Session,
        joint: &Joint,
        hands: &[&Hand],
        found: &Found,
    ) -> Result<Vec<Lock>, Error> {
        let mut passed_on = PassedOn::default();
        for end in &joint.ends {
            if let Some(held) = self.back_end.held(end.ended.id) {
                passed_on.add(&held);
            }
        }
        let wanted = |place: &usize| {
            let task = &found.window.seen[*place];
            (task.id, task.needs.clone())
        };
        let owners: Vec<&str> = hands.iter().map(|hand| hand.owner.as_str()).collect();
        let mut got = Vec::new();
        let (first, rest) = found.free.split_at(found.free.len().min(owners.len() + SPARE));
        for places in [first, rest] {
            if places.is_empty() || got.len() == owners.len() {
                break;
            }
            let wanted: Vec<(TaskId, Arc<Needs>)> = places.iter().map(wanted).collect();
            let has_none = |owner: &&&str| !got.iter().any(|lock: &Lock| lock.owner == **owner);
            let owners: Vec<&str> = owners.iter().filter(has_none).copied().collect();
            let n_owners = owners.len().min(wanted.len());
            got.extend(self.acquire_in_epoch(session, &owners[..n_owners], &wanted, &passed_on)?);
        }
        Ok(got)
    }

    fn acquire_in_epoch(
        &mut self,
        session: &mut Session,
        owners: &[&str],
        wanted: &[(TaskId, Arc<Needs>)],
        passed_on: &PassedOn,
    ) -> Result<Vec<Lock>, Error> {
        let (mut released, wake) = self.back_end.take_released();
        let mut told_by = wake.then_some(self.shared.identity.process.as_str());
        for _ in 0..MAX_EPOCHS {
            if let Some(got) = self.link.exchange(&released, told_by, owners, wanted, passed_on)? {
                return Ok(got);
            }
            released.clear();
            told_by = None;
            self.adopt_epoch(session)?;
        }
        Ok(Vec::new())
    }

    /// The lock store is another one than this process knew, or has forgotten all:
    /// somebody takes the locks of all that runs anew before anything else starts.
    fn adopt_epoch(&mut self, session: &mut Session) -> Result<(), Error> {
        let Some(stale) = self.link.learn_epoch()? else { return Ok(()) };
        log::info!("taking the locks of running tasks anew in {}", self.back_end.store.place());
        let token = crate::worker::random_token()?;
        let before = owned(session)?;
        self.link.rebuild(&stale, &token, &before)?;
        // What ended in the meantime let go of its locks before they were taken.
        let after = owned(session)?;
        let gone: Vec<Lock> = before.into_iter().filter(|lock| !after.contains(lock)).collect();
        self.link.release(&gone, None)
    }

    /// Lets go of what nobody holds any more: locks whose owner is gone from the
    /// table, and what this process took, or let go, while answers were lost.
    fn audit(&mut self, session: &mut Session) -> Result<(), Error> {
        let registry = self.link.registry()?;
        let (own, others): (Vec<Lock>, Vec<Lock>) =
            registry.into_iter().partition(|lock| self.back_end.is_own(&lock.owner));
        let mut gone: Vec<Lock> = own
            .into_iter()
            .filter(|lock| self.back_end.held(lock.task).is_none_or(|held| held != *lock))
            .collect();
        gone.extend(abandoned(&mut session.client, others)?);
        // Also if nothing is gone: whether scripts can be run shows here.
        self.link.exchange(&gone, None, &[], &[], &PassedOn::default())?;
        Ok(())
    }
}

/// The locks that what runs should have.
fn owned(session: &mut Session) -> Result<Vec<Lock>, Error> {
    let rows = session
        .client
        .query(include_str!("../../../../sql/queries/owned.sql"), &[])
        .map_err(|error| Error::postgres("could not look for running tasks", error))?;
    let lock = |row: &Row| Lock {
        owner: row.get("lock_owner"),
        task: TaskId(row.get("id")),
        needs: read_needs(row),
    };
    Ok(rows.iter().map(lock).collect())
}
