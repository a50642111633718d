//! What a node has and what is taken from it: exact accounting of every resource, fit, and a first
//! placement. It must never know about pods, functions or time beyond the node's own back-off.

use std::fmt;

pub use crate::ledger::Ledger;

/// Number of a node inside one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuCapacity {
    /// Index on the node, as the driver numbers it.
    pub index: u32,
    /// Type name, for example "A100".
    pub kind: String,
    /// Memory in MiB.
    pub vram_mib: u64,
}

/// Everything a node has. Where it names no limit of contexts or pods or no cache memory (0), these
/// do not limit anything: images of simulated GPUs, for one, take no memory at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Capacity {
    pub cpu_millis: u64,
    pub mem_mib: u64,
    pub cache_mib: u64,
    pub gpus: Vec<GpuCapacity>,
    pub context_overhead_mib: u64,
    pub contexts_per_gpu_max: u32,
    /// Running and parked ones alike.
    pub pods_max: u32,
}

/// The GPU part of a request: `count` GPUs of one type with `vram_mib` on each (0 = whole GPUs).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct GpuRequest {
    pub kind: String,
    pub count: u32,
    pub vram_mib: u64,
    pub contexts: u32,
}

/// What a pod needs on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Request {
    pub cpu_millis: u64,
    pub mem_mib: u64,
    pub cache_mib: u64,
    /// 1 for a new pod, 0 for one that is on the node already.
    pub pods: u32,
    pub gpu: Option<GpuRequest>,
}

/// A share of one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct GpuShare {
    pub index: u32,
    pub mib: u64,
    pub contexts: u32,
}

/// Resources held on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Holding {
    pub cpu_millis: u64,
    pub mem_mib: u64,
    pub cache_mib: u64,
    pub pods: u32,
    pub gpus: Vec<GpuShare>,
}

impl Holding {
    /// Adds another holding of the same node.
    pub fn add(&mut self, other: &Holding) {
        self.cpu_millis += other.cpu_millis;
        self.mem_mib += other.mem_mib;
        self.cache_mib += other.cache_mib;
        self.pods += other.pods;
        for share in &other.gpus {
            match self.gpus.iter_mut().find(|own| own.index == share.index) {
                Some(own) => {
                    own.mib += share.mib;
                    own.contexts += share.contexts;
                }
                None => self.gpus.push(share.clone()),
            }
        }
    }

    /// Takes a part away; the part must have been in it.
    pub fn subtract(&mut self, part: &Holding) {
        self.cpu_millis = minus(self.cpu_millis, part.cpu_millis);
        self.mem_mib = minus(self.mem_mib, part.mem_mib);
        self.cache_mib = minus(self.cache_mib, part.cache_mib);
        self.pods = self.pods.checked_sub(part.pods).expect("pods below zero");
        for share in &part.gpus {
            let own = self.gpus.iter_mut().find(|own| own.index == share.index);
            let own = own.expect("a GPU share is given back that was never taken");
            own.mib = minus(own.mib, share.mib);
            own.contexts = own
                .contexts
                .checked_sub(share.contexts)
                .expect("contexts below zero");
        }
        self.gpus
            .retain(|share| share.mib > 0 || share.contexts > 0);
    }

    /// The smaller of both in every resource.
    pub fn min(&self, other: &Holding) -> Holding {
        let gpus = self.gpus.iter().filter_map(|own| {
            let share = other.gpus.iter().find(|share| share.index == own.index)?;
            let (mib, contexts) = (own.mib.min(share.mib), own.contexts.min(share.contexts));
            (mib > 0 || contexts > 0).then_some(GpuShare {
                index: own.index,
                mib,
                contexts,
            })
        });
        Holding {
            cpu_millis: self.cpu_millis.min(other.cpu_millis),
            mem_mib: self.mem_mib.min(other.mem_mib),
            cache_mib: self.cache_mib.min(other.cache_mib),
            pods: self.pods.min(other.pods),
            gpus: gpus.collect(),
        }
    }
}

fn minus(from: u64, part: u64) -> u64 {
    from.checked_sub(part)
        .expect("more is given back than was taken")
}

/// Why one node cannot take a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Shortage {
    NotReady,
    BackingOff,
    Pods,
    Cpu,
    Memory,
    CacheMemory,
    GpuType,
    GpuCount,
    GpuMemory,
    GpuContexts,
}

impl Shortage {
    /// The word used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Shortage::NotReady => "not_ready",
            Shortage::BackingOff => "backing_off_after_a_fault",
            Shortage::Pods => "too_many_pods",
            Shortage::Cpu => "too_little_cpu",
            Shortage::Memory => "too_little_memory",
            Shortage::CacheMemory => "too_little_cache_memory",
            Shortage::GpuType => "no_gpu_of_that_type",
            Shortage::GpuCount => "too_few_gpus",
            Shortage::GpuMemory => "too_little_gpu_memory",
            Shortage::GpuContexts => "too_many_gpu_contexts",
        }
    }
}

/// How many nodes refused a request for which reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoFit(std::collections::BTreeMap<Shortage, u32>);

impl NoFit {
    /// Counts one more node.
    pub fn count(&mut self, shortage: Shortage) {
        *self.0.entry(shortage).or_default() += 1;
    }
}

impl fmt::Display for NoFit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str("no node has registered");
        }
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(why, nodes)| format!("{}: {nodes}", why.name()))
            .collect();
        write!(out, "no node fits ({})", parts.join(", "))
    }
}

/// One node as the core sees it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Node {
    pub name: String,
    pub boot_id: String,
    pub ready: bool,
    pub ledger: Ledger,
    /// Faults in a row, and when the next start may be tried there (ms).
    pub faults: u32,
    pub retry_at_ms: u64,
    /// What the last fault was.
    pub fault: String,
    pub keeps_snapshots: bool,
}

impl Node {
    /// Why no start may go to this node now, or nothing.
    pub fn closed(&self, now_ms: u64) -> Option<Shortage> {
        match self {
            node if !node.ready => Some(Shortage::NotReady),
            node if node.retry_at_ms > now_ms => Some(Shortage::BackingOff),
            _ => None,
        }
    }
}

/// Best fit over all nodes, for what the index of the `Fleet` cannot answer, and the count of the
/// refusals: the one that keeps the least GPU memory, then CPU, unused; ties go by
/// name, so that the order in which nodes registered does not matter.
pub fn place<'a>(
    nodes: impl Iterator<Item = (NodeId, &'a Node)>,
    request: &Request,
    now_ms: u64,
) -> Result<(NodeId, Holding), NoFit> {
    let mut no_fit = NoFit::default();
    let mut best: Option<((u64, u64, &str), NodeId, Holding)> = None;
    for (id, node) in nodes {
        let fit = match node.closed(now_ms) {
            Some(why) => Err(why),
            None => node.ledger.fit(request),
        };
        match fit {
            Ok(holding) => {
                let (left_gpu, left_cpu) = leftover(&node.ledger, &holding);
                let score = (left_gpu, left_cpu, node.name.as_str());
                if best.as_ref().is_none_or(|(least, _, _)| score < *least) {
                    best = Some((score, id, holding));
                }
            }
            Err(why) => no_fit.count(why),
        }
    }
    best.map(|(_, id, holding)| (id, holding)).ok_or(no_fit)
}

fn leftover(ledger: &Ledger, holding: &Holding) -> (u64, u64) {
    let free = |index: u32| {
        let gpu = ledger.capacity.gpus.iter().find(|gpu| gpu.index == index);
        gpu.map_or(0, |gpu| {
            gpu.vram_mib.saturating_sub(ledger.share_of(index).0)
        })
    };
    // A request without GPUs goes where the fewest GPUs are free, so that they stay usable
    // together.
    let gpu = match holding.gpus.as_slice() {
        [] => ledger.capacity.gpus.iter().map(|gpu| free(gpu.index)).sum(),
        shares => shares
            .iter()
            .map(|share| free(share.index) - share.mib)
            .sum(),
    };
    let used = ledger.used.cpu_millis + holding.cpu_millis;
    (gpu, ledger.capacity.cpu_millis - used)
}
