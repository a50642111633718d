//! What the request handler and the socket of one connection tell each other.
//! Must never hold anything that belongs to one request only.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use crate::framing::Refusal;

/// What the request handler and the socket of one connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Link {
    refusal: Mutex<Option<Refusal>>,
    busy: AtomicBool,
    watched: AtomicBool,
    upgrade: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

const UNDECIDED: u8 = 0;
pub(crate) const TUNNEL: u8 = 1;
pub(crate) const ORDINARY: u8 = 2;

impl Link {
    /// The refusal that the request being handled stands for, if it is a substitute.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether an upgrade request was accepted: what follows is a tunnel, or one more request.
    pub(crate) fn decide_upgrade(&self, accepted: bool) {
        self.upgrade
            .store(if accepted { TUNNEL } else { ORDINARY }, Ordering::Release);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Marks that a request is being answered, or that its answer has ended.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Release);
    }

    /// Asks to look for the end of the connection although nobody reads from it, or not any more.
    pub(crate) fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Release);
    }

    /// Whether the end of the connection is to be looked for.
    pub(crate) fn watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    pub(crate) fn busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Notes whether the request that is delivered next asks for an upgrade.
    pub(crate) fn expect_upgrade(&self, wanted: bool) {
        self.upgrade
            .store(if wanted { UNDECIDED } else { ORDINARY }, Ordering::Release);
    }

    /// Whether the request being handled asks for an upgrade.
    pub(crate) fn wants_upgrade(&self) -> bool {
        self.upgrade.load(Ordering::Acquire) == UNDECIDED
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }

    pub(crate) fn upgrade_state(&self, waker: &Waker) -> u8 {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        self.upgrade.load(Ordering::Acquire)
    }
}
