//! A lease on its way to its caller, and a caller on its way to a lease.
//! Neither must ever leave something behind when the caller goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::panicking;

use scheduler_core::messages::Grant;
use scheduler_core::queue::TicketId;
use tokio::sync::oneshot;

use crate::desk::Desk;
use crate::refused::Refused;

/// A granted lease; given back when the last one who was to get it goes without.
pub(crate) struct Held {
    pub(crate) grant: Grant,
    desk: Arc<Desk>,
    settled: AtomicBool,
}

impl Held {
    pub(crate) fn new(desk: Arc<Desk>, grant: Grant) -> Arc<Held> {
        let settled = AtomicBool::new(false);
        Arc::new(Held {
            grant,
            desk,
            settled,
        })
    }

    /// A caller has it now, or it was given back.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // While a panic unwinds this thread may hold the locks, and the core is lost anyway.
        if !self.settled.load(Ordering::Acquire) && !panicking() {
            self.desk.give_back(self.grant.lease.0, true);
        }
    }
}

pub(crate) type Answer = Result<Arc<Held>, Refused>;

/// A caller's place in the queue; given up when it is dropped.
pub(crate) struct Waiting {
    pub(crate) desk: Arc<Desk>,
    pub(crate) ticket: TicketId,
    pub(crate) number: u64,
    pub(crate) answer: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// Slots, or why there are none.
    pub(crate) async fn answered(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        // Nobody is forgotten while the desk lives: an end without an answer is the end of it.
        answer.unwrap_or_else(|_| Err(Refused::stopping()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !panicking() {
            self.desk.leave(self.ticket, self.number);
        }
    }
}
