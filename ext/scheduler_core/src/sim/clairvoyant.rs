//! Bounds: what knowing the trace would gain, for the host pool alone and for everything.
//! They must never be offered as policies of the platform: no policy knows the future.

use crate::keepalive::{Fetch, FunctionIx, HostView, Policy, TenantIx, Tier};

use super::trace::Trace;

/// When each function is called next.
#[derive(Clone, Debug)]
struct Future {
    /// Arrivals of each function, latest first; those that passed are taken off.
    arrivals_ms: Vec<Vec<u64>>,
}

impl Future {
    fn new(trace: &Trace) -> Self {
        let mut arrivals_ms = vec![Vec::new(); trace.functions];
        for call in trace.calls.iter().rev() {
            arrivals_ms[call.function.0 as usize].push(call.at_ms);
        }
        Self { arrivals_ms }
    }

    /// The next arrival after `now_ms`; `u64::MAX` for none.
    fn next_ms(&mut self, now_ms: u64, function: FunctionIx) -> u64 {
        let arrivals_ms = &mut self.arrivals_ms[function.0 as usize];
        while arrivals_ms.last().is_some_and(|at_ms| *at_ms <= now_ms) {
            arrivals_ms.pop();
        }
        arrivals_ms.last().copied().unwrap_or(u64::MAX)
    }

    /// Of `functions` the one called last (Belady), with the time of that call.
    fn last(&mut self, now_ms: u64, functions: &[FunctionIx]) -> Option<(usize, u64)> {
        let times = functions.iter().map(|f| self.next_ms(now_ms, *f));
        times.enumerate().max_by_key(|(_, next_ms)| *next_ms)
    }

    /// Reads what is called next among what the pool lacks, if this is sooner than what leaves.
    fn fetch(&mut self, now_ms: u64, host: HostView<'_>) -> Option<Fetch> {
        let outside = host.on_file.iter().copied();
        let outside = outside.filter(|function| host.resident.binary_search(function).is_err());
        let times = outside.map(|function| (self.next_ms(now_ms, function), function));
        let (next_ms, load) = times.min()?;
        if host.resident.len() < host.capacity {
            return Some(Fetch { load, evict: None });
        }
        let (place, last_ms) = self.last(now_ms, host.resident)?;
        let evict = Some(host.resident[place]);
        (next_ms < last_ms).then_some(Fetch { load, evict })
    }
}

/// The host pool is run as if the trace were known, the GPUs are left to a policy.
pub struct ClairvoyantPool<P> {
    inner: P,
    future: Future,
    ahead: bool,
}

impl<P: Policy> ClairvoyantPool<P> {
    /// Throws out of the pool what is needed last, reads nothing ahead of need.
    pub fn on_demand(trace: &Trace, inner: P) -> Self {
        Self {
            inner,
            future: Future::new(trace),
            ahead: false,
        }
    }

    /// The same, and the idle disk reads what is needed next.
    pub fn ahead(trace: &Trace, inner: P) -> Self {
        Self {
            ahead: true,
            ..Self::on_demand(trace, inner)
        }
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
                let last = self.future.last(now_ms, candidates);
                last.map_or(0, |(place, _)| place)
            }
        }
    }

    fn keep_until(&mut self, now_ms: u64, function: FunctionIx, since: u64, n: usize) -> u64 {
        self.inner.keep_until(now_ms, function, since, n)
    }

    fn prewarm_at(&mut self, now_ms: u64, function: FunctionIx) -> Option<u64> {
        self.inner.prewarm_at(now_ms, function)
    }

    fn fetch(&mut self, now_ms: u64, host: HostView<'_>) -> Option<Fetch> {
        self.ahead
            .then(|| self.future.fetch(now_ms, host))
            .flatten()
    }
}

/// Everything is known: workers are resumed just before each call, snapshots read before that.
pub struct Clairvoyant {
    future: Future,
    resume_ms: u64,
    changed: Vec<FunctionIx>,
}

impl Clairvoyant {
    /// `trace` is what will be replayed, `resume_ms` the time of a start from the host pool.
    #[must_use]
    pub fn new(trace: &Trace, resume_ms: u64) -> Self {
        Self {
            future: Future::new(trace),
            resume_ms,
            changed: (0..trace.functions as u32).map(FunctionIx).collect(),
        }
    }
}

impl Policy for Clairvoyant {
    fn arrived(&mut self, _now_ms: u64, function: FunctionIx, _tenant: TenantIx) {
        self.changed.push(function);
    }

    fn completed(&mut self, _now_ms: u64, function: FunctionIx, _tenant: TenantIx) {
        self.changed.push(function);
    }

    fn changed(&mut self) -> Vec<FunctionIx> {
        std::mem::take(&mut self.changed)
    }

    fn victim(&mut self, now_ms: u64, _tier: Tier, candidates: &[FunctionIx]) -> usize {
        let last = self.future.last(now_ms, candidates);
        last.map_or(0, |(place, _)| place)
    }

    /// Stays if that is cheaper than to come back.
    fn keep_until(&mut self, now_ms: u64, function: FunctionIx, _since: u64, n: usize) -> u64 {
        let next_ms = self.future.next_ms(now_ms, function);
        let stays = n == 0 && next_ms.saturating_sub(now_ms) <= self.resume_ms;
        if stays { next_ms + 1 } else { now_ms }
    }

    fn prewarm_at(&mut self, now_ms: u64, function: FunctionIx) -> Option<u64> {
        let next_ms = self.future.next_ms(now_ms, function);
        (next_ms < u64::MAX).then(|| next_ms.saturating_sub(self.resume_ms))
    }

    fn fetch(&mut self, now_ms: u64, host: HostView<'_>) -> Option<Fetch> {
        self.future.fetch(now_ms, host)
    }
}
