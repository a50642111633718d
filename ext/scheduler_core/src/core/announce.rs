//! Gateways as the core knows them: heartbeats, and leases announced after a scheduler restart.
//! It must never hand out slots; an announced lease only confirms what a gateway holds already.

use super::Core;
use super::timers::Timer;
use crate::lease::{Lease, LeaseId};
use crate::pod::{Event, State};

impl Core {
    /// A gateway says hello; its leases live as long as it keeps doing so.
    pub fn connect(&mut self, now_ms: u64, gateway: i64) {
        self.touch_gateway(now_ms, gateway);
    }

    /// The process of a gateway is gone and nothing of it is in flight: its leases end at once.
    pub fn replace(&mut self, now_ms: u64, gateway: i64) {
        self.end_gateway(now_ms, gateway);
        self.settle(now_ms);
    }

    /// A heartbeat. False for a gateway that is not known (any more): it has to announce its
    /// leases.
    pub fn refresh(&mut self, now_ms: u64, gateway: i64) -> bool {
        let known = self.gateways.contains_key(&gateway);
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
        let Some(ix) = self.pod_ids.get(pod_id).copied() else {
            return false;
        };
        if let Some(id) = self.leases.resolve(lease_id) {
            let lease = self.leases.get(id).expect("resolved to a live lease");
            return lease.gateway == gateway && lease.pod == ix;
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
        for id in self.leases.of_gateway(gateway) {
            self.counters.leases_expired += 1;
            self.end_lease(now_ms, id);
        }
    }
}
