//! Keeping warm: what the keep-alive policy is told of calls, and what is done of its advice.
//! It must never make room for a forecast: only what is free is used ahead of need.
//!
//! The policy hears of visits, not of single leases: a gateway that returns slots and takes them
//! again at once did not go away. A visit ends when its last lease or ticket did and
//! `Config::visit_gap_ms` passed; so a busy warm function costs the policy nothing.
//!
//! Why nothing thrashes: (1) a pod is parked when the policy says so, or for a ticket that waits;
//! (2) not for the latter before it was ready for `Config::residence_min_ms`, so two functions that
//! want one place swap it at most that often; (3) what is resumed ahead of need takes free room
//! only and ends nobody, and while anybody waits for room nothing is resumed ahead of need; (4) the
//! price of held time in the policy moves slower than sessions come and go.

use std::collections::HashMap;

use super::Core;
use super::model::{Config, FuncId, Function, PodIx, StartKind, StartTimes, Visit};
use super::timers::Timer;
use crate::keepalive::{Adaptive, FunctionIx, Goal, Policy, TenantIx};
use crate::pod::State;

/// Callers told apart by name; further ones share these numbers by a hash of theirs.
const CALLERS_MAX: usize = 65_536;

/// How far ahead the worth of a pod looks: what is not needed for longer is worth next to nothing.
const HORIZON_S: f32 = 600.0;

/// The policy and the numbers under which it knows functions and callers.
#[derive(Debug)]
pub(super) struct Warmth {
    policy: Adaptive,
    /// False when a fixed time was configured; then the policy only rates victims.
    adaptive: bool,
    callers: HashMap<String, TenantIx>,
    functions: Vec<Option<FuncId>>,
    free: Vec<FunctionIx>,
}

impl Warmth {
    pub fn new(config: &Config) -> Warmth {
        Warmth {
            policy: Adaptive::new(Goal::BusyShare(config.busy_share), 1_000),
            adaptive: config.idle_park_ms.is_none(),
            callers: HashMap::new(),
            functions: Vec::new(),
            free: Vec::new(),
        }
    }

    fn caller(&mut self, name: &str) -> TenantIx {
        if let Some(known) = self.callers.get(name) {
            return *known;
        }
        let count = self.callers.len();
        if count >= CALLERS_MAX {
            let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
            });
            return TenantIx(hash % CALLERS_MAX as u32);
        }
        let caller = TenantIx(count as u32);
        self.callers.insert(name.to_owned(), caller);
        caller
    }

    fn number(&mut self, func: FuncId) -> FunctionIx {
        let function = self.free.pop().unwrap_or_else(|| {
            self.functions.push(None);
            FunctionIx((self.functions.len() - 1) as u32)
        });
        self.functions[function.0 as usize] = Some(func);
        function
    }

    /// A function is gone for good; its number may go to another one.
    pub fn forget(&mut self, function: &Function) {
        if let Some(number) = function.warm {
            self.functions[number.0 as usize] = None;
            self.policy.forget(number);
            self.free.push(number);
        }
    }
}

impl Core {
    /// A caller asks for slots of a function.
    pub(super) fn visit_begins(&mut self, now_ms: u64, func: FuncId, consumer: &str) -> TenantIx {
        let function = self.functions.get_mut(&func).expect("called");
        let tenant = match consumer {
            "" => {
                let (warmth, own) = (&mut self.warmth, &function.key.tenant);
                *function.caller.get_or_insert_with(|| warmth.caller(own))
            }
            name => self.warmth.caller(name),
        };
        let visits = &mut function.visits;
        if let Some(visit) = visits.iter_mut().find(|visit| visit.tenant == tenant) {
            visit.open += 1;
            return tenant;
        }
        visits.push(Visit {
            tenant,
            open: 1,
            ended_ms: now_ms,
        });
        let warmth = &mut self.warmth;
        let number = *function.warm.get_or_insert_with(|| warmth.number(func));
        self.warmth.policy.arrived(now_ms, number, tenant);
        tenant
    }

    /// A lease or ticket of a caller is no more.
    pub(super) fn visit_ends(&mut self, now_ms: u64, func: FuncId, tenant: TenantIx) {
        let Some(function) = self.functions.get_mut(&func) else {
            return;
        };
        let mut visits = function.visits.iter_mut();
        let visit = visits.find(|visit| visit.tenant == tenant);
        let visit = visit.expect("a visit ends that has begun");
        visit.open -= 1;
        visit.ended_ms = now_ms;
        if visit.open == 0 && function.visits_due_ms.is_none() {
            let due_ms = now_ms + self.config.visit_gap_ms;
            function.visits_due_ms = Some(due_ms);
            self.timers.set(due_ms, Timer::Visits(func));
        }
    }

    /// The alarm of a function's visits: those that ended long enough ago are over.
    pub(super) fn visits_due(&mut self, now_ms: u64, func: FuncId) {
        let gap_ms = self.config.visit_gap_ms;
        let Some(function) = self.functions.get_mut(&func) else {
            return;
        };
        if let Some(due_ms) = function.visits_due_ms.take() {
            self.timers.clear(due_ms, Timer::Visits(func));
        }
        let number = function.warm.expect("a visited function has a number");
        let policy = &mut self.warmth.policy;
        function.visits.retain(|visit| {
            let over = visit.open == 0 && visit.ended_ms + gap_ms <= now_ms;
            if over {
                policy.completed(now_ms, number, visit.tenant);
            }
            !over
        });
        let ended = function.visits.iter().filter(|visit| visit.open == 0);
        if let Some(next_ms) = ended.map(|visit| visit.ended_ms + gap_ms).min() {
            function.visits_due_ms = Some(next_ms);
            self.timers.set(next_ms, Timer::Visits(func));
        }
    }

    /// Sets the alarm at which an idle pod is looked at: when it may be parked, and before that
    /// when it may make room.
    pub(super) fn arm_idle(&mut self, now_ms: u64, ix: PodIx) {
        let idle_ms = self.config.idle_park_ms.unwrap_or(self.config.visit_gap_ms);
        let pod = self.pod(ix);
        let park_ms = pod.used_ms + idle_ms;
        let at_ms = match pod.resident {
            true => park_ms,
            false => park_ms.min(pod.ready_ms + self.config.residence_min_ms),
        };
        self.arm_pod(ix, at_ms.max(now_ms));
    }

    /// Until when an idle pod stays; in the past = park it now.
    pub(super) fn keep_until(&mut self, now_ms: u64, ix: PodIx) -> u64 {
        let (func, used_ms) = (self.pod(ix).func, self.pod(ix).used_ms);
        if let Some(park_ms) = self.config.idle_park_ms {
            return used_ms + park_ms;
        }
        let visit_ms = used_ms + self.config.visit_gap_ms;
        if visit_ms > now_ms {
            return visit_ms;
        }
        if self.functions[&func]
            .visits_due_ms
            .is_some_and(|due| due <= now_ms)
        {
            self.visits_due(now_ms, func);
        }
        let Some(number) = self.functions[&func].warm else {
            // Nobody called it since this process knows it: no forecast, the next alarm of others
            // decides.
            return used_ms + self.config.residence_min_ms;
        };
        // The pod used last is leased first; the others are spares.
        let spares = self.functions[&func].pods.iter().filter(|other| {
            let pod = self.pod(**other);
            pod.state == State::Idle && (pod.used_ms, **other) > (used_ms, ix)
        });
        let spares = spares.count();
        let policy = &mut self.warmth.policy;
        policy.keep_until(now_ms, number, used_ms, spares)
    }

    /// Asks again about the functions whose forecast changed.
    pub(super) fn heed_forecasts(&mut self, now_ms: u64) {
        let mut changed = self.warmth.policy.changed();
        if !self.warmth.adaptive || changed.is_empty() {
            return;
        }
        changed.sort_unstable();
        changed.dedup();
        for number in changed {
            let known = self.warmth.functions.get(number.0 as usize);
            let Some(func) = known.copied().flatten() else {
                continue;
            };
            let pods = self.functions[&func].pods.iter().copied();
            let idle: Vec<PodIx> = pods
                .filter(|ix| self.pod(*ix).state == State::Idle)
                .collect();
            for ix in &idle {
                let until_ms = self.keep_until(now_ms, *ix);
                self.arm_pod(*ix, until_ms.max(now_ms));
            }
            if idle.is_empty() {
                self.plan_prewarm(now_ms, func);
            }
        }
    }

    /// Sets the alarm at which a standby of the function is resumed ahead of need.
    pub(super) fn plan_prewarm(&mut self, now_ms: u64, func: FuncId) {
        let function = &self.functions[&func];
        let (Some(number), true) = (function.warm, self.warmth.adaptive) else {
            return;
        };
        let at_ms = match function.pods.is_empty() {
            true => None,
            false => self.warmth.policy.prewarm_at(now_ms, number),
        };
        let at_ms = at_ms.map(|at_ms| at_ms.max(now_ms + 1));
        let function = self.functions.get_mut(&func).expect("just found");
        if let Some(set_ms) = std::mem::replace(&mut function.prewarm_ms, at_ms) {
            self.timers.clear(set_ms, Timer::Prewarm(func));
        }
        if let Some(at_ms) = at_ms {
            self.timers.set(at_ms, Timer::Prewarm(func));
        }
    }

    /// The alarm of a resume ahead of need. It is done (1) if the policy still wants it, (2) the
    /// function has nothing that runs or starts and nobody waits for it, (3) nobody waits for room,
    /// (4) a standby of it fits into what is free, within every limit.
    pub(super) fn prewarm_due(&mut self, now_ms: u64, func: FuncId) {
        let Some(function) = self.functions.get_mut(&func) else {
            return;
        };
        function.prewarm_ms = None;
        let Some(number) = function.warm else { return };
        match self.warmth.policy.prewarm_at(now_ms, number) {
            Some(at_ms) if at_ms <= now_ms => {}
            _ => return self.plan_prewarm(now_ms, func),
        }
        let busy = self.running(func) > 0 || self.tickets.waiting(func) > 0;
        if busy || !self.unmet.is_empty() {
            return;
        }
        self.resume_ahead(now_ms, func);
    }

    /// What a pod is worth to keep where it is: expected calls soon x the wait that it saves them.
    pub(super) fn worth(&self, now_ms: u64, func: FuncId, wait_ms: u64) -> f64 {
        let number = self.functions[&func].warm;
        let calls = number.map_or(0.0, |number| {
            self.warmth.policy.need(now_ms, number, HORIZON_S)
        });
        f64::from(calls) * wait_ms as f64
    }

    /// How long the ways to start a function take: as seen, as told, or as assumed.
    pub(super) fn start_times(&self, func: FuncId) -> StartTimes {
        let Function { took, spec, .. } = &self.functions[&func];
        let known = |seen, told| if seen == 0 { told } else { seen };
        StartTimes {
            cold_ms: known(took.cold_ms, spec.expected.cold_ms),
            resume_ms: known(took.resume_ms, spec.expected.resume_ms),
            host_ms: known(took.host_ms, spec.expected.host_ms),
            file_ms: known(took.file_ms, spec.expected.file_ms),
        }
        .or_assumed()
    }

    /// A start or resume took that long.
    pub(super) fn learn_start(&mut self, now_ms: u64, ix: PodIx) {
        let pod = self.pod(ix);
        let (func, kind, tier) = (pod.func, pod.start, pod.tier);
        let Some(since_ms) = pod.held_since_ms else {
            return;
        };
        let function = self.functions.get_mut(&func).expect("a pod of no function");
        function
            .took
            .learn(kind, tier, now_ms.saturating_sub(since_ms));
        if let (StartKind::Resume, Some(number)) = (kind, function.warm) {
            let resume_ms = function.took.resume_ms;
            self.warmth.policy.expect_resume(number, resume_ms);
        }
    }

    /// The pod gives its GPUs up: what it held them for is charged to the policy's budget.
    pub(super) fn charge(&mut self, now_ms: u64, ix: PodIx) {
        let pod = self.pod_mut(ix);
        let Some(since_ms) = pod.held_since_ms.take() else {
            return;
        };
        let busy_ms = std::mem::take(&mut pod.busy_ms);
        let held_ms = now_ms.saturating_sub(since_ms);
        self.warmth
            .policy
            .charged(now_ms, held_ms, busy_ms.min(held_ms));
    }
}
