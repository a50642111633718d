//! A bound: the host pool is paged as if the trace were known, everything else is left to a policy.
//! It must never be offered as a policy of the platform; it only says what paging could gain.

use crate::keepalive::{FunctionIx, Policy, TenantIx, Tier};

use super::trace::Trace;

/// Throws out of the host pool what is needed last (Belady), reads nothing ahead of need.
pub struct ClairvoyantPool<P> {
    inner: P,
    /// Arrivals of each function, latest first; those that passed are taken off.
    arrivals_ms: Vec<Vec<u64>>,
}

impl<P: Policy> ClairvoyantPool<P> {
    /// `inner` decides on the GPUs; `trace` is what will be replayed.
    pub fn new(trace: &Trace, inner: P) -> Self {
        let mut arrivals_ms = vec![Vec::new(); trace.functions];
        for call in trace.calls.iter().rev() {
            arrivals_ms[call.function.0 as usize].push(call.at_ms);
        }
        Self { inner, arrivals_ms }
    }

    fn next_ms(&mut self, now_ms: u64, function: FunctionIx) -> u64 {
        let arrivals_ms = &mut self.arrivals_ms[function.0 as usize];
        while arrivals_ms.last().is_some_and(|at_ms| *at_ms <= now_ms) {
            arrivals_ms.pop();
        }
        arrivals_ms.last().copied().unwrap_or(u64::MAX)
    }
}

impl<P: Policy> Policy for ClairvoyantPool<P> {
    fn arrived(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        self.inner.arrived(now_ms, function, tenant);
    }

    fn completed(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        self.inner.completed(now_ms, function, tenant);
    }

    fn charged(&mut self, now_ms: u64, held_ms: u64, busy_ms: u64) {
        self.inner.charged(now_ms, held_ms, busy_ms);
    }

    fn changed(&mut self) -> Vec<FunctionIx> {
        self.inner.changed()
    }

    fn victim(&mut self, now_ms: u64, tier: Tier, candidates: &[FunctionIx]) -> usize {
        match tier {
            Tier::Gpu => self.inner.victim(now_ms, tier, candidates),
            Tier::Host => {
                let last = (0..candidates.len())
                    .max_by_key(|place| self.next_ms(now_ms, candidates[*place]));
                last.unwrap_or(0)
            }
        }
    }

    fn keep_until(&mut self, now_ms: u64, function: FunctionIx, since: u64, n: usize) -> u64 {
        self.inner.keep_until(now_ms, function, since, n)
    }

    fn prewarm_at(&mut self, now_ms: u64, function: FunctionIx) -> Option<u64> {
        self.inner.prewarm_at(now_ms, function)
    }
}
