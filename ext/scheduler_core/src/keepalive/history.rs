//! What is expected of each function: its tenants' sessions on top of a base rate.
//! It must never name a number that depends on facts not yet told.

use super::hazard::{Away, Counts, Curve, bin_of, low_s};
use super::tenants::Tenants;
use super::{FunctionIx, TenantIx};

/// Tenants remembered per function; the one that called longest ago makes room.
const TENANTS_MAX: usize = 64;

/// A tenant's session is forgotten after this time away; the base rate stands for later returns.
const SESSION_S: f32 = 86_400.0;

/// Memory of the base rate: a week, the period of human habits.
const BASE_S: f64 = 7.0 * 86_400.0;

/// Time without calls that is assumed before the first one: a call a second ago is no rate of one
/// per second.
const DOUBT_S: f64 = 3_600.0;

#[derive(Clone, Debug, Default)]
struct Function {
    /// Recent callers, the latest last.
    tenants: Vec<TenantIx>,
    /// Calls, fading with `BASE_S`, as of `at_ms`.
    calls: f64,
    at_ms: u64,
    /// Calls running, the integral of that number up to `run_ms`, and calls ended.
    running: u32,
    ran_ms: u64,
    run_ms: u64,
    ended: u32,
    /// Newcomers by the time since the last call of anybody, and the rates as of that call.
    newcomers: Counts,
    curve: Option<Curve>,
    generation: u64,
}

/// Facts about calls, and forecasts from them.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    tenants: Tenants,
    functions: Vec<Function>,
    newcomers: Counts,
    away: Away<FunctionIx>,
    begin_ms: Option<u64>,
}

impl History {
    /// A call arrived. Returns the function that the tenant called before, if any.
    pub(crate) fn arrived(
        &mut self,
        now_ms: u64,
        function: FunctionIx,
        tenant: TenantIx,
    ) -> Option<FunctionIx> {
        self.begin_ms.get_or_insert(now_ms);
        let at = function.0 as usize;
        if at >= self.functions.len() {
            self.functions.resize(at + 1, Function::default());
        }
        self.advance(now_ms);
        let known = self.functions[at].tenants.contains(&tenant)
            && self.tenants.get(tenant).is_some_and(|caller| {
                caller.running > 0
                    || ((now_ms.saturating_sub(caller.away_since_ms)) as f32) < SESSION_S * 1e3
            });
        let state = &mut self.functions[at];
        let crowd = &mut self.newcomers;
        if state.curve.is_some() {
            let age_s = (now_ms - state.at_ms) as f32 / 1e3;
            let bin = bin_of(age_s);
            for counts in [&mut *crowd, &mut state.newcomers] {
                counts.expose(bin, age_s - low_s(bin));
                if !known {
                    counts.event(bin);
                }
            }
        }
        state.generation += 1;
        state.curve = Some(Curve::new(state.newcomers.rates_within(&crowd.rates())));
        self.away.leave(now_ms, function, state.generation);
        state.calls = state.faded(now_ms) + 1.0;
        state.at_ms = now_ms;
        state.run(now_ms);
        state.running += 1;
        state.tenants.retain(|other| *other != tenant);
        if state.tenants.len() == TENANTS_MAX {
            state.tenants.remove(0);
        }
        state.tenants.push(tenant);
        self.tenants.arrived(now_ms, function, tenant)
    }

    fn advance(&mut self, now_ms: u64) {
        let Self {
            functions,
            newcomers,
            away,
            ..
        } = self;
        away.advance(now_ms, |function, generation, bin, seconds| {
            let state = &mut functions[function.0 as usize];
            if state.generation != generation {
                return false;
            }
            newcomers.expose(bin, seconds);
            state.newcomers.expose(bin, seconds);
            true
        });
    }

    /// A call ended.
    pub(crate) fn completed(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        if let Some(state) = self.functions.get_mut(function.0 as usize) {
            state.run(now_ms);
            state.running = state.running.saturating_sub(1);
            state.ended += 1;
        }
        self.tenants.completed(now_ms, tenant);
    }

    /// Forgets a function and who called it.
    pub(crate) fn forget(&mut self, function: FunctionIx) {
        if let Some(state) = self.functions.get_mut(function.0 as usize) {
            // Queued bins of the former function must stay void.
            *state = Function {
                generation: state.generation + 1,
                ..Function::default()
            };
            self.tenants.forget(function);
        }
    }

    /// Calls per second of `function` over the long run.
    pub(crate) fn base_rate(&self, now_ms: u64, function: FunctionIx) -> f64 {
        let Some(state) = self.functions.get(function.0 as usize) else {
            return 0.0;
        };
        let span_s = (now_ms - self.begin_ms.unwrap_or(now_ms)) as f64 / 1e3 + DOUBT_S;
        state.faded(now_ms) / (BASE_S * (1.0 - (-span_s / BASE_S).exp()))
    }

    /// Calls of `function` that run.
    pub(crate) fn running(&self, function: FunctionIx) -> u32 {
        let state = self.functions.get(function.0 as usize);
        state.map_or(0, |state| state.running)
    }

    /// Time since a call of `function` arrived last, seconds; since the first call of any when it
    /// was never called.
    pub(crate) fn age_s(&self, now_ms: u64, function: FunctionIx) -> f32 {
        let called = self.functions.get(function.0 as usize);
        let called = called.filter(|state| state.curve.is_some());
        let since_ms = called.map(|state| state.at_ms).or(self.begin_ms);
        (now_ms - since_ms.unwrap_or(now_ms)) as f32 / 1e3
    }

    /// Mean time from arrival to end of a call of `function`, seconds (Little's law); 0 when none
    /// ended yet.
    pub(crate) fn service_s(&self, function: FunctionIx) -> f32 {
        let state = self.functions.get(function.0 as usize);
        state.map_or(0.0, |state| {
            state.ran_ms as f32 / 1e3 / state.ended.max(1) as f32
        })
    }

    /// Expected calls of `function` by tenants of its recent sessions between `edges_s` from now,
    /// if nothing else happens first: adds the integral of their rates over each `[edges_s[i],
    /// edges_s[i + 1])` to `out[i]`.
    pub(crate) fn sessions(
        &self,
        now_ms: u64,
        function: FunctionIx,
        edges_s: &[f32],
        out: &mut [f32],
        squares: &mut [f32],
    ) {
        let Some(state) = self.functions.get(function.0 as usize) else {
            return;
        };
        if let Some(curve) = &state.curve {
            let age_s = (now_ms - state.at_ms) as f32 / 1e3;
            let mut before = curve.integral(age_s + edges_s[0]);
            for (place, edge_s) in edges_s[1..].iter().enumerate() {
                let after = curve.integral(age_s + edge_s);
                out[place] += after - before;
                before = after;
            }
        }
        for tenant in state.tenants.iter().rev() {
            let Some(caller) = self.tenants.get(*tenant) else {
                continue;
            };
            let age_s = now_ms.saturating_sub(caller.away_since_ms) as f32 / 1e3;
            if caller.running > 0 || age_s > SESSION_S {
                continue;
            }
            let share = self.tenants.share(caller, age_s, function);
            let mut before = caller.curve.integral(age_s + edges_s[0]);
            for (place, edge_s) in edges_s[1..].iter().enumerate() {
                let after = caller.curve.integral(age_s + edge_s);
                let expected = share * (after - before);
                out[place] += expected;
                squares[place] += expected * expected;
                before = after;
            }
        }
    }

    /// Expected number of different tenants that come (back) to `function` within each of
    /// `horizons_s`, plus base.
    pub(crate) fn demand(
        &self,
        now_ms: u64,
        function: FunctionIx,
        horizons_s: &[f32],
        out: &mut [f32],
    ) {
        let base = self.base_rate(now_ms, function) as f32;
        for (sum, horizon_s) in out.iter_mut().zip(horizons_s) {
            *sum = base * horizon_s;
        }
        let Some(state) = self.functions.get(function.0 as usize) else {
            return;
        };
        for tenant in state.tenants.iter().rev() {
            let Some(caller) = self.tenants.get(*tenant) else {
                continue;
            };
            let age_s = match caller.running {
                0 => now_ms.saturating_sub(caller.away_since_ms) as f32 / 1e3,
                _ => 0.0,
            };
            if age_s > SESSION_S {
                continue;
            }
            let share = self.tenants.share(caller, age_s, function);
            let before = caller.curve.integral(age_s);
            for (sum, horizon_s) in out.iter_mut().zip(horizons_s) {
                *sum += share * (1.0 - (before - caller.curve.integral(age_s + horizon_s)).exp());
            }
        }
    }
}

impl Function {
    fn run(&mut self, now_ms: u64) {
        self.ran_ms += u64::from(self.running) * (now_ms - self.run_ms);
        self.run_ms = now_ms;
    }

    fn faded(&self, now_ms: u64) -> f64 {
        self.calls * (-((now_ms - self.at_ms) as f64) / 1e3 / BASE_S).exp()
    }
}
