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
        // The counter first: a ring between the two writes nothing, and its news is already there
        // to be found. The other way round that ring would be read away and still count as rung,
        // and nothing would ever ring again. A bell that was not rung refuses, which is as good.
        let _ = rustix::io::read(&self.descriptor, &mut [0_u8; 8]);
        self.rung.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const NEWS: u64 = 100_000;
    const LOST: Timespec = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };

    #[test]
    fn news_that_comes_while_the_bell_is_answered_is_not_lost() {
        let bell = Bell::new().expect("an eventfd");
        let (told, heard) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for number in 1..=NEWS {
                    told.store(number, Ordering::Release);
                    bell.ring();
                    if number % 2 == 0 {
                        while heard.load(Ordering::Acquire) < number {
                            std::thread::yield_now();
                        }
                    } else {
                        // The next ring comes while this one is answered, each time elsewhere.
                        for _ in 0..number % 997 {
                            std::hint::spin_loop();
                        }
                    }
                }
            });
            while heard.load(Ordering::Acquire) < NEWS {
                let mut watched = [PollFd::new(&bell.descriptor, PollFlags::IN)];
                let rung = poll(&mut watched, Some(&LOST)).expect("poll");
                bell.answer();
                let number = told.load(Ordering::Acquire);
                // The other thread ends as well when this one is about to panic.
                heard.store(if rung > 0 { number } else { NEWS }, Ordering::Release);
                assert!(rung > 0, "nothing rang for number {number}");
            }
        });
    }
}
