//! Counters of one function and of the whole plane; atomics only.
//! Must never be on the way of a call: an increment, nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// How the worker that answered a call had come to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It was ready already.
    Warm,
    /// It was resumed from standby.
    Resume,
    /// It was restored from a snapshot.
    Snapshot,
    /// It was started from nothing.
    Cold,
}

impl Start {
    /// The kind of that name; an unknown name counts as cold.
    pub fn from_name(name: &str) -> Self {
        match name {
            "warm" => Self::Warm,
            "resume" => Self::Resume,
            "snapshot" => Self::Snapshot,
            _ => Self::Cold,
        }
    }

    /// The name in headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Resume => "resume",
            Self::Snapshot => "snapshot",
            Self::Cold => "cold",
        }
    }
}

/// Upper bounds of the histograms, in milliseconds.
pub(crate) const BOUNDS_MS: [u64; 15] = [
    1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 120_000,
];

#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn observe(&self, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_MS.iter().position(|bound| us <= bound * 1000);
        self.buckets[at.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: self
                .buckets
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .collect(),
            sum_ms: self.sum_us.load(Ordering::Relaxed) as f64 / 1000.0,
        }
    }
}

/// Counts of one function.
#[derive(Debug)]
pub(crate) struct FunctionStats {
    statuses: [AtomicU64; 600],
    starts: [AtomicU64; 4],
    start_ms: AtomicU64,
    pub client_gone: AtomicU64,
    pub broken: AtomicU64,
    pub wait: Histogram,
    pub first_byte: Histogram,
}

impl Default for FunctionStats {
    fn default() -> Self {
        Self {
            statuses: [const { AtomicU64::new(0) }; 600],
            starts: [const { AtomicU64::new(0) }; 4],
            start_ms: AtomicU64::new(0),
            client_gone: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            wait: Histogram::default(),
            first_byte: Histogram::default(),
        }
    }
}

impl FunctionStats {
    pub(crate) fn count_status(&self, status: u16) {
        if let Some(counter) = self.statuses.get(usize::from(status)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts one worker that came under the given start.
    pub(crate) fn count_start(&self, start: Start) {
        self.starts[start as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how long a call waited for a worker that had to be started.
    pub(crate) fn note_start(&self, waited: Duration) {
        let ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX).max(1);
        let before = self.start_ms.load(Ordering::Relaxed);
        // Weighted towards the latest; that two calls at once may lose one of them does not matter.
        let mean = if before == 0 {
            ms
        } else {
            (3 * before + ms) / 4
        };
        self.start_ms.store(mean, Ordering::Relaxed);
    }

    /// How long such calls usually wait; None when there was none.
    pub(crate) fn usual_start(&self) -> Option<Duration> {
        match self.start_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    pub(crate) fn snapshot(&self, gauges: Gauges) -> FunctionSnapshot {
        let statuses = self
            .statuses
            .iter()
            .enumerate()
            .filter_map(|(status, counter)| {
                let count = counter.load(Ordering::Relaxed);
                (count > 0).then(|| (status.to_string(), count))
            });
        let starts = [Start::Warm, Start::Resume, Start::Snapshot, Start::Cold].map(|start| {
            (
                start.name(),
                self.starts[start as usize].load(Ordering::Relaxed),
            )
        });
        FunctionSnapshot {
            statuses: statuses.collect(),
            starts: starts.into_iter().collect(),
            client_gone: self.client_gone.load(Ordering::Relaxed),
            broken: self.broken.load(Ordering::Relaxed),
            wait: self.wait.snapshot(),
            first_byte: self.first_byte.snapshot(),
            gauges,
        }
    }
}

/// What is true of a function right now.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Gauges {
    pub workers: usize,
    pub slots: u64,
    pub active: u64,
    pub parked: usize,
    pub requested: u32,
}

#[derive(Debug, Serialize)]
struct HistogramSnapshot {
    buckets: Vec<u64>,
    sum_ms: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct FunctionSnapshot {
    statuses: std::collections::BTreeMap<String, u64>,
    starts: std::collections::BTreeMap<&'static str, u64>,
    client_gone: u64,
    broken: u64,
    wait: HistogramSnapshot,
    first_byte: HistogramSnapshot,
    #[serde(flatten)]
    gauges: Gauges,
}

/// Counts of the whole plane.
#[derive(Debug, Default)]
pub(crate) struct PlaneStats {
    pub connections: AtomicU64,
    pub connections_open: AtomicU64,
    pub requests: AtomicU64,
    pub retries: AtomicU64,
}
