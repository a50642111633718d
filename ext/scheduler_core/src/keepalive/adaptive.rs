//! The keep-alive policy of the platform: sessions of tenants forecast each function's next call, a
//! price decides. It must never hold a constant that was fitted to one trace.

use super::experts::Experts;
use super::history::History;
use super::plan::{STEPS, edges_s, plan};
use super::price::{Goal, Price};
use super::{Fetch, FunctionIx, HostView, Policy, TenantIx, Tier};

/// How far a fetch looks ahead, seconds: some reads of a large snapshot, so that what is read is of
/// use before it goes.
const FETCH_HORIZON_S: f32 = 120.0;

/// How much likelier a snapshot must be to be needed than the one it replaces: a read back costs as
/// much again.
const FETCH_MARGIN: f32 = 2.0;

/// Forecast-driven keep-alive, prewarming, victims and prefetching.
#[derive(Clone, Debug)]
pub struct Adaptive {
    history: History,
    experts: Option<Experts>,
    price: Price,
    resume_s: f32,
    /// By function, where it is known; 0 elsewhere.
    resume_of_s: Vec<f32>,
    edges_s: [f32; STEPS + 1],
    changed: Vec<FunctionIx>,
}

impl Adaptive {
    /// Share of held GPU time that is busy in the default setting: four fifths, and a little to be
    /// safe.
    pub const DEFAULT_BUSY_SHARE: f64 = 0.81;

    /// A policy without history. `resume_ms` is the time of a start from the host pool.
    #[must_use]
    pub fn new(goal: Goal, resume_ms: u64) -> Self {
        Self {
            history: History::default(),
            experts: None,
            price: Price::new(goal),
            resume_s: resume_ms as f32 / 1e3,
            resume_of_s: Vec::new(),
            edges_s: edges_s(),
            changed: Vec::new(),
        }
    }

    /// Expected number of callers that come to `function` within `horizon_s`.
    #[must_use]
    pub fn need(&self, now_ms: u64, function: FunctionIx, horizon_s: f32) -> f32 {
        let mut demand = [0.0];
        self.history
            .demand(now_ms, function, &[horizon_s], &mut demand);
        demand[0]
    }

    /// A resume of `function` takes that long; others take what the policy was made with.
    pub fn expect_resume(&mut self, function: FunctionIx, resume_ms: u64) {
        let at = function.0 as usize;
        if at >= self.resume_of_s.len() {
            self.resume_of_s.resize(at + 1, 0.0);
        }
        self.resume_of_s[at] = resume_ms as f32 / 1e3;
    }

    /// Forgets a function; its index may then stand for another one.
    pub fn forget(&mut self, function: FunctionIx) {
        self.history.forget(function);
        if let Some(known) = self.resume_of_s.get_mut(function.0 as usize) {
            *known = 0.0;
        }
        self.changed.retain(|other| *other != function);
    }

    fn resume_s(&self, function: FunctionIx) -> f32 {
        let known = self.resume_of_s.get(function.0 as usize);
        known.copied().filter(|s| *s > 0.0).unwrap_or(self.resume_s)
    }

    /// The plan for the worker that is used when `idle_before` others are taken.
    fn plan(&self, now_ms: u64, function: FunctionIx, idle_before: usize) -> super::plan::Plan {
        let (mut calls, mut squares) = ([0.0; STEPS], [0.0; STEPS]);
        self.history
            .sessions(now_ms, function, &self.edges_s, &mut calls, &mut squares);
        if idle_before > 0 {
            // A spare is used when somebody else calls while the first call runs; a tenant does not
            // overtake itself.
            let service_s = self.history.service_s(function);
            for (step, expected) in calls.iter_mut().enumerate() {
                let width_s = self.edges_s[step + 1] - self.edges_s[step];
                let others = (*expected - squares[step] / expected.max(1e-9)) / width_s;
                *expected *= (1.0 - (-others * service_s).exp()).powi(idle_before as i32);
            }
        }
        let resume_s = self.resume_s(function);
        plan(&self.edges_s, &calls, resume_s, self.price.now())
    }
}

impl Policy for Adaptive {
    fn arrived(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        let before = self.history.arrived(now_ms, function, tenant);
        if let Some(experts) = &mut self.experts {
            experts.arrived(now_ms, function, &self.history);
        }
        self.changed.push(function);
        self.changed
            .extend(before.filter(|other| *other != function));
    }

    fn completed(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx) {
        self.history.completed(now_ms, function, tenant);
        self.changed.push(function);
    }

    fn charged(&mut self, _now_ms: u64, held_ms: u64, busy_ms: u64) {
        self.price.charged(held_ms, busy_ms);
    }

    fn changed(&mut self) -> Vec<FunctionIx> {
        std::mem::take(&mut self.changed)
    }

    fn victim(&mut self, now_ms: u64, _tier: Tier, candidates: &[FunctionIx]) -> usize {
        let experts = self
            .experts
            .get_or_insert_with(|| Experts::new(candidates.len()));
        experts.victim(now_ms, candidates, &self.history)
    }

    fn keep_until(
        &mut self,
        now_ms: u64,
        function: FunctionIx,
        _since: u64,
        idle_before: usize,
    ) -> u64 {
        now_ms + (self.plan(now_ms, function, idle_before).keep_s * 1e3) as u64
    }

    fn prewarm_at(&mut self, now_ms: u64, function: FunctionIx) -> Option<u64> {
        let at_s = self.plan(now_ms, function, 0).prewarm_s?;
        Some(now_ms + (at_s * 1e3) as u64)
    }

    fn fetch(&mut self, now_ms: u64, host: HostView<'_>) -> Option<Fetch> {
        let need = |function: FunctionIx| self.need(now_ms, function, FETCH_HORIZON_S);
        let by_need = |a: &(f32, FunctionIx), b: &(f32, FunctionIx)| a.0.total_cmp(&b.0);
        let best = host
            .on_file
            .iter()
            .filter(|function| host.resident.binary_search(function).is_err())
            .map(|function| (need(*function), *function))
            .max_by(by_need)?;
        if host.resident.len() < host.capacity {
            return Some(Fetch {
                load: best.1,
                evict: None,
            });
        }
        let worst = host
            .resident
            .iter()
            .map(|function| (need(*function), *function))
            .min_by(by_need)?;
        (best.0 > FETCH_MARGIN * worst.0).then_some(Fetch {
            load: best.1,
            evict: Some(worst.1),
        })
    }
}
