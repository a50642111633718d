//! What agents report: results of orders, states of pods, and pods of a former scheduler process.
//! It must never trust news of an order that a newer one has overtaken.

use super::Core;
use super::fault::Fault;
use super::messages::{Effect, Outcome, PodFact, PodRef};
use super::model::{Op, Pod, PodIx, StartKind};
use super::timers::Timer;
use crate::nodes::Holding;
use crate::pod::{Event, State};

impl Core {
    /// The pod whose latest order this outcome answers.
    fn answered(&self, outcome: &Outcome, ops: &[Op]) -> Option<PodIx> {
        let ix = *self.pod_ids.get(&outcome.pod_id)?;
        let pod = self.pod(ix);
        let current = outcome.order == 0 || outcome.order == pod.order;
        (current && pod.op.is_some_and(|op| ops.contains(&op))).then_some(ix)
    }

    pub(super) fn start_result(&mut self, now_ms: u64, outcome: Outcome) {
        let Some(ix) = self.answered(&outcome, &[Op::Start, Op::Resume]) else {
            return self.late_start_result(now_ms, outcome);
        };
        match outcome.ok {
            // It was ready and ended before this answer came.
            true if self.pod(ix).died => self.remove_pod(now_ms, ix, true),
            true => {
                // The agent falls back to a colder way where the one ordered fails.
                if let Some(start) = outcome.start {
                    self.pod_mut(ix).start = start;
                }
                self.set_ready(now_ms, ix);
            }
            false => self.fail_start(now_ms, ix, &outcome),
        }
    }

    /// The start was overtaken by an order to end the pod: only "nothing is left of it" matters.
    fn late_start_result(&mut self, now_ms: u64, outcome: Outcome) {
        let Some(ix) = self.pod_ids.get(&outcome.pod_id).copied() else {
            return;
        };
        if self.pod(ix).op == Some(Op::Terminate) && !outcome.ok && outcome.gone {
            self.remove_pod(now_ms, ix, true);
        }
    }

    /// A start failed. A broken function backs off and its waiting calls hear why; a failed resume
    /// falls back to a start from nothing; a fault of the node makes the core try another one.
    fn fail_start(&mut self, now_ms: u64, ix: PodIx, outcome: &Outcome) {
        self.counters.starts_failed += 1;
        let pod = self.pod(ix);
        let (func, node, was) = (pod.func, pod.node, pod.op);
        let blames_function = outcome.code == "start_failed";
        if blames_function && was == Some(Op::Start) && self.is_wanted(self.pod(ix)) {
            let function = self.functions.get_mut(&func).expect("a pod of no function");
            function.backoff.failures += 1;
            function.backoff.reason = outcome.reason.clone();
            let until_ms = now_ms + self.config.backoff(function.backoff.failures);
            function.backoff.until_ms = until_ms;
            self.timers.set(until_ms, Timer::Function(func));
        } else if !blames_function {
            let config = &self.config;
            let node_id = node;
            let node = self.nodes.get_mut(&node).expect("a node that is gone");
            node.faults += 1;
            node.retry_at_ms = now_ms + config.backoff(node.faults);
            node.fault.clone_from(&outcome.reason);
            self.timers.set(node.retry_at_ms, Timer::Node(node_id));
        }
        match outcome.gone {
            true => self.remove_pod(now_ms, ix, true),
            false => self.terminate(now_ms, ix),
        }
        self.capacity_changed = true;
    }

    pub(super) fn park_result(&mut self, now_ms: u64, outcome: Outcome) {
        let Some(ix) = self.answered(&outcome, &[Op::Park]) else {
            return;
        };
        match (outcome.ok, outcome.gone) {
            (true, _) => self.set_parked(now_ms, ix),
            (false, true) => self.remove_pod(now_ms, ix, true),
            (false, false) => {
                self.terminate(now_ms, ix);
                self.pod_mut(ix).reason = outcome.reason;
            }
        }
    }

    pub(super) fn terminate_result(&mut self, now_ms: u64, outcome: Outcome) {
        let ended = outcome.ok || outcome.gone;
        let Some(ix) = self.answered(&outcome, &[Op::Terminate]) else {
            return;
        };
        if ended {
            return self.remove_pod(now_ms, ix, true);
        }
        let at_ms = now_ms + self.config.backoff_ms;
        let pod = self.pod_mut(ix);
        pod.reason = outcome.reason;
        pod.retry_at_ms = Some(at_ms);
        self.arm_pod(ix, at_ms);
    }

    /// News of a pod. While an order of ours is out its result decides; news then only refines what
    /// is shown, except that a pod that has ended has ended.
    pub(super) fn pod_fact(&mut self, now_ms: u64, fact: PodFact) {
        if let Some(ix) = self.pod_ids.get(&fact.pod_id).copied() {
            return self.known_pod_fact(now_ms, ix, fact);
        }
        let ended = self.tombstones.contains(&fact.pod_id);
        if ended && !self.breaks(Fault::ForgetTombstones) {
            if fact.state.is_live() {
                // Either old news, then this does no harm, or the order to make it came late.
                let PodFact {
                    pod_id,
                    node,
                    key,
                    revision,
                    ..
                } = fact;
                let pod = PodRef {
                    pod_id,
                    node,
                    key,
                    revision,
                    order: 0,
                };
                self.effects.push(Effect::Terminate(pod));
            }
            return;
        }
        if !fact.state.is_final() {
            self.adopt(now_ms, fact);
        }
    }

    fn known_pod_fact(&mut self, now_ms: u64, ix: PodIx, fact: PodFact) {
        use State as S;
        if self.agent_leads(ix, fact.state) {
            self.remove_pod(now_ms, ix, false);
            return self.adopt(now_ms, fact);
        }
        let pod = self.pod(ix);
        if fact.state.is_final() {
            return self.is_over(now_ms, ix);
        }
        let starts = matches!(pod.op, Some(Op::Start | Op::Resume));
        self.pod_mut(ix).shown |= starts;
        let pod = self.pod(ix);
        match (pod.op, pod.state, fact.state) {
            (Some(Op::Start) | None, S::Creating, S::Loading) => {
                self.apply(now_ms, ix, Event::Started);
            }
            (Some(Op::Park), S::Parking, S::Parking) => self.pod_mut(ix).parking_seen = true,
            (Some(Op::Park), S::Parking, S::Standby) if pod.parking_seen => {
                self.set_parked(now_ms, ix);
            }
            // No order of ours is out: a former scheduler process gave it, the agent carries it
            // out.
            (None, state, S::Ready) if state.is_starting() => self.set_ready(now_ms, ix),
            (None, S::Parking, S::Standby) => self.set_parked(now_ms, ix),
            _ => {}
        }
        if let Some(pod) = self.pods.get_mut(&ix)
            && pod.state == fact.state
        {
            pod.reason = fact.reason;
        }
    }

    /// An order of a former process was carried out on a pod that this one has given no order for.
    fn agent_leads(&self, ix: PodIx, told: State) -> bool {
        use State as S;
        let pod = self.pod(ix);
        let as_known = match (pod.state, told) {
            (S::Idle | S::Working, S::Ready) | (S::Creating, S::Loading) => true,
            (S::Parking, S::Standby) => true,
            (state, S::Ready) if state.is_starting() => true,
            (state, told) => state == told || told.is_final(),
        };
        pod.adopted && !pod.ordered && !as_known
    }

    /// The agent has no such pod (any more).
    pub(super) fn pod_gone(&mut self, now_ms: u64, pod_id: &str) {
        self.tombstones.remove(pod_id);
        let Some(ix) = self.pod_ids.get(pod_id).copied() else {
            return;
        };
        self.is_over(now_ms, ix);
    }

    /// The agent says that a pod is over. The result of a start that is out tells more of why it
    /// failed; one that succeeded no longer counts, unless the pod is still to be made.
    fn is_over(&mut self, now_ms: u64, ix: PodIx) {
        let pod = self.pod_mut(ix);
        match pod.op {
            Some(Op::Start | Op::Resume) => pod.died |= pod.shown,
            _ => self.remove_pod(now_ms, ix, true),
        }
    }

    /// Takes over a pod of a former scheduler process. A ready one waits for its gateway to
    /// announce itself before it is used for anything else.
    fn adopt(&mut self, now_ms: u64, fact: PodFact) {
        let Some(node) = self.node_ids.get(&fact.node).copied() else {
            return;
        };
        let func = self.func_id(&fact.key);
        let function = &self.functions[&func];
        let (spec, slots) = (function.spec.clone(), function.policy.parallel.max(1));
        let state = match fact.state {
            State::Ready | State::Working | State::Snapshotting => State::Idle,
            state => state,
        };
        let until_ms = now_ms + self.config.takeover_ms;
        let standby = matches!(state, State::Standby | State::Parking | State::Terminating);
        let gateways = self.gateways.keys().copied();
        let held = !standby && self.roll.doubts(&fact.pod_id, gateways);
        let pod = Pod {
            op: (state == State::Terminating).then_some(Op::Terminate),
            parked: match state {
                State::Standby => fact.held.clone(),
                _ => spec.standby_holding(&fact.held),
            },
            // The order that ends it was another process's; it is repeated if that takes long.
            retry_at_ms: (state == State::Terminating).then_some(until_ms),
            held: fact.held,
            start: if state == State::Resuming {
                StartKind::Resume
            } else {
                StartKind::Cold
            },
            held_until_ms: held.then_some(until_ms),
            adopted: true,
            reason: fact.reason,
            ..new_pod(
                fact.pod_id,
                func,
                fact.revision,
                node,
                spec,
                slots,
                state,
                now_ms,
            )
        };
        let ix = self.add_pod(pod);
        if state == State::Parking {
            // Its image is on its way to the cache memory.
            let pod = self.pods.get_mut(&ix).expect("just added");
            let extra = Holding {
                cache_mib: pod.parked.cache_mib.saturating_sub(pod.held.cache_mib),
                ..Holding::default()
            };
            pod.held.add(&extra);
            pod.parked = pod.parked.min(&pod.held);
            let node = self.nodes.get_mut(&node).expect("a node that is gone");
            node.ledger.take(&extra);
        }
        self.functions.get_mut(&func).expect("just found").surplus = true;
        match !held && state == State::Idle {
            true => self.arm_idle(now_ms, ix),
            false => self.arm_pod(ix, until_ms),
        }
        self.dirty.insert(func);
        self.capacity_changed = true;
        if !held {
            self.retire_unwanted(now_ms, ix);
        }
    }

    /// Enters a pod and takes its holding from the node.
    pub(super) fn add_pod(&mut self, pod: Pod) -> PodIx {
        self.pod_counter += 1;
        let ix = PodIx(self.pod_counter);
        let node = self
            .nodes
            .get_mut(&pod.node)
            .expect("a pod on a node that is gone");
        node.ledger.take(&pod.held);
        self.pods_on.entry(pod.node).or_default().insert(ix);
        let function = self
            .functions
            .get_mut(&pod.func)
            .expect("a pod of no function");
        function.pods.insert(ix);
        let tenant = function.key.tenant.clone();
        self.tenant_pods.entry(tenant).or_default().insert(ix);
        self.pod_ids.insert(pod.id.clone(), ix);
        let since_ms = pod.since_ms;
        self.pods.insert(ix, pod);
        self.list_moved(since_ms, ix, None);
        ix
    }

    /// A pod id that no pod has: the prefix of this process and a counter, 12 characters.
    pub(super) fn new_pod_id(&mut self) -> String {
        let prefix = &self.config.pod_id_prefix;
        let width = 12_usize.saturating_sub(prefix.len()).max(4);
        let mut number = self.pod_counter + 1;
        loop {
            let id = format!("{prefix}{number:0width$x}");
            if !self.pod_ids.contains_key(&id) && !self.tombstones.contains(&id) {
                return id;
            }
            number += 1;
        }
    }
}

/// A pod with nothing going on.
#[allow(clippy::too_many_arguments)]
pub(super) fn new_pod(
    id: String,
    func: super::model::FuncId,
    revision: i64,
    node: crate::nodes::NodeId,
    spec: super::model::Spec,
    slots: u32,
    state: State,
    now_ms: u64,
) -> Pod {
    Pod {
        id,
        func,
        revision,
        node,
        spec,
        state,
        reason: String::new(),
        op: None,
        order: 0,
        held: Holding::default(),
        parked: Holding::default(),
        slots,
        leased: 0,
        start: StartKind::Cold,
        tier: None,
        since_ms: now_ms,
        ready_ms: 0,
        used_ms: now_ms,
        resident: false,
        held_since_ms: None,
        busy_ms: 0,
        busy_since_ms: 0,
        held_until_ms: None,
        adopted: false,
        ordered: false,
        broken: false,
        makes_room_for: None,
        victims: Vec::new(),
        lent: Holding::default(),
        shown: false,
        died: false,
        parking_seen: false,
        retry_at_ms: None,
        timer_ms: None,
        listed_ms: None,
    }
}
