//! A pod's way through the core: becoming ready, being parked, ending; and its holding at each
//! step. It must never choose a pod; `plan`, `room` and `tick` do.

use super::Core;
use super::fault::Fault;
use super::messages::Effect;
use super::model::{FuncId, Op, PodIx};
use super::timers::Timer;
use crate::nodes::Holding;
use crate::pod::{Event, State};

/// Late news of this many ended pods is recognised.
const TOMBSTONES_MAX: usize = 65_536;

impl Core {
    /// A start or resume succeeded, so the pods that made room for it are gone or parked.
    pub(super) fn set_ready(&mut self, now_ms: u64, ix: PodIx) {
        for victim in std::mem::take(&mut self.pod_mut(ix).victims) {
            self.pod_mut(victim).makes_room_for = None;
            match self.pod(victim).op {
                Some(Op::Park) => self.set_parked(now_ms, victim),
                _ => self.remove_pod(now_ms, victim, true),
            }
        }
        self.save_follows(now_ms, ix);
        self.walk_to_idle(now_ms, ix);
        self.learn_start(now_ms, ix);
        let pod = self.pod_mut(ix);
        pod.op = None;
        pod.resident = false;
        (pod.ready_ms, pod.used_ms) = (now_ms, now_ms);
        let (func, node) = (pod.func, pod.node);
        self.drop_image(ix);
        let node = self
            .nodes
            .get_mut(&node)
            .expect("a pod on a node that is gone");
        (node.faults, node.retry_at_ms) = (0, 0);
        self.functions
            .get_mut(&func)
            .expect("a pod of no function")
            .backoff = Default::default();
        self.dirty.insert(func);
        self.retire_unwanted(now_ms, ix);
        if self.pod(ix).state == State::Idle {
            self.grant_waiting(now_ms, func);
            self.arm_idle_pods(now_ms, func);
        }
        self.capacity_changed = true;
    }

    fn walk_to_idle(&mut self, now_ms: u64, ix: PodIx) {
        loop {
            let event = match self.pod(ix).state {
                State::Init => Event::Create,
                State::Creating => Event::Started,
                State::Loading | State::Resuming => Event::ProbeOk,
                State::Ready => Event::Admit,
                _ => return,
            };
            self.apply(now_ms, ix, event);
        }
    }

    /// A resumed pod no longer needs the host copy of its GPU memory.
    fn drop_image(&mut self, ix: PodIx) {
        let pod = self.pods.get_mut(&ix).expect("a pod that is gone");
        let extra = Holding {
            cache_mib: pod.held.cache_mib.saturating_sub(pod.spec.cache_mib),
            ..Holding::default()
        };
        pod.held.subtract(&extra);
        let node = self.nodes.get_mut(&pod.node).expect("a node that is gone");
        node.ledger.release(&extra);
    }

    /// The agent holds the pod in standby: only host memory stays taken.
    pub(super) fn set_parked(&mut self, now_ms: u64, ix: PodIx) {
        self.apply(now_ms, ix, Event::Parked);
        self.leave_starter(ix);
        let pod = self.pods.get_mut(&ix).expect("a pod that is gone");
        let mut released = pod.held.clone();
        released.subtract(&pod.parked);
        pod.held = pod.parked.clone();
        pod.lent = Default::default();
        pod.op = None;
        pod.retry_at_ms = None;
        let (node, func) = (pod.node, pod.func);
        self.nodes
            .get_mut(&node)
            .expect("a node that is gone")
            .ledger
            .release(&released);
        self.capacity_changed = true;
        self.dirty.insert(func);
        self.retire_unwanted(now_ms, ix);
        self.plan_prewarm(now_ms, func);
    }

    /// Moves an idle pod towards standby; it takes the cache memory for its image at once.
    pub(super) fn begin_park(&mut self, now_ms: u64, ix: PodIx) {
        self.apply(now_ms, ix, Event::Park);
        self.charge(now_ms, ix);
        let pod = self.pods.get_mut(&ix).expect("a pod that is gone");
        (pod.op, pod.ordered) = (Some(Op::Park), true);
        pod.parking_seen = false;
        pod.parked = pod.spec.standby_holding(&pod.held);
        let extra = pod.spec.image_mib(&pod.held);
        pod.held.cache_mib += extra;
        // An adopted pod may hold less than its function asks for today.
        pod.parked = pod.parked.min(&pod.held);
        let node = self.nodes.get_mut(&pod.node).expect("a node that is gone");
        node.ledger.used.cache_mib += extra;
        self.counters.parks += 1;
        self.unmet_follows(ix);
    }

    /// Starts the end of a pod; its leases end with it.
    pub(super) fn begin_terminate(&mut self, now_ms: u64, ix: PodIx) {
        self.apply(now_ms, ix, Event::Terminate);
        self.end_leases_of(now_ms, ix);
        self.charge(now_ms, ix);
        let pod = self.pod_mut(ix);
        (pod.op, pod.ordered) = (Some(Op::Terminate), true);
        pod.held_until_ms = None;
        self.counters.terminations += 1;
        self.unmet_follows(ix);
        self.order_victims(ix);
    }

    /// A function that loses a replica is looked at again: `min_replica` may ask for another one.
    fn unmet_follows(&mut self, ix: PodIx) {
        let func = self.pod(ix).func;
        self.dirty.insert(func);
    }

    /// Ends a pod by an order of its own.
    pub(super) fn terminate(&mut self, now_ms: u64, ix: PodIx) {
        self.begin_terminate(now_ms, ix);
        let order = self.order_ref(ix);
        self.effects.push(Effect::Terminate(order));
    }

    /// Parks a pod by an order of its own.
    pub(super) fn park(&mut self, now_ms: u64, ix: PodIx) {
        self.begin_park(now_ms, ix);
        let order = self.order_ref(ix);
        self.effects.push(Effect::Park(order));
    }

    /// Ends a pod that nobody may use any more, as soon as no lease is on it. During the takeover
    /// an adopted pod is left alone: its gateway may still announce itself.
    pub(super) fn retire_unwanted(&mut self, now_ms: u64, ix: PodIx) {
        let Some(pod) = self.pods.get(&ix) else {
            return;
        };
        let free = pod.leased == 0 && pod.held_until_ms.is_none() && pod.op != Some(Op::Park);
        if pod.state.is_live() && free && !self.is_wanted(pod) {
            self.terminate(now_ms, ix);
        }
    }

    /// Nobody used the pod for a while: park it, or end it where a standby is not possible.
    /// Replicas that the policy wants running stay.
    pub(super) fn retire_idle(&mut self, now_ms: u64, ix: PodIx) -> bool {
        let func = self.pod(ix).func;
        if self.running(func) <= self.min_replica(func) {
            return false;
        }
        match self.may_park(ix, 0) && self.image_fits(ix) {
            true => self.park(now_ms, ix),
            false => self.terminate(now_ms, ix),
        }
        true
    }

    /// Idle replicas beyond the maximum leave, those unused longest first; busy ones stay until
    /// they are idle.
    pub(super) fn retire_surplus(&mut self, now_ms: u64, func: FuncId) {
        let mut idle: Vec<PodIx> = self.pods_of(func);
        idle.retain(|ix| self.is_evictable(self.pod(*ix)));
        idle.sort_by_key(|ix| (self.pod(*ix).used_ms, *ix));
        for ix in idle {
            if self.running(func) > self.functions[&func].policy.max_replica {
                self.retire_idle(now_ms, ix);
            }
        }
    }

    fn image_fits(&self, ix: PodIx) -> bool {
        let pod = self.pod(ix);
        let image_mib = pod.spec.image_mib(&pod.held);
        self.nodes[&pod.node].ledger.has_cache(image_mib)
    }

    /// Does the function's policy and its tenant allow one more standby pod on that node, when
    /// `more` others are about to be parked?
    pub(super) fn may_park(&self, ix: PodIx, more: u32) -> bool {
        let pod = self.pod(ix);
        let function = &self.functions[&pod.func];
        let is_parked = |p: &&PodIx| matches!(self.pod(**p).state, State::Standby | State::Parking);
        let here = |p: &&PodIx| self.pod(**p).node == pod.node;
        let on_node = function.pods.iter().filter(is_parked).filter(here).count() as u32;
        if !self.is_wanted(pod) || on_node + more >= function.policy.standby_per_node {
            return false;
        }
        let Some(tenant) = self.tenants.get(&function.key.tenant) else {
            return true;
        };
        let parked_of_tenant = || {
            let pods = self.pods_of_tenant(&function.key.tenant);
            pods.filter(is_parked).count() as u32
        };
        let within = |limit| parked_of_tenant() + more < limit;
        tenant.allow_standby && tenant.standby_max.is_none_or(within)
    }

    pub(super) fn pods_of_tenant<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a PodIx> {
        self.tenant_pods.get(name).into_iter().flatten()
    }

    pub(super) fn arm_idle_pods(&mut self, now_ms: u64, func: FuncId) {
        let pods: Vec<PodIx> = self.functions[&func].pods.iter().copied().collect();
        for ix in pods {
            if self.pod(ix).state == State::Idle {
                self.arm_idle(now_ms, ix);
            }
        }
    }

    pub(super) fn end_leases_of(&mut self, now_ms: u64, ix: PodIx) {
        for id in self.leases.of_pod(ix) {
            if let Some(lease) = self.leases.remove(id) {
                self.visit_ends(now_ms, lease.func, lease.consumer);
            }
        }
        self.pod_mut(ix).leased = 0;
    }

    /// The start that was to end or park these pods will not: each gets an order of its own, for
    /// whether the agent got that far is not known, and asking twice does no harm.
    pub(super) fn order_victims(&mut self, starter: PodIx) {
        for ix in self.pod(starter).victims.clone() {
            if self.pod(ix).order != 0 {
                continue;
            }
            let order = self.order_ref(ix);
            self.effects.push(match self.pod(ix).op {
                Some(Op::Park) => Effect::Park(order),
                _ => Effect::Terminate(order),
            });
        }
    }

    fn leave_starter(&mut self, ix: PodIx) {
        if let Some(starter) = self.pod_mut(ix).makes_room_for.take() {
            self.pod_mut(starter).victims.retain(|victim| *victim != ix);
        }
    }

    /// Forgets a pod that no longer exists and frees what it held. What pods that were to make room
    /// for it had passed on goes back to them, because they are still there.
    pub(super) fn remove_pod(&mut self, now_ms: u64, ix: PodIx, tombstone: bool) {
        self.order_victims(ix);
        self.leave_starter(ix);
        self.end_leases_of(now_ms, ix);
        self.leases.forget_pod(ix);
        self.list_removed(ix);
        let pod = self.pods.remove(&ix).expect("a pod is removed once");
        self.save_forsaken(pod.func, pod.node, ix);
        let skipped = self.breaks(Fault::SkipRelease);
        let node = self.nodes.get_mut(&pod.node).expect("a node that is gone");
        if !skipped {
            node.ledger.release(&pod.held);
        }
        for victim in &pod.victims {
            let victim = self.pods.get_mut(victim).expect("a victim that is gone");
            let lent = std::mem::take(&mut victim.lent);
            node.ledger.take(&lent);
            victim.held.add(&lent);
            victim.makes_room_for = None;
        }
        if let Some(at_ms) = pod.timer_ms {
            self.timers.clear(at_ms, Timer::Pod(ix));
        }
        self.pod_ids.remove(&pod.id);
        if let Some(pods) = self.pods_on.get_mut(&pod.node) {
            pods.remove(&ix);
        }
        let function = self
            .functions
            .get_mut(&pod.func)
            .expect("a pod of no function");
        function.pods.remove(&ix);
        let tenant = &function.key.tenant;
        if let Some(pods) = self.tenant_pods.get_mut(tenant) {
            pods.remove(&ix);
            if pods.is_empty() {
                self.tenant_pods.remove(tenant);
            }
        }
        self.dirty.insert(pod.func);
        self.capacity_changed = true;
        if tombstone {
            self.bury(pod.id);
        }
        self.forget_function(pod.func);
    }

    fn bury(&mut self, pod_id: String) {
        self.tombstones.insert(pod_id.clone());
        self.tombstone_order.push_back(pod_id);
        while self.tombstone_order.len() > TOMBSTONES_MAX {
            if let Some(oldest) = self.tombstone_order.pop_front() {
                self.tombstones.remove(&oldest);
            }
        }
    }
}
