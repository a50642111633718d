//! The core for several threads: one lock, and a time that never goes back.
//! Must never be locked across a wait, an input or output, or anything of Python.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use crate::Core;

/// The core with the latest time that any of its users has named.
#[derive(Debug)]
pub struct Timed {
    core: Core,
    latest_ms: u64,
}

/// What every thread holds.
pub type Shared = Mutex<Timed>;

impl Timed {
    /// For a new core.
    pub fn new(core: Core) -> Timed {
        Timed { core, latest_ms: 0 }
    }

    /// The time to call a verb with. Who read the clock before it had the lock may be late.
    pub fn at(&mut self, now_ms: u64) -> u64 {
        self.latest_ms = self.latest_ms.max(now_ms);
        self.latest_ms
    }
}

impl Deref for Timed {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Timed {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}
