//! What happens between calls on the simulated node: deadlines, parking, prewarming, reading ahead;
//! and the account. It must never do what the policy did not ask for.

use crate::keepalive::{FunctionIx, HostView};

use super::super::report::quantile;
use super::{Decision, Event, Node, NodeRun, StartTier, State, Worker};

impl Node<'_> {
    /// Asks until when an idle worker stays. The event comes even when that is now: a call may come
    /// first.
    pub(super) fn ask_deadline(&mut self, worker: usize) {
        let Worker {
            function,
            state,
            generation,
            ..
        } = self.workers[worker];
        let State::Idle { since_ms } = state else {
            return;
        };
        let others = self.idle_workers(function);
        let before = others
            .iter()
            .rev()
            .take_while(|other| **other != worker)
            .count();
        let until_ms = self
            .policy
            .keep_until(self.now_ms, function, since_ms, before);
        self.at(
            until_ms.max(self.now_ms),
            Event::Deadline(worker, generation),
        );
    }

    /// Asks again about the functions whose forecast changed.
    pub(super) fn ask_again(&mut self) {
        for function in self.policy.changed() {
            let idle = self.idle_workers(function);
            for worker in &idle {
                self.workers[*worker].generation += 1;
                self.ask_deadline(*worker);
            }
            if idle.is_empty() && self.starting(function).is_empty() {
                self.plan_prewarm(function);
            }
        }
    }

    pub(super) fn deadline(&mut self, worker: usize, generation: u64) {
        let Worker {
            function,
            state,
            generation: current,
            ..
        } = self.workers[worker];
        let State::Idle { since_ms } = state else {
            return;
        };
        if generation != current {
            return;
        }
        let others = self.idle_workers(function);
        let before = others
            .iter()
            .rev()
            .take_while(|other| **other != worker)
            .count();
        let until_ms = self
            .policy
            .keep_until(self.now_ms, function, since_ms, before);
        if self.open && until_ms > self.now_ms {
            self.at(until_ms, Event::Deadline(worker, generation));
        } else {
            self.leave(worker);
            self.plan_prewarm(function);
        }
    }

    /// Parks a worker and lets the oldest blocked start have its room.
    pub(super) fn leave(&mut self, worker: usize) {
        let Worker {
            function,
            born_ms,
            busy_ms,
            ..
        } = self.workers[worker];
        self.workers[worker].state = State::Gone;
        self.live[function.0 as usize].retain(|other| *other != worker);
        self.live_count -= 1;
        self.held_ms += self.now_ms - born_ms;
        self.busy_ms += busy_ms;
        self.policy
            .charged(self.now_ms, self.now_ms - born_ms, busy_ms);
        self.note(Decision::Park(function));
        self.admit(function, self.now_ms);
        if let Some(next) = self.blocked.pop_front() {
            self.start(next);
        }
    }

    pub(super) fn plan_prewarm(&mut self, function: FunctionIx) {
        let asked = self.policy.prewarm_at(self.now_ms, function);
        let at_ms = asked.map(|at_ms| at_ms.max(self.now_ms));
        if self.open && at_ms != self.prewarm_ms[function.0 as usize] {
            self.prewarm_ms[function.0 as usize] = at_ms;
            if let Some(at_ms) = at_ms {
                self.at(at_ms, Event::Prewarm(function));
            }
        }
    }

    pub(super) fn prewarm(&mut self, function: FunctionIx) {
        if self.prewarm_ms[function.0 as usize] != Some(self.now_ms) {
            return;
        }
        self.prewarm_ms[function.0 as usize] = None;
        let spare = self.starting(function).len() + self.idle_workers(function).len();
        let room = self.live_count < self.config.workers_max();
        if !self.open || spare > 0 || !room || self.tier(function) != StartTier::Host {
            return;
        }
        match self.policy.prewarm_at(self.now_ms, function) {
            Some(at_ms) if at_ms <= self.now_ms => {
                self.note(Decision::Prewarm(function));
                self.run.summary.prewarms += 1;
                self.start(function);
            }
            _ => self.plan_prewarm(function),
        }
    }

    /// Lets the idle disk read ahead of need.
    pub(super) fn fetch(&mut self) {
        if self.fetching || !self.open || !self.config.reads_ahead {
            return;
        }
        let view = HostView {
            resident: self.pool.resident(),
            on_file: self.pool.on_file(),
            capacity: self.pool.capacity(),
        };
        let Some(plan) = self.policy.fetch(self.now_ms, view) else {
            return;
        };
        if let Some(out) = plan.evict {
            self.evict(out);
        }
        let read_ms = self.config.file_start_ms - self.config.host_start_ms;
        self.pool.insert(plan.load, self.now_ms + read_ms);
        self.note(Decision::Fetch(plan.load));
        self.run.summary.fetches += 1;
        self.fetching = true;
        self.at(self.now_ms + read_ms, Event::Fetched);
    }

    pub(super) fn finish(mut self) -> NodeRun {
        let calls = self.trace.calls.len();
        let share = |tier: StartTier| {
            let count = self.tiers.iter().filter(|other| **other == tier).count();
            100.0 * count as f64 / calls.max(1) as f64
        };
        let summary = &mut self.run.summary;
        summary.calls = calls;
        summary.cold_pct = share(StartTier::Cold);
        summary.file_pct = share(StartTier::File);
        summary.host_pct = share(StartTier::Host);
        summary.warm_pct = share(StartTier::Warm);
        let total_ms: u64 = self.waits_ms.iter().sum();
        summary.wait_mean_s = total_ms as f64 / 1e3 / calls.max(1) as f64;
        self.waits_ms.sort_unstable();
        summary.wait_p95_s = quantile(&self.waits_ms, 0.95) as f64 / 1e3;
        summary.wait_p99_s = quantile(&self.waits_ms, 0.99) as f64 / 1e3;
        summary.busy_s = self.busy_ms as f64 / 1e3;
        summary.held_s = self.held_ms as f64 / 1e3;
        summary.busy_over_held_pct = 100.0 * summary.busy_s / summary.held_s.max(f64::MIN_POSITIVE);
        self.run
    }
}
