//! What each tenant did last and how it usually comes back: the sessions behind the calls.
//! It must never look at a call before it arrived nor at an end before it happened.

use super::hazard::{Away, BINS, Counts, Curve, bin_of, low_s};
use super::{FunctionIx, TenantIx};

/// Contexts of a return: how long the tenant stayed away before its last call, from quick to first
/// time.
const CONTEXTS: usize = 6;

/// Functions remembered per tenant; the rarest makes room.
const USED_MAX: usize = 16;

/// One tenant.
#[derive(Clone, Debug)]
pub(crate) struct Tenant {
    /// Calls now queued or running.
    pub(crate) running: u32,
    /// When its last call ended; arrival of the first one until then.
    pub(crate) away_since_ms: u64,
    /// The function it called last.
    pub(crate) last: FunctionIx,
    /// Functions it called, with counts.
    pub(crate) used: Vec<(FunctionIx, f32)>,
    /// Return rates by age as of the end of its last call.
    pub(crate) curve: Curve,
    counts: Counts,
    context: usize,
    /// Returns, and those to the function called last.
    returns: f32,
    same: f32,
    /// Changes with every arrival and end; queued bins of an older generation are void.
    generation: u64,
}

/// All tenants and what they have in common.
#[derive(Clone, Debug)]
pub(crate) struct Tenants {
    all: Vec<Option<Tenant>>,
    crowd: Counts,
    contexts: [Counts; CONTEXTS],
    away: Away<TenantIx>,
    returns: [f32; BINS],
    same: [f32; BINS],
}

impl Default for Tenants {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            crowd: Counts::default(),
            contexts: std::array::from_fn(|_| Counts::default()),
            away: Away::default(),
            returns: [0.0; BINS],
            same: [0.0; BINS],
        }
    }
}

fn seconds(ms: u64) -> f32 {
    ms as f32 / 1e3
}

impl Tenants {
    /// The tenant, once it has called.
    pub(crate) fn get(&self, tenant: TenantIx) -> Option<&Tenant> {
        self.all.get(tenant.0 as usize)?.as_ref()
    }

    /// Moves tenants that stayed away into later bins, counting the time as exposure.
    pub(crate) fn advance(&mut self, now_ms: u64) {
        let Self {
            all,
            crowd,
            contexts,
            away,
            ..
        } = self;
        away.advance(now_ms, |tenant, generation, bin, seconds| {
            let known = all.get_mut(tenant.0 as usize).and_then(Option::as_mut);
            let Some(state) = known.filter(|state| state.generation == generation) else {
                return false;
            };
            crowd.expose(bin, seconds);
            contexts[state.context].expose(bin, seconds);
            state.counts.expose(bin, seconds);
            true
        });
    }

    /// A call arrived. Returns the function that the tenant called before, if any.
    pub(crate) fn arrived(
        &mut self,
        now_ms: u64,
        function: FunctionIx,
        tenant: TenantIx,
    ) -> Option<FunctionIx> {
        self.advance(now_ms);
        let at = tenant.0 as usize;
        if at >= self.all.len() {
            self.all.resize(at + 1, None);
        }
        let crowd = self.crowd.rates();
        let Some(state) = &mut self.all[at] else {
            let curve = Curve::new(self.contexts[CONTEXTS - 1].rates_within(&crowd));
            self.all[at] = Some(Tenant {
                running: 1,
                away_since_ms: now_ms,
                last: function,
                used: vec![(function, 1.0)],
                curve,
                counts: Counts::default(),
                context: CONTEXTS - 1,
                returns: 0.0,
                same: 0.0,
                generation: 0,
            });
            return None;
        };
        let before = state.last;
        if state.running == 0 {
            let age_s = seconds(now_ms.saturating_sub(state.away_since_ms));
            let bin = bin_of(age_s);
            for counts in [
                &mut self.crowd,
                &mut self.contexts[state.context],
                &mut state.counts,
            ] {
                counts.event(bin);
                counts.expose(bin, age_s - low_s(bin));
            }
            let same = f32::from(u8::from(before == function));
            self.returns[bin] += 1.0;
            self.same[bin] += same;
            state.returns += 1.0;
            state.same += same;
            state.context = context(age_s);
            state.curve = Curve::new(
                state
                    .counts
                    .rates_within(&self.contexts[state.context].rates_within(&crowd)),
            );
        }
        state.running += 1;
        state.generation += 1;
        state.last = function;
        remember(&mut state.used, function);
        Some(before)
    }

    /// A call ended.
    pub(crate) fn completed(&mut self, now_ms: u64, tenant: TenantIx) {
        self.advance(now_ms);
        let Some(Some(state)) = self.all.get_mut(tenant.0 as usize) else {
            return;
        };
        state.running = state.running.saturating_sub(1);
        state.away_since_ms = now_ms;
        if state.running == 0 {
            state.generation += 1;
            let crowd = self.crowd.rates();
            let context = self.contexts[state.context].rates_within(&crowd);
            state.curve = Curve::new(state.counts.rates_within(&context));
            self.away.leave(now_ms, tenant, state.generation);
        }
    }

    /// A function is gone: nobody called it last or before.
    pub(crate) fn forget(&mut self, function: FunctionIx) {
        for state in self.all.iter_mut().flatten() {
            state.used.retain(|(other, _)| *other != function);
            if state.last == function {
                state.last = FunctionIx(u32::MAX);
            }
        }
    }

    /// Probability that the next call of `state`, away for `age_s`, goes to `function`.
    pub(crate) fn share(&self, state: &Tenant, age_s: f32, function: FunctionIx) -> f32 {
        let bin = bin_of(age_s);
        let crowd = (self.same[bin] + 1.0) / (self.returns[bin] + 2.0);
        let same = (state.same + 2.0 * crowd) / (state.returns + 2.0);
        if state.last == function {
            return same;
        }
        let count = |wanted: FunctionIx| {
            state
                .used
                .iter()
                .find(|(other, _)| *other == wanted)
                .map_or(0.0, |(_, count)| *count)
        };
        let others: f32 =
            state.used.iter().map(|(_, count)| *count).sum::<f32>() - count(state.last);
        // Half of the moves go to a function that the tenant never called: that part is nobody's in
        // particular.
        if others > 0.0 {
            (1.0 - same) * 0.5 * count(function) / others
        } else {
            0.0
        }
    }
}

/// Context of a return after `age_s` away.
fn context(age_s: f32) -> usize {
    match age_s {
        age if age < 16.0 => 0,
        age if age < 64.0 => 1,
        age if age < 256.0 => 2,
        age if age < 4096.0 => 3,
        _ => 4,
    }
}

fn remember(used: &mut Vec<(FunctionIx, f32)>, function: FunctionIx) {
    if let Some(entry) = used.iter_mut().find(|(other, _)| *other == function) {
        entry.1 += 1.0;
        return;
    }
    if used.len() == USED_MAX
        && let Some(rarest) =
            (0..used.len()).min_by(|left, right| used[*left].1.total_cmp(&used[*right].1))
    {
        used.swap_remove(rarest);
    }
    used.push((function, 1.0));
}
