//! Which requests are typical: counted as they arrive, known in advance, or both.
//! Never forgets abruptly: old arrivals fade by halves, and the set is bounded.

use super::hashing::{FastMap, hash_of};
use super::request::{GpuShare, Request};
use super::resources::DeviceKind;

/// Arrivals after which the typical requests are drawn up for the first time.
const FIRST_REFRESH: u64 = 8;
/// Each next time comes after this many times as many arrivals.
const REFRESH_FACTOR: u64 = 2;
/// Arrivals remembered at full weight; beyond it, older ones count half, a quarter, ...
const MEMORY: u64 = 1 << 14;
/// Distinct requests that are counted at most.
const REQUESTS_MAX: usize = 4096;

/// Counts of requests, and when to look at them again.
#[derive(Clone, Debug)]
pub(crate) struct Learner {
    counts: FastMap<Request, u64>,
    total: u64,
    refresh_at: u64,
}

/// A request with its share of all arrivals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Typical {
    pub request: Request,
    pub weight: f64,
}

/// What all counted requests ask for together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Demand {
    pub cpu: u64,
    pub mem: u64,
    /// GPU units of those that take a share.
    pub units: u64,
    /// Devices of those that take whole ones.
    pub devices: u64,
}

impl Default for Learner {
    fn default() -> Learner {
        Learner {
            counts: FastMap::default(),
            total: 0,
            refresh_at: FIRST_REFRESH,
        }
    }
}

impl Learner {
    /// Counts a request that arrived, or `weight` of them; true when it is time to refresh.
    pub fn observe(&mut self, request: Request, weight: u64) -> bool {
        *self.counts.entry(request).or_insert(0) += weight;
        self.total += weight;
        self.total >= self.refresh_at || self.counts.len() > REQUESTS_MAX
    }

    /// What the counted requests ask for together.
    pub fn demand(&self) -> Demand {
        let mut sum = Demand::default();
        for (request, count) in &self.counts {
            sum.cpu += u64::from(request.cpu_millis) * count;
            sum.mem += u64::from(request.mem_mb) * count;
            let Some(gpu) = request.gpu else { continue };
            let devices = gpu.devices_taken() as u64 * count;
            match gpu.share {
                GpuShare::Units(units) => sum.units += u64::from(units) * devices,
                GpuShare::Whole => sum.devices += devices,
            }
        }
        sum
    }

    /// The most frequent GPU requests, at most `limit`, heaviest first. The order depends on
    /// the requests alone: `rank` must not depend on the order in which types were met.
    pub fn refresh(&mut self, limit: usize, rank: impl Fn(&Request) -> u64) -> Vec<Typical> {
        if self.total >= MEMORY {
            self.counts.values_mut().for_each(|count| *count /= 2);
        }
        if self.counts.len() > REQUESTS_MAX {
            let mut counts: Vec<u64> = self.counts.values().copied().collect();
            counts.sort_unstable_by(|left, right| right.cmp(left));
            let least = counts[REQUESTS_MAX / 2];
            self.counts.retain(|_, count| *count > least);
        }
        self.counts.retain(|_, count| *count > 0);
        self.total = self.counts.values().sum();
        self.refresh_at =
            self.total + (self.total * (REFRESH_FACTOR - 1)).clamp(FIRST_REFRESH, MEMORY / 2);
        let mut found: Vec<(Request, u64)> = self
            .counts
            .iter()
            .filter(|(request, _)| request.gpu.is_some())
            .map(|(request, count)| (*request, *count))
            .collect();
        found.sort_by_key(|(request, count)| (u64::MAX - count, rank(request)));
        found.truncate(limit);
        let all: u64 = found.iter().map(|(_, count)| count).sum();
        found
            .into_iter()
            .map(|(request, count)| Typical {
                request,
                weight: count as f64 / all as f64,
            })
            .collect()
    }
}

/// How far two sets of typical requests are apart: 0 when equal, 1 when nothing is common.
pub(crate) fn distance(left: &[Typical], right: &[Typical]) -> f64 {
    let weights = |side: &[Typical]| -> FastMap<Request, f64> {
        side.iter()
            .map(|typical| (typical.request, typical.weight))
            .collect()
    };
    let (before, after) = (weights(left), weights(right));
    let moved = left.iter().map(|typical| {
        let other = after.get(&typical.request).copied().unwrap_or(0.0);
        (typical.weight - other).abs()
    });
    let new = right
        .iter()
        .filter(|typical| !before.contains_key(&typical.request));
    (moved.sum::<f64>() + new.map(|typical| typical.weight).sum::<f64>()) / 2.0
}

/// A hash of the request by content: its types by name, not by number.
pub(crate) fn content_hash(request: &Request, kinds: &[DeviceKind]) -> u64 {
    let types = request.gpu.map_or(0, |gpu| {
        kinds
            .iter()
            .filter(|kind| gpu.types.contains(kind.gpu_type))
            .fold(0, |sum: u64, kind| sum.wrapping_add(kind.hash))
    });
    let demand = match request.gpu {
        None => (0, 0, 0),
        Some(gpu) => match gpu.share {
            GpuShare::Units(units) => (gpu.count, gpu.contexts, units),
            GpuShare::Whole => (gpu.count, gpu.contexts, u32::MAX),
        },
    };
    let host = (request.cpu_millis, request.mem_mb, request.cache_mb);
    hash_of(&(host, types, demand))
}
