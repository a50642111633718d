//! How many calls may be tried a second time: a share of all calls and a few per second.
//! Must never let retries multiply the load on workers that are failing.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

const SHARE: f64 = 0.2;
const PER_SECOND: f64 = 10.0;
const SAVED_MAX: f64 = 100.0;

#[derive(Debug)]
pub(crate) struct RetryBudget {
    state: Mutex<(f64, Instant)>,
}

impl RetryBudget {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new((PER_SECOND, Instant::now())),
        }
    }

    /// Counts one ordinary call.
    pub(crate) fn deposit(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = (state.0 + SHARE).min(SAVED_MAX);
    }

    /// Takes the right to one retry.
    pub(crate) fn withdraw(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let earned = now.duration_since(state.1).as_secs_f64() * PER_SECOND;
        *state = ((state.0 + earned).min(SAVED_MAX), now);
        let granted = state.0 >= 1.0;
        if granted {
            state.0 -= 1.0;
        }
        granted
    }
}
