//! Gateways as the core knows them: heartbeats, and leases announced after a scheduler restart.
//! It must never hand out slots; an announced lease only confirms what a gateway holds already.

use std::collections::BTreeSet;

use super::Core;
use super::fault::Fault;
use super::model::PodIx;
use super::timers::Timer;
use crate::lease::{Lease, LeaseId};
use crate::pod::{Event, State};

/// The roll call of gateways: pods that were adopted are free for everybody as soon as each gateway
/// that might hold a lease on one has said what it holds, not only when old leases have run out.
#[derive(Debug, Default)]
pub(super) struct Roll {
    /// The caller knows every gateway; otherwise only time frees adopted pods.
    complete: bool,
    /// Gateways of a former scheduler that have not connected to this one.
    strangers: BTreeSet<i64>,
    /// Gateways that have not told their leases since a pod was adopted.
    unheard: BTreeSet<i64>,
    /// Pods that nobody has shown yet, and the gateways that say they hold them: their calls may
    /// run there when the pod is adopted.
    claims: BTreeSet<(String, i64)>,
    /// A claim was taken back, and its pod may be free.
    withdrawn: bool,
    /// Leases that were given back since the roll call began. The announcement of one may have
    /// been on its way already, and its gateway would never know of a lease that came of it.
    returned: BTreeSet<u64>,
}

impl Roll {
    /// Whether a pod that is adopted now may be in somebody's hands.
    pub(super) fn doubts(&mut self, pod_id: &str, gateways: impl Iterator<Item = i64>) -> bool {
        self.unheard.extend(gateways);
        !self.complete || !self.unheard.is_empty() || self.is_claimed(pod_id)
    }

    /// A lease is given back, known or not. It matters while somebody is waited for, which ends
    /// when leases do.
    pub(super) fn returns(&mut self, lease_id: u64) {
        if !self.unheard.is_empty() {
            self.returned.insert(lease_id);
        }
    }

    fn is_claimed(&self, pod_id: &str) -> bool {
        let mut from = self.claims.range((pod_id.to_owned(), i64::MIN)..);
        from.next().is_some_and(|(claimed, _)| claimed == pod_id)
    }

    fn withdraw(&mut self, gateway: i64) {
        let before = self.claims.len();
        self.claims.retain(|(_, claimant)| *claimant != gateway);
        self.withdrawn |= self.claims.len() < before;
    }
}

impl Core {
    /// A new leader names all gateways that may hold leases of its predecessor.
    pub fn expect(&mut self, now_ms: u64, gateways: &[i64]) {
        self.roll.complete = true;
        for gateway in gateways {
            self.touch_gateway(now_ms, *gateway);
            self.roll.strangers.insert(*gateway);
            self.roll.unheard.insert(*gateway);
        }
    }

    /// A gateway begins to tell what it holds, by `announce`, and ends with `heard`; its leases
    /// live as long as it keeps saying something. What it has told before counts no longer.
    pub fn connect(&mut self, now_ms: u64, gateway: i64) {
        self.touch_gateway(now_ms, gateway);
        self.roll.strangers.remove(&gateway);
        self.roll.withdraw(gateway);
    }

    /// A gateway has told every lease that it holds. Nobody waits for it any more, but for pods
    /// that it claims and that are not known yet.
    pub fn heard(&mut self, now_ms: u64, gateway: i64) {
        if self.roll.unheard.remove(&gateway) | std::mem::take(&mut self.roll.withdrawn) {
            self.release_confirmed(now_ms);
            self.settle(now_ms);
        }
        if self.roll.unheard.is_empty() {
            self.roll.returned.clear();
        }
    }

    /// A gateway names every lease that it holds. One that it has not named for as long as leases
    /// live is one that it knows nothing of, the grant having been lost: it ends.
    pub fn names(&mut self, now_ms: u64, gateway: i64, lease_ids: &[u64]) {
        for lease_id in lease_ids {
            if self.holds(gateway, *lease_id)
                && let Some(id) = self.leases.resolve(*lease_id)
            {
                self.leases.name(id, now_ms);
            }
        }
        let over = |id: &LeaseId| {
            let lease = self.leases.get(*id);
            lease.is_some_and(|it| it.named_ms + self.config.lease_ttl_ms <= now_ms)
        };
        let mut unknown = self.leases.of_gateway(gateway);
        unknown.retain(over);
        for id in &unknown {
            self.counters.leases_expired += 1;
            self.end_lease(now_ms, *id);
        }
        if !unknown.is_empty() {
            self.settle(now_ms);
        }
    }

    /// Whether this lease is live and the gateway's.
    pub fn holds(&self, gateway: i64, lease_id: u64) -> bool {
        let found = self.leases.resolve(lease_id);
        found.is_some_and(|id| self.leases.get(id).is_some_and(|it| it.gateway == gateway))
    }

    /// Nobody is left who could speak up for an adopted pod: what is not leased is free.
    fn release_confirmed(&mut self, now_ms: u64) {
        if !self.roll.complete || !self.roll.unheard.is_empty() {
            return;
        }
        let held = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.held_until_ms.is_some() && !self.roll.is_claimed(&pod.id));
        let held: Vec<PodIx> = held.map(|(ix, _)| *ix).collect();
        for ix in held {
            self.release_held(now_ms, ix);
        }
    }

    /// An adopted pod is like any other from now on.
    pub(super) fn release_held(&mut self, now_ms: u64, ix: PodIx) {
        let pod = self.pod_mut(ix);
        pod.held_until_ms = None;
        let func = pod.func;
        self.dirty.insert(func);
        self.capacity_changed = true;
        self.retire_unwanted(now_ms, ix);
        if self.pods.contains_key(&ix) {
            self.arm_idle(now_ms, ix);
        }
    }

    /// The process of a gateway is gone and nothing of it is in flight: its leases end at once.
    pub fn replace(&mut self, now_ms: u64, gateway: i64) {
        self.end_gateway(now_ms, gateway);
        self.settle(now_ms);
    }

    /// A heartbeat. False for a gateway that is not known (any more): it has to announce its
    /// leases.
    pub fn refresh(&mut self, now_ms: u64, gateway: i64) -> bool {
        let stranger = self.roll.strangers.contains(&gateway);
        let known = self.gateways.contains_key(&gateway) && !stranger;
        if known {
            self.touch_gateway(now_ms, gateway);
        }
        known
    }

    /// A gateway holds `slots` of a pod under a lease of this or a former scheduler process.
    /// False when the pod is gone or its slots are in other hands: the gateway has to drop it.
    pub fn announce(
        &mut self,
        now_ms: u64,
        gateway: i64,
        lease_id: u64,
        pod_id: &str,
        slots: u32,
    ) -> bool {
        self.touch_gateway(now_ms, gateway);
        if self.roll.returned.contains(&lease_id) {
            return false;
        }
        let Some(ix) = self.pod_ids.get(pod_id).copied() else {
            self.roll.claims.insert((pod_id.to_owned(), gateway));
            return false;
        };
        if let Some(id) = self.leases.resolve(lease_id) {
            let lease = self.leases.get(id).expect("resolved to a live lease");
            let theirs = lease.gateway == gateway && lease.pod == ix;
            if theirs {
                self.leases.name(id, now_ms);
            }
            return theirs;
        }
        let pod = self.pod(ix);
        // Outside the takeover an unknown lease is one that has ended here.
        let open = matches!(pod.state, State::Idle | State::Working);
        let slots = slots.max(1);
        if !open || pod.held_until_ms.is_none() || pod.free_slots() < slots {
            return false;
        }
        let func = pod.func;
        if pod.leased == 0 {
            self.apply(now_ms, ix, Event::Lease);
            self.pod_mut(ix).busy_since_ms = now_ms;
        }
        let consumer = self.visit_begins(now_ms, func, "");
        let pod = self.pod_mut(ix);
        pod.leased += slots;
        pod.used_ms = now_ms;
        let request_id = String::new();
        let id: LeaseId = self.leases.insert(Lease {
            gateway,
            consumer,
            request_id,
            func,
            pod: ix,
            slots,
            named_ms: now_ms,
        });
        self.leases.announce(lease_id, id);
        true
    }

    pub(super) fn touch_gateway(&mut self, now_ms: u64, gateway: i64) {
        if self.gateways.insert(gateway, now_ms).is_none() {
            self.timers
                .set(now_ms + self.config.lease_ttl_ms, Timer::Gateway(gateway));
        }
    }

    /// The alarm of a gateway: silent for too long, its leases end; otherwise look again later.
    pub(super) fn gateway_due(&mut self, now_ms: u64, gateway: i64) {
        let Some(seen_ms) = self.gateways.get(&gateway).copied() else {
            return;
        };
        let expires_ms = seen_ms + self.config.lease_ttl_ms;
        if expires_ms > now_ms {
            self.timers.set(expires_ms, Timer::Gateway(gateway));
            return;
        }
        self.end_gateway(now_ms, gateway);
    }

    fn end_gateway(&mut self, now_ms: u64, gateway: i64) {
        self.gateways.remove(&gateway);
        self.roll.strangers.remove(&gateway);
        self.roll.withdraw(gateway);
        self.heard(now_ms, gateway);
        if self.breaks(Fault::KeepLeasesOfSilent) {
            return;
        }
        for id in self.leases.of_gateway(gateway) {
            self.counters.leases_expired += 1;
            self.end_lease(now_ms, id);
        }
        self.leases.forget_gateway(gateway);
    }
}
