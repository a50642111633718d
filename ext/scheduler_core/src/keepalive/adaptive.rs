//! The keep-alive policy of the platform: sessions of tenants forecast each function's next call, a
//! price decides. It must never hold a constant that was fitted to one trace.

use super::experts::Experts;
use super::history::History;
use super::plan::{STEPS, edges_s, plan};
use super::price::{Goal, Price};
use super::ranker::Ranker;
use super::{Fetch, FunctionIx, HostView, Policy, TenantIx, Tier};

/// How much likelier a snapshot must be to be called next than the one that it replaces: a read
/// that brings next to nothing wears the disk and keeps it from others.
const FETCH_MARGIN: f32 = 1.5;

/// Forecast-driven keep-alive, prewarming, victims and prefetching.
#[derive(Clone, Debug)]
pub struct Adaptive {
    history: History,
    /// For a pool that is filled on demand.
    experts: Option<Experts>,
    /// For a pool that is read into ahead of need, as soon as the caller asks what to read.
    ranker: Option<Ranker>,
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
    pub const DEFAULT_BUSY_SHARE: f64 = 0.805;

    /// A policy without history. `resume_ms` is the time of a start from the host pool.
    #[must_use]
    pub fn new(goal: Goal, resume_ms: u64) -> Self {
        Self {
            history: History::default(),
            experts: None,
            ranker: None,
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
        if let Some(ranker) = &mut self.ranker {
            ranker.forget(function);
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
        if let Some(ranker) = &mut self.ranker {
            ranker.learn(now_ms, function, &self.history);
        }
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
        if let Some(ranker) = &self.ranker {
            return ranker.last(now_ms, candidates, &self.history);
        }
        let experts = self
            .experts
            .get_or_insert_with(|| Experts::new(candidates.len()));
        experts.victim(now_ms, candidates, &self.history)
    }

    fn admits(&mut self, now_ms: u64, function: FunctionIx, resident: &[FunctionIx]) -> bool {
        let Some(ranker) = &self.ranker else {
            return true;
        };
        let last = resident[ranker.last(now_ms, resident, &self.history)];
        let score = |function| ranker.score(now_ms, function, &self.history);
        score(function) > score(last)
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
        let ranker = self.ranker.get_or_insert_default();
        let score = |function| ranker.score(now_ms, function, &self.history);
        let outside = host.on_file.iter().copied();
        let (best, load) = outside
            .filter(|function| host.resident.binary_search(function).is_err())
            .map(|function| (score(function), function))
            .max_by(|left, right| left.0.total_cmp(&right.0))?;
        if host.resident.len() < host.capacity {
            return Some(Fetch { load, evict: None });
        }
        let last = host
            .resident
            .get(ranker.last(now_ms, host.resident, &self.history))?;
        (best > score(*last) + FETCH_MARGIN.ln()).then_some(Fetch {
            load,
            evict: Some(*last),
        })
    }
}
