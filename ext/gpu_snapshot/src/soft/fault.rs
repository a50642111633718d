//! The failures that SoftDevice can be told to have, by name.
//! It must never fail on its own: every fault is asked for and happens at a known point.

use crate::{Error, Result};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

/// One failure. Counts start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The nth `create` finds no memory: `oom-on-create:N`.
    OomOnCreate(u64),
    /// Restores fail for lack of memory, and then with code 304 for ever: `stuck-after-oom`.
    StuckAfterOom,
    /// Locks time out; the process keeps running: `lock-timeout`.
    LockTimeout,
    /// A checkpoint leaves the process in the state Failed: `process-failed`.
    ProcessFailed,
    /// The nth copy flips one bit and reports success: `flip-bit:N`.
    FlipBit(u64),
    /// The nth copy moves half of its bytes and says so: `short-copy:N`.
    ShortCopy(u64),
    /// The nth copy never ends: `hang:N`.
    Hang(u64),
    /// The device says it is of another type: `wrong-device`.
    WrongDevice,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || Error::Invalid(format!("no fault is named {text:?}"));
        let (name, count) = match text.split_once(':') {
            Some((name, count)) => (name, Some(count.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        match (name, count) {
            ("oom-on-create", Some(count)) => Ok(Self::OomOnCreate(count)),
            ("stuck-after-oom", None) => Ok(Self::StuckAfterOom),
            ("lock-timeout", None) => Ok(Self::LockTimeout),
            ("process-failed", None) => Ok(Self::ProcessFailed),
            ("flip-bit", Some(count)) => Ok(Self::FlipBit(count)),
            ("short-copy", Some(count)) => Ok(Self::ShortCopy(count)),
            ("hang", Some(count)) => Ok(Self::Hang(count)),
            ("wrong-device", None) => Ok(Self::WrongDevice),
            _ => Err(unknown()),
        }
    }
}

/// The faults of a device and how far it is on the way to each.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    faults: Vec<Fault>,
    creates: AtomicU64,
    copies: AtomicU64,
}

impl FaultPlan {
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self {
            faults,
            ..Self::default()
        }
    }

    pub(super) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// Counts one `create`; whether it has to fail.
    pub(super) fn create_fails(&self) -> bool {
        let count = self.creates.fetch_add(1, Ordering::Relaxed) + 1;
        self.has(Fault::OomOnCreate(count))
    }

    /// Counts one copy; the fault it has to show.
    pub(super) fn copy_fault(&self) -> Option<Fault> {
        let count = self.copies.fetch_add(1, Ordering::Relaxed) + 1;
        let candidates = [
            Fault::FlipBit(count),
            Fault::ShortCopy(count),
            Fault::Hang(count),
        ];
        candidates.into_iter().find(|fault| self.has(*fault))
    }
}
