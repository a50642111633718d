//! Making room: the cheapest sufficient set of idle and standby pods of one node.
//! It must never touch a pod with a lease, nor go below a function's `min_replica`.
//!
//! An idle pod that is parked comes back in about a second, a standby pod that is ended costs a
//! start from nothing later, an idle pod that is ended costs both; hence the order of the costs.
//! Within one cost the pod that was unused longest goes first. Pods are added until the request
//! fits, then every one that turned out not to be needed is spared again, the dearest first.
//! Nothing oscillates: a pod becomes a victim only for a ticket that waits, and a pod with a lease
//! never does.

use std::collections::BTreeMap;

use super::Core;
use super::model::{FuncId, Op, Pod, PodIx};
use crate::nodes::{GpuShare, Holding, Ledger, NodeId, Request};
use crate::pod::State;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Park,
    EndStandby,
    EndIdle,
}

impl Deed {
    fn cost(self) -> u64 {
        match self {
            Deed::Park => 1,
            Deed::EndStandby => 20,
            Deed::EndIdle => 40,
        }
    }
}

/// A set of pods that makes a request fit, and the holding it then gets.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    pub holding: Holding,
    victims: Vec<(PodIx, Deed)>,
    newest_ms: u64,
}

impl Room {
    /// Cheaper first, then the one whose youngest victim was unused longest.
    pub fn cost(&self) -> (u64, u64) {
        (
            self.victims.iter().map(|(_, deed)| deed.cost()).sum(),
            self.newest_ms,
        )
    }
}

impl Core {
    /// An idle pod without leases that is not reserved for its gateway.
    pub(super) fn is_evictable(&self, pod: &Pod) -> bool {
        pod.state == State::Idle && pod.op.is_none() && pod.held_until_ms.is_none()
    }

    /// The cheapest sufficient victims on a node for `request`, sparing `keep`.
    pub(super) fn make_room(
        &self,
        node: NodeId,
        request: &Request,
        keep: Option<PodIx>,
    ) -> Option<Room> {
        let ledger = &self.nodes[&node].ledger;
        let mut idle = Vec::new();
        let mut standby = Vec::new();
        for ix in self.pods_on.get(&node).into_iter().flatten() {
            let pod = self.pod(*ix);
            if Some(*ix) == keep {
                continue;
            } else if self.is_evictable(pod) {
                idle.push(*ix);
            } else if pod.state == State::Standby && pod.op.is_none() {
                standby.push(*ix);
            }
        }
        let by_age = |ix: &PodIx| (self.pod(*ix).used_ms, *ix);
        idle.sort_by_key(by_age);
        standby.sort_by_key(by_age);
        let mut victims = self.enough(ledger, request, &self.parkable(idle), &standby)?;
        self.spare(ledger, request, &mut victims);
        let holding = self.after(ledger, &victims).fit(request).ok()?;
        let newest_ms = victims
            .iter()
            .map(|(ix, _)| self.pod(*ix).used_ms)
            .max()
            .unwrap_or(0);
        Some(Room {
            holding,
            victims,
            newest_ms,
        })
    }

    /// Which idle pods may go, and how: parked where that is allowed.
    fn parkable(&self, idle: Vec<PodIx>) -> Vec<(PodIx, Deed)> {
        let mut leaving: BTreeMap<FuncId, u32> = BTreeMap::new();
        let mut parked: BTreeMap<FuncId, u32> = BTreeMap::new();
        let mut deeds = Vec::new();
        for ix in idle {
            let func = self.pod(ix).func;
            let gone = leaving.entry(func).or_default();
            if self.running(func) <= self.min_replica(func) + *gone {
                continue;
            }
            *gone += 1;
            let more = parked.entry(func).or_default();
            if self.may_park(ix, *more) {
                *more += 1;
                deeds.push((ix, Deed::Park));
            } else {
                deeds.push((ix, Deed::EndIdle));
            }
        }
        deeds
    }

    fn enough(
        &self,
        ledger: &Ledger,
        request: &Request,
        idle: &[(PodIx, Deed)],
        standby: &[PodIx],
    ) -> Option<Vec<(PodIx, Deed)>> {
        let fits = |victims: &[(PodIx, Deed)]| {
            let after = self.after(ledger, victims);
            after.is_within_capacity() && after.fit(request).is_ok()
        };
        let mut victims: Vec<(PodIx, Deed)> = Vec::new();
        let ended = standby.iter().map(|ix| (*ix, Deed::EndStandby));
        for victim in idle.iter().copied().chain(ended) {
            victims.push(victim);
            if fits(&victims) {
                return Some(victims);
            }
        }
        // Parking takes host memory; where that is what is missing the pods have to end.
        for at in 0..victims.len() {
            if victims[at].1 == Deed::Park {
                victims[at].1 = Deed::EndIdle;
                if fits(&victims) {
                    return Some(victims);
                }
            }
        }
        None
    }

    fn spare(&self, ledger: &Ledger, request: &Request, victims: &mut Vec<(PodIx, Deed)>) {
        let mut order = victims.clone();
        order
            .sort_by_key(|(ix, deed)| std::cmp::Reverse((deed.cost(), self.pod(*ix).used_ms, *ix)));
        for victim in order {
            let rest: Vec<_> = victims
                .iter()
                .copied()
                .filter(|other| *other != victim)
                .collect();
            let after = self.after(ledger, &rest);
            if after.is_within_capacity() && after.fit(request).is_ok() {
                *victims = rest;
            }
        }
    }

    /// The books of a node once these victims are gone.
    fn after(&self, ledger: &Ledger, victims: &[(PodIx, Deed)]) -> Ledger {
        let mut after = ledger.clone();
        for (ix, deed) in victims {
            let pod = self.pod(*ix);
            after.release(&pod.held);
            if *deed == Deed::Park {
                after.take(&pod.spec.standby_holding(&pod.held));
            }
        }
        after
    }

    /// Would the request fit once the pods that end or are being parked there are done?
    pub(super) fn fits_after_releases(&self, node: NodeId, request: &Request) -> bool {
        let mut after = self.nodes[&node].ledger.clone();
        let mut any = false;
        for ix in self.pods_on.get(&node).into_iter().flatten() {
            let pod = self.pod(*ix);
            match pod.state {
                State::Terminating => after.release(&pod.held),
                State::Parking => {
                    after.release(&pod.held);
                    after.take(&pod.parked);
                }
                _ => continue,
            }
            any = true;
        }
        any && after.fit(request).is_ok()
    }

    /// Sets the victims in motion and passes on what the new pod needs of their holdings, so that
    /// taken plus free stays exact while they leave. Returns those to end and those to park.
    pub(super) fn commit_room(
        &mut self,
        now_ms: u64,
        starter: PodIx,
        more: &Holding,
        room: Room,
    ) -> (Vec<PodIx>, Vec<PodIx>) {
        let (mut terminate, mut park) = (Vec::new(), Vec::new());
        for (ix, deed) in &room.victims {
            match deed {
                Deed::Park => {
                    self.begin_park(now_ms, *ix);
                    park.push(*ix);
                }
                Deed::EndStandby | Deed::EndIdle => {
                    self.begin_terminate(now_ms, *ix);
                    terminate.push(*ix);
                }
            }
        }
        let node = self.pod(starter).node;
        for (ix, _) in &room.victims {
            let ledger = &mut self.nodes.get_mut(&node).expect("chosen").ledger;
            let missing = missing(ledger, more);
            let victim = self.pods.get_mut(ix).expect("chosen");
            let mut releasable = victim.held.clone();
            if victim.op == Some(Op::Park) {
                releasable.subtract(&victim.parked);
            }
            let lent = releasable.min(&missing);
            victim.held.subtract(&lent);
            ledger.release(&lent);
            victim.lent = lent;
            victim.makes_room_for = Some(starter);
            victim.order = 0;
        }
        self.pod_mut(starter).victims = room.victims.into_iter().map(|(ix, _)| ix).collect();
        (terminate, park)
    }
}

/// What `more` needs beyond what is free.
fn missing(ledger: &Ledger, more: &Holding) -> Holding {
    let (used, has) = (&ledger.used, &ledger.capacity);
    let over = |used: u64, more: u64, has: u64| (used + more).saturating_sub(has);
    let gpus = more.gpus.iter().map(|share| {
        let gpu = has.gpus.iter().find(|gpu| gpu.index == share.index);
        let taken = used.gpus.iter().find(|taken| taken.index == share.index);
        let (mib, contexts) = taken.map_or((0, 0), |taken| (taken.mib, taken.contexts));
        let limit = match has.contexts_per_gpu_max {
            0 => u32::MAX,
            limit => limit,
        };
        GpuShare {
            index: share.index,
            mib: over(mib, share.mib, gpu.map_or(0, |gpu| gpu.vram_mib)),
            contexts: (contexts + share.contexts).saturating_sub(limit),
        }
    });
    Holding {
        cpu_millis: over(used.cpu_millis, more.cpu_millis, has.cpu_millis),
        mem_mib: over(used.mem_mib, more.mem_mib, has.mem_mib),
        cache_mib: match has.cache_mib {
            0 => 0,
            limit => over(used.cache_mib, more.cache_mib, limit),
        },
        gpus: gpus.collect(),
    }
}
