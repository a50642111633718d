//! The ways to one more pod, and which of them makes everybody wait least.
//!
//! A way is expected to cost (1) the wait of the call that it is for: a resume, a start from a
//! snapshot in the node's memory or in its file, or one from nothing, as seen of this function,
//! told or assumed; and (2) the waits that it will cause to others, where pods have to make room
//! (`room.rs`). Ways are looked at in groups, the quickest first, and a later group only where it
//! may be better: what fits into free room costs nobody anything. Within a group of nodes that
//! start equally fast the index of `place/` chooses by fragmentation.
//!
//! It must never change anything; `plan` and `start` carry the best way out.

use super::Core;
use super::model::{FuncId, PodIx, StartTimes};
use super::room::Room;
use super::tasks::SnapshotTier;
use crate::nodes::{Holding, NoFit, NodeId, Request};

/// So many nodes with the snapshot are asked what making room on them would cost.
const HOLDERS_MAX: usize = 16;
/// What it takes until pods that make room are gone (ms).
const LEAVING_MS: f64 = 500.0;

/// Where one more pod comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Standby(PodIx),
    New(NodeId),
}

/// One way, and the milliseconds that it is expected to make callers wait.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub source: Source,
    pub holding: Holding,
    pub room: Room,
    cost_ms: f64,
}

impl Way {
    fn into_free_room(source: Source, holding: Holding, start_ms: u64) -> Way {
        Way {
            source,
            holding,
            room: Room::default(),
            cost_ms: start_ms as f64,
        }
    }

    /// A way that makes room, `start_ms` being the start itself.
    pub fn by_making_room(source: Source, room: Room, start_ms: u64) -> Way {
        Way {
            source,
            holding: room.holding.clone(),
            cost_ms: start_ms as f64 + LEAVING_MS + room.cost(),
            room,
        }
    }
}

/// The cheaper one; of equals the one that was found first.
pub(super) fn cheaper(best: Option<Way>, other: Way) -> Option<Way> {
    match best {
        Some(best) if best.cost_ms <= other.cost_ms => Some(best),
        _ => Some(other),
    }
}

impl Core {
    /// The best new pod, given the best way to resume one by making room. (1) A start into free
    /// room on the nodes with the snapshot, memory before file; (2) one into free room anywhere;
    /// (3) where that takes longer than from a snapshot, one by making room at the snapshot; (4)
    /// only without any of these, one by making room anywhere: then the nodes' refusals come along.
    pub(super) fn best_start(
        &mut self,
        now_ms: u64,
        func: FuncId,
        request: &Request,
        resume: Option<Way>,
    ) -> Result<Way, NoFit> {
        let times = self.start_times(func);
        let holders = self.open_holders(now_ms, func, &times);
        let mut best = resume;
        for tier in [SnapshotTier::Host, SnapshotTier::File] {
            let of_tier = holders.iter().filter(|(_, of)| *of == tier);
            let nodes: Vec<NodeId> = of_tier.map(|(node, _)| *node).collect();
            if let Some((node, holding)) = self.nodes.choose_among(request, &nodes, now_ms) {
                let start_ms = times.of_start(Some(tier));
                let way = Way::into_free_room(Source::New(node), holding, start_ms);
                best = cheaper(best, way);
            }
        }
        let mut no_fit = None;
        if best
            .as_ref()
            .is_none_or(|way| way.cost_ms > times.cold_ms as f64)
        {
            match self.nodes.choose(request, now_ms) {
                Ok((node, holding)) => {
                    let start_ms = times.of_start(self.tier_on(func, node));
                    let way = Way::into_free_room(Source::New(node), holding, start_ms);
                    best = cheaper(best, way);
                }
                Err(why) => no_fit = Some(why),
            }
        }
        for (node, tier) in holders.iter().take(HOLDERS_MAX) {
            let start_ms = times.of_start(Some(*tier));
            let least_ms = start_ms as f64 + LEAVING_MS;
            if best.as_ref().is_some_and(|way| way.cost_ms <= least_ms) {
                break; // and those that follow take no less
            }
            if let Some(room) = self.make_room(now_ms, *node, request, None) {
                let way = Way::by_making_room(Source::New(*node), room, start_ms);
                best = cheaper(best, way);
            }
        }
        best.ok_or_else(|| no_fit.unwrap_or_default())
    }

    /// Nodes that can start the function from its snapshot now, the quickest first.
    fn open_holders(
        &self,
        now_ms: u64,
        func: FuncId,
        times: &StartTimes,
    ) -> Vec<(NodeId, SnapshotTier)> {
        let holders = self.holders(func);
        let is_open = |node: &NodeId| self.nodes[node].closed(now_ms).is_none();
        let mut holders: Vec<_> = holders.filter(|(node, _)| is_open(node)).collect();
        holders.sort_by_key(|(_, tier)| times.of_start(Some(*tier)));
        holders
    }
}
