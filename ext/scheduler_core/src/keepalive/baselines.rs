//! The policies that others use, for comparison: least recently used, greedy-dual with frequency,
//! fixed keep-alive. They must never be improved: a baseline that learns is no baseline.

use super::{FunctionIx, Policy, TenantIx, Tier};

/// Value at `index`, growing the table with defaults as functions appear.
fn slot<T: Clone + Default>(table: &mut Vec<T>, index: FunctionIx) -> &mut T {
    let at = index.0 as usize;
    if at >= table.len() {
        table.resize(at + 1, T::default());
    }
    &mut table[at]
}

/// Evicts what was used longest ago; parks at once.
#[derive(Clone, Debug, Default)]
pub struct Lru {
    clock: u64,
    used: Vec<u64>,
}

impl Lru {
    fn touch(&mut self, function: FunctionIx) {
        self.clock += 1;
        *slot(&mut self.used, function) = self.clock;
    }
}

impl Policy for Lru {
    fn arrived(&mut self, _now_ms: u64, function: FunctionIx, _tenant: TenantIx) {
        self.touch(function);
    }

    fn completed(&mut self, _now_ms: u64, _function: FunctionIx, _tenant: TenantIx) {}

    fn victim(&mut self, _now_ms: u64, _tier: Tier, candidates: &[FunctionIx]) -> usize {
        least(candidates, |function| {
            self.used.get(function.0 as usize).copied().unwrap_or(0)
        })
    }

    fn keep_until(&mut self, _now: u64, _function: FunctionIx, since_ms: u64, _n: usize) -> u64 {
        since_ms
    }
}

/// Index of the candidate with the least key; the first of equals.
fn least<K: PartialOrd>(candidates: &[FunctionIx], key: impl Fn(FunctionIx) -> K) -> usize {
    let mut best = 0;
    for at in 1..candidates.len() {
        if key(candidates[at]) < key(candidates[best]) {
            best = at;
        }
    }
    best
}

/// Greedy-dual with frequency (GDSF with equal sizes and costs): value = inflation + calls so far;
/// the inflation is the value of the last victim. The count survives eviction, which is the
/// stronger variant; of equals the one used longest ago goes.
#[derive(Clone, Debug, Default)]
pub struct GreedyDual {
    inflation: u64,
    clock: u64,
    calls: Vec<u64>,
    /// Value and time of last use.
    value: Vec<(u64, u64)>,
}

impl Policy for GreedyDual {
    fn arrived(&mut self, _now_ms: u64, function: FunctionIx, _tenant: TenantIx) {
        let calls = slot(&mut self.calls, function);
        *calls += 1;
        let value = self.inflation + *calls;
        self.clock += 1;
        *slot(&mut self.value, function) = (value, self.clock);
    }

    fn completed(&mut self, _now_ms: u64, _function: FunctionIx, _tenant: TenantIx) {}

    fn victim(&mut self, _now_ms: u64, tier: Tier, candidates: &[FunctionIx]) -> usize {
        let value = |f: FunctionIx| self.value.get(f.0 as usize).copied().unwrap_or_default();
        let out = least(candidates, value);
        if tier == Tier::Host {
            self.inflation = self.inflation.max(value(candidates[out]).0);
        }
        out
    }

    fn keep_until(&mut self, _now: u64, _function: FunctionIx, since_ms: u64, _n: usize) -> u64 {
        since_ms
    }
}

/// Every idle worker stays for the same time; the host pool follows `pool`.
#[derive(Clone, Debug)]
pub struct FixedKeepAlive<P> {
    keep_ms: u64,
    pool: P,
}

impl<P: Policy> FixedKeepAlive<P> {
    /// Keep every idle worker for `keep_ms`; ask `pool` which snapshot leaves the host pool.
    pub fn new(keep_ms: u64, pool: P) -> Self {
        Self { keep_ms, pool }
    }
}

impl<P: Policy> Policy for FixedKeepAlive<P> {
    fn arrived(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        self.pool.arrived(now_ms, function, tenant);
    }

    fn completed(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        self.pool.completed(now_ms, function, tenant);
    }

    fn victim(&mut self, now_ms: u64, tier: Tier, candidates: &[FunctionIx]) -> usize {
        self.pool.victim(now_ms, tier, candidates)
    }

    fn keep_until(&mut self, _now: u64, _function: FunctionIx, since_ms: u64, _n: usize) -> u64 {
        since_ms + self.keep_ms
    }
}
