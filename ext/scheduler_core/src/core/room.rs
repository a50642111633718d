//! Making room: the cheapest sufficient set of idle and standby pods of one node.
//! It must never touch a pod with a lease, nor go below a function's `min_replica`.
//!
//! What a victim costs is the wait that it will cause: the calls that the keep-alive policy expects
//! of its function soon x the time to bring it back (a resume for one that is parked, a start from
//! nothing for one that ends), and a little for the deed itself. Victims are added in the order of
//! that cost per MiB they give up, of equals the one unused longest, until the request fits; then
//! every one that turned out not to be needed is spared again, the dearest first.
//!
//! Nothing oscillates: a pod becomes a victim only for a ticket that waits, a pod with a lease
//! never does, and one that became ready less than `Config::residence_min_ms` ago does not either.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Core;
use super::fault::Fault;
use super::model::{Eviction, FuncId, Op, Pod, PodIx};
use crate::nodes::{GpuShare, Holding, Ledger, NodeId, Request};
use crate::pod::State;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Park,
    EndStandby,
    EndIdle,
}

impl Deed {
    /// The cost of the deed itself in expected milliseconds waited: it decides between pods that
    /// nobody is expected to call.
    fn effort(self) -> f64 {
        match self {
            Deed::Park => 1.0,
            Deed::EndStandby => 20.0,
            Deed::EndIdle => 40.0,
        }
    }
}

/// A pod that may leave, how, what that costs, and the order in which it is considered.
#[derive(Clone, Copy, Debug)]
struct Victim {
    ix: PodIx,
    deed: Deed,
    cost: f64,
    cost_per_mib: f64,
    used_ms: u64,
}

impl Victim {
    fn cheaper(&self, other: &Victim) -> Ordering {
        let by_cost = self.cost_per_mib.total_cmp(&other.cost_per_mib);
        by_cost.then((self.used_ms, self.ix).cmp(&(other.used_ms, other.ix)))
    }
}

/// A set of pods that makes a request fit, and the holding it then gets.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    pub holding: Holding,
    victims: Vec<Victim>,
    newest_ms: u64,
}

impl Room {
    /// What the victims cost: milliseconds that calls are expected to wait for them.
    pub fn cost(&self) -> f64 {
        self.victims.iter().map(|victim| victim.cost).sum()
    }

    /// Cheaper first, then the one whose youngest victim was unused longest.
    pub fn cheaper(&self, other: &Room) -> Ordering {
        let by_cost = self.cost().total_cmp(&other.cost());
        by_cost.then(self.newest_ms.cmp(&other.newest_ms))
    }
}

impl Core {
    /// An idle pod without leases that is not reserved for its gateway.
    pub(super) fn is_evictable(&self, pod: &Pod) -> bool {
        let idle = pod.state == State::Idle
            || (pod.state == State::Working && self.breaks(Fault::EvictBusy));
        idle && pod.op.is_none() && pod.held_until_ms.is_none()
    }

    /// It was ready for the minimum time, and may make room for others.
    pub(super) fn is_resident(&self, now_ms: u64, pod: &Pod) -> bool {
        pod.ready_ms + self.config.residence_min_ms <= now_ms
    }

    /// The cheapest sufficient victims on a node for `request`, sparing `keep`.
    pub(super) fn make_room(
        &self,
        now_ms: u64,
        node: NodeId,
        request: &Request,
        keep: Option<PodIx>,
    ) -> Option<Room> {
        let mut candidates = self.candidates(now_ms, node, keep);
        if candidates.is_empty() {
            return None;
        }
        candidates.sort_by(Victim::cheaper);
        let ledger = &self.nodes[&node].ledger;
        let mut victims = self.enough(ledger, request, &candidates)?;
        self.spare(ledger, request, &mut victims);
        let holding = self.after(ledger, &victims).fit(request).ok()?;
        let newest_ms = victims.iter().map(|victim| victim.used_ms).max();
        Some(Room {
            holding,
            victims,
            newest_ms: newest_ms.unwrap_or(0),
        })
    }

    /// Which pods of a node may go, and how: idle ones parked where that is allowed, as many of a
    /// function as it has beyond its minimum; standby ones ended.
    fn candidates(&self, now_ms: u64, node: NodeId, keep: Option<PodIx>) -> Vec<Victim> {
        let (mut idle, mut found) = (Vec::new(), Vec::new());
        for ix in self.pods_on.get(&node).into_iter().flatten() {
            let pod = self.pod(*ix);
            if Some(*ix) == keep {
                continue;
            } else if self.is_evictable(pod) && self.is_resident(now_ms, pod) {
                idle.push(*ix);
            } else if pod.state == State::Standby && pod.op.is_none() {
                found.push(self.victim(now_ms, *ix, Deed::EndStandby));
            }
        }
        idle.sort_by_key(|ix| (self.pod(*ix).used_ms, *ix));
        let mut leaving: BTreeMap<FuncId, u32> = BTreeMap::new();
        let mut parked: BTreeMap<FuncId, u32> = BTreeMap::new();
        for ix in idle {
            let func = self.pod(ix).func;
            let gone = leaving.entry(func).or_default();
            let least = self.min_replica(func) + *gone;
            if self.running(func) <= least && !self.breaks(Fault::EvictMinimum) {
                continue;
            }
            *gone += 1;
            let more = parked.entry(func).or_default();
            let deed = match self.may_park(ix, *more) {
                true => Deed::Park,
                false => Deed::EndIdle,
            };
            *more += u32::from(deed == Deed::Park);
            found.push(self.victim(now_ms, ix, deed));
        }
        found
    }

    fn victim(&self, now_ms: u64, ix: PodIx, deed: Deed) -> Victim {
        let pod = self.pod(ix);
        let worth = match self.config.eviction {
            Eviction::Worth => {
                let wait_ms = self.wait_caused(pod.func, pod.node, deed);
                self.worth(now_ms, pod.func, wait_ms)
            }
            Eviction::LeastRecentlyUsed => 0.0,
        };
        let cost = deed.effort() + worth;
        let mib = pod.held.mem_mib + pod.held.cache_mib;
        let mib = mib + pod.held.gpus.iter().map(|share| share.mib).sum::<u64>();
        Victim {
            ix,
            deed,
            cost,
            cost_per_mib: match self.config.eviction {
                Eviction::Worth => cost / mib.max(1) as f64,
                Eviction::LeastRecentlyUsed => 0.0,
            },
            used_ms: pod.used_ms,
        }
    }

    /// How much longer the next call of a function waits after this.
    fn wait_caused(&self, func: FuncId, node: NodeId, deed: Deed) -> u64 {
        let times = self.start_times(func);
        // Its next start is from the snapshot where the node has it.
        let start_ms = times.of_start(self.tier_on(func, node));
        match deed {
            Deed::Park => times.resume_ms,
            Deed::EndStandby => start_ms.saturating_sub(times.resume_ms),
            Deed::EndIdle => start_ms,
        }
    }

    fn enough(
        &self,
        ledger: &Ledger,
        request: &Request,
        candidates: &[Victim],
    ) -> Option<Vec<Victim>> {
        let fits = |victims: &[Victim]| self.suffices(ledger, request, victims);
        let mut victims: Vec<Victim> = Vec::new();
        for victim in candidates {
            victims.push(*victim);
            if fits(&victims) {
                return Some(victims);
            }
        }
        // Parking takes host memory; where that is what is missing the pods have to end.
        for at in 0..victims.len() {
            if victims[at].deed == Deed::Park {
                victims[at].deed = Deed::EndIdle;
                if fits(&victims) {
                    return Some(victims);
                }
            }
        }
        None
    }

    fn spare(&self, ledger: &Ledger, request: &Request, victims: &mut Vec<Victim>) {
        let mut order = victims.clone();
        order.sort_by(|a, b| b.cost.total_cmp(&a.cost).then(b.cheaper(a)));
        for victim in order {
            let rest: Vec<Victim> = victims
                .iter()
                .copied()
                .filter(|other| other.ix != victim.ix)
                .collect();
            if self.suffices(ledger, request, &rest) {
                *victims = rest;
            }
        }
    }

    /// Does the request fit once these victims are gone? The images of those that are parked come
    /// into the cache memory at once, before anything else leaves it.
    fn suffices(&self, ledger: &Ledger, request: &Request, victims: &[Victim]) -> bool {
        let parked = victims.iter().filter(|victim| victim.deed == Deed::Park);
        let images = parked.map(|victim| {
            let pod = self.pod(victim.ix);
            pod.spec.image_mib(&pod.held)
        });
        let after = self.after(ledger, victims);
        ledger.has_cache(images.sum()) && after.is_within_capacity() && after.fit(request).is_ok()
    }

    /// The books of a node once these victims are gone.
    fn after(&self, ledger: &Ledger, victims: &[Victim]) -> Ledger {
        let mut after = ledger.clone();
        for victim in victims {
            let pod = self.pod(victim.ix);
            after.release(&pod.held);
            if victim.deed == Deed::Park {
                after.take(&pod.spec.standby_holding(&pod.held));
            }
        }
        after
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
        for Victim { ix, deed, .. } in &room.victims {
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
        for Victim { ix, .. } in &room.victims {
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
        self.pod_mut(starter).victims = room.victims.iter().map(|victim| victim.ix).collect();
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
        pods: (used.pods + more.pods).saturating_sub(ledger.pods_max()),
        gpus: gpus.collect(),
    }
}
