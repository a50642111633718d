//! Which nodes are asked what making room there would cost.
//!
//! Asking a node looks at every pod on it, so not all are asked: nodes are taken in the order in
//! which their idle and standby pods were not used longest, as those are the cheap victims. A node
//! that could not take the request even if it were empty is passed over by its capacity alone, and
//! the search ends when `ROOMS_MAX` nodes have named a price. No node is missed that has what is
//! needed: without enough answers the search goes on to the last candidate.
//!
//! The order is a log: a pod that becomes idle is written at its end, at most once in
//! `RELIST_MS`, so that a warm function that is called all the time costs nothing here.
//!
//! Those of the order that may leave are picked out once for all functions that look for room after
//! one event; and where one found none, nobody who asks for the same looks again.
//!
//! It must never choose a victim; `room` does.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::Core;
use super::fault::Fault;
use super::model::{Pod, PodIx};
use super::room::Room;
use crate::nodes::{NodeId, Request};
use crate::pod::State;

/// Prices of so many nodes are compared.
const ROOMS_MAX: usize = 32;
/// A pod keeps its place in the order for so long, however often it is used meanwhile.
const RELIST_MS: u64 = 10_000;
/// Entries that no longer count are thrown away when there are more of them than pods and this.
const STALE_MAX: usize = 1_024;

/// Pods by the time when they were listed, the oldest first; an entry counts while it is the one
/// that its pod remembers.
#[derive(Debug, Default)]
pub(super) struct IdleOrder(VecDeque<(u64, PodIx)>);

fn may_leave(state: State) -> bool {
    matches!(state, State::Idle | State::Standby)
}

fn leaves(state: State) -> bool {
    matches!(state, State::Terminating | State::Parking)
}

impl Core {
    /// A pod is in another state, or new; keeps the order and the count of those that leave.
    pub(super) fn list_moved(&mut self, now_ms: u64, ix: PodIx, before: Option<State>) {
        let pod = &self.pods[&ix];
        let (node, state, listed_ms) = (pod.node, pod.state, pod.listed_ms);
        if may_leave(state) {
            self.shortlist = None;
            self.no_room.clear();
        }
        if before.is_some_and(leaves) != leaves(state) {
            self.count_leaving(node, leaves(state));
        }
        let is_fresh = listed_ms.is_some_and(|ms| now_ms < ms + RELIST_MS);
        if !may_leave(state) || is_fresh || self.breaks(Fault::ForgetIdle) {
            return;
        }
        self.pod_mut(ix).listed_ms = Some(now_ms);
        self.idle_order.0.push_back((now_ms, ix));
        if self.idle_order.0.len() > 2 * self.pods.len() + STALE_MAX {
            let pods = &self.pods;
            let counts = |(ms, ix): &(u64, PodIx)| {
                pods.get(ix).is_some_and(|pod| pod.listed_ms == Some(*ms))
            };
            self.idle_order.0.retain(counts);
        }
    }

    /// A pod is about to be forgotten; its entry no longer counts then.
    pub(super) fn list_removed(&mut self, ix: PodIx) {
        let pod = &self.pods[&ix];
        if leaves(pod.state) {
            self.count_leaving(pod.node, false);
        }
    }

    fn count_leaving(&mut self, node: NodeId, comes: bool) {
        let count = self.leaving_on.entry(node).or_default();
        match comes {
            true => *count += 1,
            false => *count -= 1,
        }
        if *count == 0 {
            self.leaving_on.remove(&node);
        }
    }

    /// Will the request fit on some node that is open when those that leave there have left?
    pub(super) fn room_is_being_made(&self, now_ms: u64, request: &Request) -> bool {
        let open = |node: &&NodeId| self.nodes[*node].closed(now_ms).is_none();
        let mut leaving = self.leaving_on.keys().filter(open);
        leaving.any(|node| self.fits_after_releases(*node, request))
    }

    /// Would the request fit once the pods that end or are being parked there are done?
    pub(super) fn fits_after_releases(&self, node: NodeId, request: &Request) -> bool {
        if !self.leaving_on.contains_key(&node) {
            return false;
        }
        let mut after = self.nodes[&node].ledger.clone();
        for ix in self.pods_on.get(&node).into_iter().flatten() {
            let pod = self.pod(*ix);
            match pod.state {
                State::Terminating => after.release(&pod.held),
                State::Parking => {
                    after.release(&pod.held);
                    after.take(&pod.parked);
                }
                _ => {}
            }
        }
        after.fit(request).is_ok()
    }

    /// The node on which making room costs least, of those asked; ties go by name.
    pub(super) fn cheapest_room(
        &mut self,
        now_ms: u64,
        request: &Request,
    ) -> Option<(NodeId, Room)> {
        if self.no_room.contains(request) {
            return None;
        }
        let shortlist = self.shortlist.take().unwrap_or_else(|| self.pick());
        let best = self.cheapest_of(now_ms, request, &shortlist);
        self.shortlist = Some(shortlist);
        if best.is_none() {
            self.no_room.insert(request.clone());
        }
        best
    }

    /// The pods that may leave now, in the order in which they were not used longest.
    fn pick(&self) -> Vec<PodIx> {
        let listed = self.idle_order.0.iter();
        let picked = listed.filter(|(listed_ms, ix)| {
            let known = self.pods.get(ix);
            let known = known.filter(|pod| pod.listed_ms == Some(*listed_ms));
            known.is_some_and(|pod| self.counts(pod))
        });
        picked.map(|(_, ix)| *ix).collect()
    }

    fn counts(&self, pod: &Pod) -> bool {
        may_leave(pod.state) || self.breaks(Fault::EvictBusy)
    }

    /// The same among the pods that were picked; some of them are in use again by now.
    fn cheapest_of(
        &self,
        now_ms: u64,
        request: &Request,
        shortlist: &[PodIx],
    ) -> Option<(NodeId, Room)> {
        let mut asked: HashSet<NodeId> = HashSet::new();
        let mut best: Option<(NodeId, Room)> = None;
        let mut rooms = 0;
        for ix in shortlist {
            let Some(pod) = self.pods.get(ix) else {
                continue;
            };
            if !self.counts(pod) || !asked.insert(pod.node) {
                continue;
            }
            let node = &self.nodes[&pod.node];
            if node.closed(now_ms).is_some() || !node.ledger.could_take(request) {
                continue;
            }
            let Some(room) = self.make_room(now_ms, pod.node, request, None) else {
                continue;
            };
            rooms += 1;
            let better = best.as_ref().is_none_or(|(known, least)| {
                let by_name = || node.name.cmp(&self.nodes[known].name);
                room.cheaper(least).then_with(by_name).is_lt()
            });
            if better {
                best = Some((pod.node, room));
            }
            if rooms == ROOMS_MAX {
                break;
            }
        }
        best
    }

    /// Panics where the order or the counts differ from the pods; for tests.
    pub(super) fn check_victims(&self) {
        let listed: BTreeSet<(u64, PodIx)> = self.idle_order.0.iter().copied().collect();
        let mut leaving = std::collections::BTreeMap::new();
        for (ix, pod) in &self.pods {
            if leaves(pod.state) {
                *leaving.entry(pod.node).or_default() += 1;
            }
            let found = pod.listed_ms.is_some_and(|ms| listed.contains(&(ms, *ix)));
            let id = &pod.id;
            assert!(found || !may_leave(pod.state), "{id}: found as a victim");
        }
        assert_eq!(self.leaving_on, leaving, "pods that leave, by node");
    }
}
