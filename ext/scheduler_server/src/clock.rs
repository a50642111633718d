//! The clock of the core, the same that Python's `time.monotonic` reads.
//! It must never be compared with the time of day.

use rustix::time::{ClockId, clock_gettime};

/// Monotonic milliseconds.
pub(crate) fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
