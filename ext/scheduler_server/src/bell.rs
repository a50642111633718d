//! A descriptor that Python's event loop watches. It must never carry data, only wake.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Rung once for any amount of news until it is answered.
#[derive(Debug)]
pub(crate) struct Bell {
    descriptor: OwnedFd,
    rung: AtomicBool,
}

impl Bell {
    /// A silent one.
    pub(crate) fn new() -> io::Result<Bell> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Bell {
            descriptor: eventfd(0, flags)?,
            rung: AtomicBool::new(false),
        })
    }

    /// What becomes readable.
    pub(crate) fn fd(&self) -> i32 {
        self.descriptor.as_raw_fd()
    }

    /// Wakes who watches, unless that was done already.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Only a counter at its end could refuse, and that one is readable as it is.
            let _ = rustix::io::write(&self.descriptor, &1_u64.to_ne_bytes());
        }
    }

    /// Whether it was rung and not answered yet.
    #[cfg(test)]
    pub(crate) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    /// Silent again. What comes from now on rings anew, so look for news after this.
    pub(crate) fn answer(&self) {
        self.rung.store(false, Ordering::Release);
        // Refused when it was not rung, which is as good.
        let _ = rustix::io::read(&self.descriptor, &mut [0_u8; 8]);
    }
}
