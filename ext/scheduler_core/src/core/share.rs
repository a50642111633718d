//! Fair shares: how many slots gateways keep while other gateways wait for some.
//! It must never take a slot in use: a gateway gives up slots when it has ended their calls.

use std::collections::{BTreeMap, BTreeSet};

use super::Core;
use super::model::FuncId;

impl Core {
    /// How many slots a lease may keep because another gateway waits for some of its function; 0 =
    /// none, it goes back. None when nobody else waits. What a gateway keeps is counted over its
    /// leases in the order of their ids.
    pub fn share(&self, lease_id: u64) -> Option<u32> {
        let id = self.leases.resolve(lease_id)?;
        let lease = self.leases.get(id)?;
        if !self.is_wanted(self.pod(lease.pod)) {
            return None;
        }
        let mut left = self.allowance(lease.func, lease.gateway)?;
        for other in self.leases.of_gateway(lease.gateway) {
            let held = self.leases.get(other)?;
            if held.func != lease.func || !self.is_wanted(self.pod(held.pod)) {
                continue;
            }
            let kept = held.slots.min(left);
            if other == id {
                return Some(kept);
            }
            left -= kept;
        }
        None
    }

    /// What a gateway may keep of a function. (1) None, meaning all, unless another gateway waits;
    /// (2) where one waits that has nothing, an equal share, even if that is nothing: there are
    /// fewer slots than gateways then, and they take turns; (3) otherwise one slot more than the
    /// poorest that waits, or an equal share, so that nobody passes one slot to and fro.
    fn allowance(&self, func: FuncId, gateway: i64) -> Option<u32> {
        let tickets = self.tickets.of_function(func);
        let waiting: BTreeSet<i64> = tickets
            .map(|(_, ticket)| ticket.gateway)
            .filter(|other| *other != gateway)
            .collect();
        // (1)
        if waiting.is_empty() {
            return None;
        }
        let held = self.held_by_gateway(func);
        let holders: BTreeSet<i64> = held.keys().copied().collect();
        let contenders = holders.union(&waiting).count().max(1) as u64;
        let share = self.slots_running(func) / contenders;
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let of = |id: &i64| held.get(id).copied().unwrap_or(0);
        let poorest = waiting.iter().map(of).min()?;
        Some(match poorest {
            // (2)
            0 => share,
            // (3)
            slots => share.max(slots.saturating_add(1)),
        })
    }

    fn held_by_gateway(&self, func: FuncId) -> BTreeMap<i64, u32> {
        let mut held = BTreeMap::new();
        for ix in &self.functions[&func].pods {
            if !self.is_wanted(self.pod(*ix)) {
                continue;
            }
            for lease in self.leases.of_pod(*ix) {
                if let Some(lease) = self.leases.get(lease) {
                    let sum: &mut u32 = held.entry(lease.gateway).or_default();
                    *sum = sum.saturating_add(lease.slots);
                }
            }
        }
        held
    }

    /// A gateway holds only so many slots under a lease from now on, at least one; the others go to
    /// those who wait. False when the lease is not live.
    pub fn trim(&mut self, now_ms: u64, lease_id: u64, slots: u32) -> bool {
        let Some(id) = self.leases.resolve(lease_id) else {
            return false;
        };
        let (given_up, func, pod) = self.leases.trim(id, slots.max(1));
        if given_up > 0 {
            let pod = self.pod_mut(pod);
            pod.leased -= given_up;
            pod.used_ms = now_ms;
            self.dirty.insert(func);
            self.settle(now_ms);
        }
        true
    }
}
