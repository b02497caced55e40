//! What other threads tell a worker thread, wherever it is: waiting for work,
//! in a handler that is a function, or watching a command.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::claim::Claims;
use super::lease::Lease;
use crate::task::TaskId;

/// Everything that can make a worker thread act, besides its own task's end.
/// Closed on purpose: to see what drives a worker, read this enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// There may be work.
    Wakeup,
    /// Somebody asked to cancel this task.
    Cancel(TaskId),
    /// Take nothing new.
    Drain,
    /// End the running task by force.
    Abort,
    /// The claim may be gone: look.
    Verify,
    /// The lease is over, which says so itself: stop the task, write nothing.
    Lost,
}

/// The sending side; one for each worker thread, cloned freely.
#[derive(Clone)]
pub(crate) struct Mailbox {
    sender: Sender<Event>,
    // The thread sleeps in poll(2), which a channel cannot end.
    bell: Arc<OwnedFd>,
}

impl Mailbox {
    /// Delivers the event; to a thread that has ended, nothing happens.
    pub(crate) fn send(&self, event: Event) {
        if self.sender.send(event).is_ok() {
            // It can only fail when the counter is full, and then poll ends anyway.
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// The receiving side, owned by the worker thread.
pub(crate) struct Inbox {
    receiver: Receiver<Event>,
    bell: Arc<OwnedFd>,
    notes: RefCell<Notes>,
}

/// What the thread was told and has not acted on yet.
#[derive(Default)]
struct Notes {
    drain: bool,
    abort: bool,
    verify: bool,
    canceled: Vec<TaskId>,
    lease: Option<Arc<Lease>>,
    /// Whether something was noted by a look at something else: who asked whether the
    /// claim is lost may have asked about a shutdown before. Whoever waits then has to
    /// look once more first.
    unseen: bool,
}

impl Notes {
    fn is_lost(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.is_over())
    }
}

impl Inbox {
    pub(crate) fn new() -> std::io::Result<(Mailbox, Inbox)> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
        let bell = Arc::new(rustix::event::eventfd(0, flags)?);
        let mailbox = Mailbox { sender, bell: bell.clone() };
        Ok((mailbox, Inbox { receiver, bell, notes: RefCell::default() }))
    }

    /// Starts afresh under a new worker id. What was said about shutdown stays.
    pub(crate) fn begin_session(&self, lease: Arc<Lease>) {
        let mut notes = self.notes.borrow_mut();
        notes.lease = Some(lease);
        notes.verify = false;
        notes.canceled.clear();
    }

    /// Whether nothing new may be taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain();
        self.notes.borrow().drain
    }

    /// Whether running tasks are to be ended by force.
    pub(crate) fn is_aborting(&self) -> bool {
        self.drain();
        self.notes.borrow().abort
    }

    /// Whether the claim is gone.
    pub(crate) fn is_lost(&self) -> bool {
        self.drain();
        self.notes.borrow().is_lost()
    }

    /// Whether somebody asked to cancel this task.
    pub(crate) fn is_canceled(&self, id: TaskId) -> bool {
        self.drain();
        self.notes.borrow().canceled.contains(&id)
    }

    /// Whether the running task has to end, for whatever reason. Looks at the
    /// claim if somebody doubts it.
    pub(crate) fn must_end(&self, id: TaskId, claims: &mut dyn Claims) -> bool {
        self.verify(claims);
        let notes = self.notes.borrow();
        notes.abort || notes.is_lost() || notes.canceled.contains(&id)
    }

    /// Looks at the claim if somebody doubts it.
    pub(crate) fn verify(&self, claims: &mut dyn Claims) {
        self.drain();
        let mut notes = self.notes.borrow_mut();
        if std::mem::take(&mut notes.verify)
            && !claims.verify()
            && let Some(lease) = &notes.lease
        {
            lease.end();
        }
    }

    /// Waits for any event until `deadline`; false if none came.
    pub(crate) fn wait_until(&self, deadline: Instant) -> bool {
        loop {
            if self.take().is_some() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.sleep(Some(left));
        }
    }

    /// Waits for any event, for ever, and says which one it was.
    pub(crate) fn wait(&self) -> Event {
        loop {
            match self.take() {
                Some(event) => return event,
                None => self.sleep(None),
            }
        }
    }

    fn take(&self) -> Option<Event> {
        let event = match self.receiver.try_recv() {
            Ok(event) => event,
            Err(TryRecvError::Empty) => {
                let unseen = std::mem::take(&mut self.notes.borrow_mut().unseen);
                return unseen.then_some(Event::Wakeup);
            }
            // All senders are gone: nobody is left to work for.
            Err(TryRecvError::Disconnected) => Event::Drain,
        };
        self.note(event);
        self.notes.borrow_mut().unseen = false;
        Some(event)
    }

    /// Waits on the bell, not on the channel: a receiver that has to wait gives up
    /// the processor some ten times before it sleeps, and with many threads that
    /// costs more than the tasks.
    fn sleep(&self, time: Option<Duration>) {
        let time = time.map(|time| Timespec {
            tv_sec: time.as_secs() as i64,
            tv_nsec: i64::from(time.subsec_nanos()),
        });
        let mut fds = [PollFd::new(&*self.bell, PollFlags::IN)];
        // Interrupted, it looks and waits again.
        let _ = rustix::event::poll(&mut fds, time.as_ref());
        self.reset_bell();
    }

    /// Becomes readable when there is an event.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn drain(&self) {
        while let Ok(event) = self.receiver.try_recv() {
            self.note(event);
        }
        // Reset after the channel is empty: an event that slips in between has
        // been sent before its write, so at worst poll ends once for nothing.
        self.reset_bell();
        while let Ok(event) = self.receiver.try_recv() {
            self.note(event);
        }
    }

    /// An event that comes meanwhile is in the channel already.
    fn reset_bell(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0u8; 8]);
    }

    fn note(&self, event: Event) {
        let mut notes = self.notes.borrow_mut();
        notes.unseen |= !matches!(event, Event::Wakeup | Event::Cancel(_));
        match event {
            Event::Wakeup | Event::Lost => {}
            Event::Cancel(id) => notes.canceled.push(id),
            Event::Drain => notes.drain = true,
            Event::Abort => {
                notes.drain = true;
                notes.abort = true;
            }
            Event::Verify => notes.verify = true,
        }
        // Tasks of others come by as well; only the last few can matter here.
        if notes.canceled.len() > 64 {
            notes.canceled.drain(..32);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_on_the_way_ends_the_next_wait() {
        let (mailbox, inbox) = Inbox::new().unwrap();
        assert!(!inbox.is_draining());
        mailbox.send(Event::Drain);
        assert!(!inbox.is_lost());
        assert!(inbox.wait_until(Instant::now()), "the shutdown was missed");
        assert!(inbox.is_draining());
        assert!(!inbox.wait_until(Instant::now()), "told twice");
    }
}
