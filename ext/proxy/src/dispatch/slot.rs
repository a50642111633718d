//! What a call holds while it is served or waits; both give back what they are when dropped.
//! Must never be copied.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Function, Worker};
use crate::reply::Reject;
use crate::stats::Start;

/// The answer to a call that wants in.
pub(crate) enum Admission {
    Slot(Slot),
    Wait(Waiter),
    Refused(Reject),
}

/// The right to one call on one worker; dropping it gives the slot to whoever waits longest.
#[derive(Debug)]
pub(crate) struct Slot {
    pub function: Arc<Function>,
    pub worker: Arc<Worker>,
    pub start: Start,
    pub(super) armed: bool,
}

impl Slot {
    /// Drops the slot without giving it back: the caller has done so.
    pub(super) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.armed {
            self.function.release(self.worker.lease_id);
        }
    }
}

/// Where a call stands in the line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Calls before it.
    pub position: usize,
    pub workers: usize,
    /// How long calls that had to wait for a start have waited, when there were any.
    pub expected: Option<Duration>,
}

/// A call that waits for a slot; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) function: Arc<Function>,
    pub(super) ticket: u64,
    pub(super) granted: oneshot::Receiver<Result<Slot, Reject>>,
    pub(super) in_line: bool,
}

impl Waiter {
    /// The slot, or why there will be none.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Slot, Reject>> {
        let stopping = |_| Err(Reject::new(503, "unavailable", "the gateway is stopping"));
        let outcome = ready!(Pin::new(&mut self.granted).poll(cx));
        self.in_line = outcome.is_err();
        Poll::Ready(outcome.unwrap_or_else(stopping))
    }

    pub(crate) fn place(&self) -> Place {
        self.function.place(self.ticket)
    }

    /// The call will leave in a moment and should be able to say why.
    pub(crate) fn ask_why(&self) {
        self.function.ask_why();
    }

    /// The error of a call that waited for too long.
    pub(crate) fn too_late(&self) -> Reject {
        let mut message = format!("no worker of {} became free in time", self.function.key);
        if let Some(why) = self.function.why_waiting() {
            message = format!("{message}; the last one asked for: {why}");
        }
        Reject::new(504, "queue_timeout", message)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.in_line {
            self.function.leave(self.ticket);
        }
    }
}
