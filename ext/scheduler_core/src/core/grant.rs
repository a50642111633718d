//! The verbs of gateways: lease, give back, cancel; and the hand-out of free slots to tickets.
//! It must never start a pod; what is missing is left to `plan`.

use super::Core;
use super::fault::Fault;
use super::messages::{Answer, Ask, Effect, Grant, Refusal};
use super::model::{FuncId, FuncKey, Pod, PodIx, StartKind};
use super::timers::Timer;
use crate::keepalive::TenantIx;
use crate::lease::{Lease, LeaseId};
use crate::pod::{Event, State};
use crate::queue::{Ticket, TicketId};

impl Core {
    /// Slots of a function for a gateway: (1) an unknown or disabled function is refused; (2) a
    /// request seen before gets its lease or ticket again; (3) a free slot is leased unless an
    /// older ticket waits; (4) a full queue is refused; (5) the ask is queued, and starts are
    /// planned; (6) what can never be served is refused at once with the reason.
    pub fn lease(&mut self, now_ms: u64, ask: Ask) -> Answer {
        self.touch_gateway(now_ms, ask.gateway);
        let func = match self.callable(&ask.key) {
            Ok(func) => func,
            Err(refusal) => return self.refused(refusal),
        };
        let known = self.leases.of_request(ask.gateway, &ask.request_id);
        if let Some(id) = known.filter(|_| !self.breaks(Fault::ForgetRequest)) {
            let lease = self
                .leases
                .get(id)
                .expect("the index names a lease that is gone");
            let pod_id = self.pod(lease.pod).id.clone();
            let slots = lease.slots;
            self.leases.name(id, now_ms);
            return Answer::Leased(Grant {
                lease: id,
                pod_id,
                slots,
                start: StartKind::Warm,
            });
        }
        if let Some(ticket) = self.tickets.of_request(ask.gateway, &ask.request_id) {
            return Answer::Queued(ticket);
        }
        if self.tickets.waiting(func) == 0
            && let Some(pod) = self.pod_with_slots(func, ask.slots)
        {
            let slots = self
                .slots_for(func, ask.slots)
                .min(self.pod(pod).free_slots());
            let consumer = self.visit_begins(now_ms, func, &ask.consumer);
            let grant = self.grant(now_ms, pod, ask.gateway, consumer, ask.request_id, slots);
            self.counters.grants_warm += 1;
            return Answer::Leased(grant);
        }
        if let Some(refusal) = self.queue_full(func) {
            return self.refused(refusal);
        }
        let timeout_ms = self.functions[&func].policy.queue_timeout_ms;
        let deadline_ms = if ask.deadline_ms == 0 {
            now_ms + timeout_ms
        } else {
            ask.deadline_ms
        };
        let consumer = self.visit_begins(now_ms, func, &ask.consumer);
        let id = self.tickets.push(Ticket {
            func,
            gateway: ask.gateway,
            consumer,
            request_id: ask.request_id,
            slots: ask.slots,
            queued_ms: now_ms,
            deadline_ms,
        });
        self.timers.set(deadline_ms, Timer::Ticket(id));
        self.dirty.insert(func);
        self.settle(now_ms);
        self.answered_at_once(id).unwrap_or(Answer::Queued(id))
    }

    /// Gives a lease back. False when it was given back before, has expired or never was.
    /// `ok` = false: the worker is broken and ends when its last lease is back.
    pub fn give_back(&mut self, now_ms: u64, lease_id: u64, ok: bool) -> bool {
        self.roll.returns(lease_id);
        let Some(id) = self.leases.resolve(lease_id) else {
            return self.breaks(Fault::AcceptStaleLease);
        };
        let (gateway, pod) = {
            let lease = self.leases.get(id).expect("resolved to a live lease");
            (lease.gateway, lease.pod)
        };
        self.touch_gateway(now_ms, gateway);
        if !ok {
            self.pod_mut(pod).broken = true;
        }
        self.end_lease(now_ms, id);
        self.settle(now_ms);
        true
    }

    /// Takes a ticket back. False when it was answered before.
    pub fn cancel(&mut self, now_ms: u64, ticket: TicketId) -> bool {
        let Some(taken) = self.take_ticket(ticket) else {
            return false;
        };
        self.visit_ends(now_ms, taken.func, taken.consumer);
        self.dirty.insert(taken.func);
        self.settle(now_ms);
        true
    }

    fn callable(&self, key: &FuncKey) -> Result<FuncId, Refusal> {
        let name = || format!("{}/{}/{}", key.tenant, key.namespace, key.name);
        let found = self.func_ids.get(key).copied();
        match found.filter(|func| self.functions[func].present) {
            None => Err(Refusal::new(
                "function_not_found",
                format!("no function {}", name()),
            )),
            Some(_) if self.is_disabled(key) && !self.breaks(Fault::ServeDisabled) => {
                let why = format!("the tenant or namespace of {} is disabled", name());
                Err(Refusal::new("disabled", why))
            }
            Some(func) => Ok(func),
        }
    }

    fn refused(&mut self, refusal: Refusal) -> Answer {
        self.counters.refusals += 1;
        Answer::Refused(refusal)
    }

    fn queue_full(&self, func: FuncId) -> Option<Refusal> {
        let function = &self.functions[&func];
        let (waiting, limit) = (self.tickets.waiting(func), function.policy.queue_len.max(1));
        if waiting >= limit as usize && !self.breaks(Fault::IgnoreQueueLimit) {
            let why = format!("{waiting} requests wait for {} already", function.key.name);
            return Some(Refusal::new("queue_full", why).retry_after(1_000));
        }
        let tenant = &function.key.tenant;
        let limit = self.tenants.get(tenant)?.queue_len_max?;
        if self.tickets.len() < limit.max(1) as usize {
            return None; // whoever they are of
        }
        let of_tenant = |t: &Ticket| self.functions[&t.func].key.tenant == *tenant;
        let waiting = self
            .tickets
            .iter()
            .filter(|(_, ticket)| of_tenant(ticket))
            .count();
        (waiting >= limit.max(1) as usize).then(|| {
            let why = format!("{waiting} requests of tenant {tenant} wait already");
            Refusal::new("queue_full", why).retry_after(1_000)
        })
    }

    /// A ticket that was answered while it was made: the answer is the verb's own.
    fn answered_at_once(&mut self, id: TicketId) -> Option<Answer> {
        if self.tickets.get(id).is_some() {
            return None;
        }
        let answers = |effect: &Effect| match effect {
            Effect::Grant { ticket, .. } | Effect::Refuse { ticket, .. } => *ticket == id,
            _ => false,
        };
        let at = self.effects.iter().rposition(answers)?;
        match self.effects.remove(at) {
            Effect::Grant { grant, .. } => Some(Answer::Leased(grant)),
            Effect::Refuse { refusal, .. } => Some(Answer::Refused(refusal)),
            _ => None,
        }
    }

    fn slots_for(&self, func: FuncId, asked: u32) -> u32 {
        let parallel = self.functions[&func].policy.parallel.max(1);
        if asked == 0 {
            parallel
        } else {
            asked.min(parallel)
        }
    }

    /// May slots of this pod be handed out?
    pub(super) fn is_leasable(&self, pod: &Pod) -> bool {
        matches!(pod.state, State::Idle | State::Working)
            && pod.held_until_ms.is_none()
            && pod.free_slots() > 0
            && (self.is_wanted(pod) || self.breaks(Fault::LeaseOldRevision))
    }

    /// The pod to lease from: enough free slots before too few, busy before idle (so that idle ones
    /// can be parked), the most recently used before others.
    fn pod_with_slots(&self, func: FuncId, asked: u32) -> Option<PodIx> {
        let want = self.slots_for(func, asked);
        let pods = self.functions[&func]
            .pods
            .iter()
            .map(|ix| (*ix, self.pod(*ix)));
        let best = pods
            .filter(|(_, pod)| self.is_leasable(pod))
            .max_by_key(|(ix, pod)| {
                (
                    pod.free_slots().min(want),
                    pod.state == State::Working,
                    pod.used_ms,
                    *ix,
                )
            });
        best.map(|(ix, _)| ix)
    }

    /// Hands free slots of a function to its tickets, oldest first. Where no further pod is on its
    /// way, those who wait share what there is, so that gateways do not need a replica each.
    pub(super) fn grant_waiting(&mut self, now_ms: u64, func: FuncId) {
        while let Some(id) = self.next_ticket(func) {
            let asked = self.tickets.get(id).map_or(0, |ticket| ticket.slots);
            let Some(pod) = self.pod_with_slots(func, asked) else {
                return;
            };
            let others = self
                .tickets
                .waiting(func)
                .saturating_sub(self.starting(func))
                .max(1);
            let free = self.pod(pod).free_slots();
            let share = (free / others as u32).max(1);
            let slots = self.slots_for(func, asked).min(share);
            let ticket = self.take_ticket(id).expect("the oldest ticket is queued");
            if self.breaks(Fault::ForgetTicket) && id.0 % 16 == 0 {
                self.visit_ends(now_ms, func, ticket.consumer);
                continue;
            }
            // Slots that came back were warm; only a start after the call explains its wait.
            let start = match self.pod(pod) {
                pod if pod.ready_ms >= ticket.queued_ms => pod.start,
                _ => StartKind::Warm,
            };
            let consumer = ticket.consumer;
            let grant = self.grant(
                now_ms,
                pod,
                ticket.gateway,
                consumer,
                ticket.request_id,
                slots,
            );
            self.counters.grants_waited += 1;
            self.effects.push(Effect::Grant {
                ticket: id,
                grant: Grant { start, ..grant },
            });
        }
    }

    /// The ticket whose turn it is: the oldest of the function.
    fn next_ticket(&self, func: FuncId) -> Option<TicketId> {
        if self.breaks(Fault::YoungestFirst) {
            return self.tickets.of_function(func).map(|(id, _)| id).last();
        }
        self.tickets.oldest(func)
    }

    /// Pods of the current revision that are on their way to ready.
    pub(super) fn starting(&self, func: FuncId) -> usize {
        let pods = self.functions[&func].pods.iter().map(|ix| self.pod(*ix));
        pods.filter(|pod| pod.state.is_starting() && self.is_wanted(pod))
            .count()
    }

    pub(super) fn grant(
        &mut self,
        now_ms: u64,
        ix: PodIx,
        gateway: i64,
        consumer: TenantIx,
        request_id: String,
        slots: u32,
    ) -> Grant {
        if self.pod(ix).leased == 0 {
            self.apply(now_ms, ix, Event::Lease);
            self.pod_mut(ix).busy_since_ms = now_ms;
        }
        let counted = if self.breaks(Fault::GrantTwice) {
            0
        } else {
            slots
        };
        let pod = self.pod_mut(ix);
        pod.leased += counted;
        pod.used_ms = now_ms;
        let (func, pod_id) = (pod.func, pod.id.clone());
        let lease = self.leases.insert(Lease {
            gateway,
            consumer,
            request_id,
            func,
            pod: ix,
            slots,
            named_ms: now_ms,
        });
        self.touch_gateway(now_ms, gateway);
        Grant {
            lease,
            pod_id,
            slots,
            start: StartKind::Warm,
        }
    }

    /// Ends a lease; its slots go to the oldest ticket of the function before anything else
    /// happens.
    pub(super) fn end_lease(&mut self, now_ms: u64, id: LeaseId) {
        let Some(lease) = self.leases.remove(id) else {
            return;
        };
        let ix = lease.pod;
        let pod = self.pod_mut(ix);
        pod.leased = pod
            .leased
            .checked_sub(lease.slots)
            .expect("more slots back than leased");
        pod.used_ms = now_ms;
        if pod.leased == 0 {
            pod.busy_ms += now_ms.saturating_sub(pod.busy_since_ms);
        }
        let idle = pod.leased == 0 && pod.state == State::Working;
        self.visit_ends(now_ms, lease.func, lease.consumer);
        if idle {
            self.apply(now_ms, ix, Event::GiveBack);
            self.retire_unwanted(now_ms, ix);
        }
        // Without anybody who waits there is nothing to settle: this is the path of a warm call.
        if self.tickets.waiting(lease.func) > 0 || self.functions[&lease.func].surplus {
            self.dirty.insert(lease.func);
            self.grant_waiting(now_ms, lease.func);
        }
        if self
            .pods
            .get(&ix)
            .is_some_and(|pod| pod.state == State::Idle)
        {
            // An idle pod may now make room for others, and is parked when nobody wants it.
            self.capacity_changed |= !self.unmet.is_empty();
            self.arm_idle(now_ms, ix);
        }
    }

    pub(super) fn take_ticket(&mut self, id: TicketId) -> Option<Ticket> {
        let ticket = self.tickets.remove(id)?;
        self.timers.clear(ticket.deadline_ms, Timer::Ticket(id));
        Some(ticket)
    }

    pub(super) fn refuse(&mut self, now_ms: u64, id: TicketId, refusal: Refusal) {
        if let Some(ticket) = self.take_ticket(id) {
            self.visit_ends(now_ms, ticket.func, ticket.consumer);
            self.counters.refusals += 1;
            self.effects.push(Effect::Refuse {
                ticket: id,
                refusal,
            });
        }
    }

    pub(super) fn refuse_all(&mut self, now_ms: u64, func: FuncId, refusal: &Refusal) {
        while let Some(id) = self.tickets.oldest(func) {
            self.refuse(now_ms, id, refusal.clone());
        }
    }
}
