//! What was granted and refused, counted for the metrics. It must never be read to decide anything.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Grants after one kind of start, by the time that callers waited.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Waits {
    pub sum_s: f64,
    /// One count for each bound, and one for what lasted longer.
    pub buckets: Vec<u64>,
}

#[derive(Debug, Default)]
struct Counts {
    granted: BTreeMap<&'static str, Waits>,
    refused: BTreeMap<String, u64>,
}

/// Counters since the start of the process.
#[derive(Debug)]
pub struct Tally {
    bounds_s: Vec<f64>,
    counts: Mutex<Counts>,
}

impl Tally {
    /// Nothing yet; `bounds_s` are the upper bounds of the buckets, ascending.
    pub fn new(bounds_s: Vec<f64>) -> Tally {
        Tally {
            bounds_s,
            counts: Mutex::default(),
        }
    }

    pub(crate) fn granted(&self, start: &'static str, seconds: f64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = counts.granted.entry(start).or_default();
        waits.buckets.resize(self.bounds_s.len() + 1, 0);
        let bucket = self.bounds_s.partition_point(|bound| *bound < seconds);
        waits.buckets[bucket] += 1;
        waits.sum_s += seconds;
    }

    pub(crate) fn refused(&self, code: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.refused.get_mut(code) {
            Some(count) => *count += 1,
            None => {
                counts.refused.insert(code.to_owned(), 1);
            }
        }
    }

    /// Grants by start, and refusals by code.
    pub fn read(&self) -> (BTreeMap<&'static str, Waits>, BTreeMap<String, u64>) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        (counts.granted.clone(), counts.refused.clone())
    }
}
