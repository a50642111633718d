//! What people and metrics see of the core. It must never be read to decide anything.

use super::messages::Alloc;
use super::model::{FuncKey, PodIx};
use super::start::alloc_of;
use super::tasks::TaskState;
use super::{Core, Counters};
use crate::nodes::Node;
use crate::pod::State;

/// One pod as shown.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PodView {
    pub pod_id: String,
    pub key: FuncKey,
    pub revision: i64,
    pub node: String,
    pub state: State,
    pub reason: String,
    pub since_ms: u64,
    pub slots: u32,
    pub leased: u32,
    pub start: &'static str,
    pub alloc: Alloc,
}

/// Sums over the core.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Stats {
    pub functions: usize,
    pub nodes: usize,
    pub nodes_ready: usize,
    pub pods: Vec<(State, usize)>,
    pub leases: usize,
    pub tickets: usize,
    pub gpu_mib_total: u64,
    pub gpu_mib_used: u64,
    pub snapshot_tasks: Vec<(TaskState, usize)>,
    pub counters: Counters,
}

impl Core {
    /// Every pod, in the order in which they came.
    pub fn pods(&self) -> Vec<PodView> {
        self.pods.keys().map(|ix| self.pod_view(*ix)).collect()
    }

    fn pod_view(&self, ix: PodIx) -> PodView {
        let pod = self.pod(ix);
        let node = &self.nodes[&pod.node];
        PodView {
            pod_id: pod.id.clone(),
            key: self.functions[&pod.func].key.clone(),
            revision: pod.revision,
            node: node.name.clone(),
            state: pod.state,
            reason: pod.reason.clone(),
            since_ms: pod.since_ms,
            slots: pod.slots,
            leased: pod.leased,
            start: pod.start.name(),
            alloc: alloc_of(pod, &node.ledger),
        }
    }

    /// Sums for metrics.
    pub fn stats(&self) -> Stats {
        let of_state = |state| self.pods.values().filter(|pod| pod.state == state).count();
        let ready = |node: &&Node| node.ready;
        let total = |node: &Node| -> u64 {
            node.ledger
                .capacity
                .gpus
                .iter()
                .map(|gpu| gpu.vram_mib)
                .sum()
        };
        let used = |node: &Node| -> u64 { node.ledger.used.gpus.iter().map(|gpu| gpu.mib).sum() };
        Stats {
            functions: self
                .functions
                .values()
                .filter(|function| function.present)
                .count(),
            nodes: self.nodes.len(),
            nodes_ready: self.nodes.values().filter(ready).count(),
            pods: State::ALL
                .iter()
                .map(|state| (*state, of_state(*state)))
                .collect(),
            leases: self.leases.len(),
            tickets: self.tickets.len(),
            gpu_mib_total: self.nodes.values().map(total).sum(),
            gpu_mib_used: self.nodes.values().map(used).sum(),
            snapshot_tasks: TaskState::ALL
                .iter()
                .map(|state| (*state, self.task_counts.get(state).copied().unwrap_or(0)))
                .collect(),
            counters: self.counters.clone(),
        }
    }

    /// Why calls of a function wait, for people; `None` when none does.
    pub fn waiting(&self, key: &FuncKey) -> Option<(usize, String)> {
        let func = *self.func_ids.get(key)?;
        let waiting = self.tickets.waiting(func);
        (waiting > 0).then(|| (waiting, self.why_waiting(func).message))
    }
}
