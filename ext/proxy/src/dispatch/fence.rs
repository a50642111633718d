//! Until when leases may be used, told by the control plane with each answered heartbeat.
//! Must never be lifted by time: when it has passed, only news from the scheduler opens it again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const OPEN: u64 = u64::MAX;

/// One for all leases of a gateway: it hears of one scheduler. The clock is the system's monotonic
/// one, so that a process that was frozen past the end knows it before it lets the next call in,
/// whether or not its Python side has woken up.
#[derive(Debug)]
pub(crate) struct Fence {
    origin: Instant,
    until_ms: AtomicU64,
}

impl Fence {
    /// Open until it is told of an end for the first time.
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            until_ms: AtomicU64::new(OPEN),
        }
    }

    fn now_ms(&self) -> u64 {
        millis(self.origin.elapsed())
    }

    pub(crate) fn passed(&self) -> bool {
        let until_ms = self.until_ms.load(Ordering::Relaxed);
        until_ms != OPEN && self.now_ms() >= until_ms
    }

    /// Leases may be used for so long from now; whether that opens what was closed.
    pub(crate) fn hold(&self, time: Duration) -> bool {
        let opens = self.passed() && !time.is_zero();
        let until_ms = self.now_ms().saturating_add(millis(time));
        self.until_ms.store(until_ms, Ordering::Relaxed);
        opens
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(OPEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_closes_by_time_and_opens_by_news_only() {
        let fence = Fence::new();
        assert!(!fence.passed());
        assert!(!fence.hold(Duration::from_secs(60)), "it was open");
        assert!(!fence.hold(Duration::ZERO));
        assert!(fence.passed());
        assert!(!fence.hold(Duration::ZERO), "still closed");
        assert!(fence.hold(Duration::from_secs(60)));
        assert!(!fence.passed());
    }
}
