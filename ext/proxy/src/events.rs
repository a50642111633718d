//! What the data plane tells Python: events woken through one eventfd, access records in batches.
//! Must never call Python, and never grow without a limit.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::auth::Credential;
use crate::tally::Tally;
use rustix::event::{EventfdFlags, eventfd};

/// One thing that only Python can act upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `count` more leases are wanted for this revision of a function.
    NeedWorker {
        /// `tenant/namespace/function`.
        function: Arc<str>,
        /// Revision of the function that is wanted.
        revision: i64,
        /// How many leases more.
        count: u32,
    },
    /// A worker rested for the scale-in timeout; it is out of rotation and can be given back.
    WorkerIdle {
        /// `tenant/namespace/function`.
        function: Arc<str>,
        /// Lease under which the worker was added.
        lease_id: u64,
    },
    /// A worker has fewer slots from now on, all calls beyond them having ended.
    WorkerTrimmed {
        /// `tenant/namespace/function`.
        function: Arc<str>,
        /// Lease under which the worker was added.
        lease_id: u64,
        /// Slots that are left of it.
        slots: u32,
    },
    /// A worker could not be reached; it is out of rotation.
    WorkerFailed {
        /// `tenant/namespace/function`.
        function: Arc<str>,
        /// Lease under which the worker was added.
        lease_id: u64,
        /// What was seen.
        reason: String,
    },
    /// Calls of a function will have waited in vain in a moment: why, is to be told.
    WhyWaiting {
        /// `tenant/namespace/function`.
        function: Arc<str>,
    },
    /// A credential came that no verdict is known for.
    NeedVerdict {
        /// Names the credential in the answer.
        digest: [u8; 32],
        /// The credential itself.
        credential: Credential,
    },
}

const RECORD_BYTES_MAX: usize = 8 << 20;

/// Events and records on their way to Python.
#[derive(Debug)]
pub(crate) struct Outbox {
    events: Mutex<Vec<Event>>,
    wake: OwnedFd,
    records: Mutex<Vec<u8>>,
    records_lost: AtomicU64,
    tally: OnceLock<Tally>,
}

impl Outbox {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            events: Mutex::new(Vec::new()),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            records: Mutex::new(Vec::new()),
            records_lost: AtomicU64::new(0),
            tally: OnceLock::new(),
        })
    }

    /// The descriptor that is readable while events wait.
    pub(crate) fn wake_fd(&self) -> RawFd {
        self.wake.as_fd().as_raw_fd()
    }

    pub(crate) fn push(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(event);
        if events.len() == 1 {
            // The counter cannot overflow: it is at most 1 while the queue is not empty.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn take_events(&self) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counter = [0; 8];
        // Nothing to read means nothing was pushed, which an empty list says as well.
        let _ = rustix::io::read(&self.wake, &mut counter);
        std::mem::take(&mut *events)
    }

    /// Appends one record that `encode` writes; counts it as lost when Python does not keep up.
    pub(crate) fn record(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() >= RECORD_BYTES_MAX {
            self.records_lost.fetch_add(1, Ordering::Relaxed);
        } else {
            encode(&mut records);
            if let Some(tally) = self.tally.get() {
                tally.add();
            }
        }
    }

    /// From now on records are counted in a file that outlives the process.
    pub(crate) fn count_in(&self, tally: Tally) {
        // A second file would count what the first has: the first stays.
        let _ = self.tally.set(tally);
    }

    /// All records since the last call, as consecutive msgpack arrays.
    pub(crate) fn take_records(&self) -> Vec<u8> {
        std::mem::take(&mut *self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn records_lost(&self) -> u64 {
        self.records_lost.load(Ordering::Relaxed)
    }
}
