//! What a call holds while it is served or waits; both give back what they are when dropped.
//! Must never be copied.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::time::Instant;

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

/// A call that waits for a slot; dropping it leaves the line.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(super) function: Arc<Function>,
    pub(super) ticket: u64,
    pub(super) granted: oneshot::Receiver<Result<Slot, Reject>>,
    pub(super) in_line: bool,
}

impl Waiter {
    /// Waits for a slot until the deadline.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Result<Slot, Reject> {
        match tokio::time::timeout_at(deadline, &mut self.granted).await {
            Ok(Ok(outcome)) => {
                self.in_line = false;
                outcome
            }
            Ok(Err(_)) => Err(Reject::new(503, "unavailable", "the gateway is stopping")),
            Err(_) => {
                let message = format!("no worker of {} became free in time", self.function.key);
                Err(Reject::new(504, "queue_timeout", message))
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.in_line {
            self.function.leave(self.ticket);
        }
    }
}
