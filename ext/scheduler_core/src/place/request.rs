//! The vocabulary of placement: what a node offers, what a pod asks for and why it was refused.
//! Never holds state: these are plain values that are compared, hashed and printed.

use std::fmt;

/// A set of GPU types, as bits given out by [`super::Cluster::type_set`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeSet(pub(crate) u64);

impl TypeSet {
    /// Every type, also those that no node has yet.
    pub const ANY: TypeSet = TypeSet(u64::MAX);

    pub(crate) fn contains(self, gpu_type: u8) -> bool {
        self.0 >> gpu_type & 1 == 1
    }
}

/// How much of each GPU a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GpuShare {
    /// Memory slices of each GPU, in the unit of [`DeviceSpec::capacity`]; the overhead of its
    /// contexts comes on top.
    Units(u32),
    /// The whole device, which nobody else may use.
    Whole,
}

/// The GPUs that a request needs, all on one node and all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GpuRequest {
    /// Number of distinct devices; zero reads as one.
    pub count: u8,
    /// What is taken of each of them.
    pub share: GpuShare,
    /// Contexts opened on each of them, each with the node's overhead; zero reads as one.
    pub contexts: u16,
    /// The GPU types that will do.
    pub types: TypeSet,
}

impl GpuRequest {
    /// Contexts taken on each device.
    pub(crate) fn contexts_taken(&self) -> u32 {
        u32::from(self.contexts.max(1))
    }

    /// Devices taken.
    pub(crate) fn devices_taken(&self) -> usize {
        usize::from(self.count.max(1))
    }
}

/// What one pod takes from one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// CPU in thousandths of a core.
    pub cpu_millis: u32,
    /// Host memory in MiB.
    pub mem_mb: u32,
    /// Pinned or cache memory in MiB.
    pub cache_mb: u32,
    /// GPUs, or none.
    pub gpu: Option<GpuRequest>,
}

/// One GPU of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Name of the GPU type, compared as a whole.
    pub gpu_type: String,
    /// Slices to give away (MiB, or thousandths of a GPU: one unit per cluster).
    pub capacity: u32,
}

/// What a node offers when it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Unique name; it also breaks ties, so that the order of adding nodes does not matter.
    pub name: String,
    /// CPU in thousandths of a core.
    pub cpu_millis: u32,
    /// Host memory in MiB.
    pub mem_mb: u32,
    /// Pinned or cache memory in MiB.
    pub cache_mb: u32,
    /// The GPUs in index order.
    pub devices: Vec<DeviceSpec>,
    /// Units that each context takes on its device beside the requested ones.
    pub context_overhead: u32,
    /// Contexts (pods) that may share one device; `None` means no limit.
    pub contexts_max: Option<u16>,
    /// Pods that the node may run; `None` means no limit.
    pub pods_max: Option<u32>,
}

/// Why no node can take a request: each node is counted once, under the first rule it broke.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoFit {
    /// Nodes that are known but not ready.
    pub not_ready: u32,
    /// Nodes that run as many pods as they may.
    pub pod_limit: u32,
    /// Nodes with too little CPU left.
    pub cpu: u32,
    /// Nodes with too little host or cache memory left.
    pub memory: u32,
    /// Nodes without enough devices of a wanted type.
    pub gpu_type: u32,
    /// Nodes whose devices have the memory but no context left.
    pub contexts: u32,
    /// Nodes with too little GPU memory left.
    pub gpu_memory: u32,
}

impl NoFit {
    /// The counts by name, in the order in which the rules are applied.
    pub fn counts(&self) -> [(&'static str, u32); 7] {
        [
            ("not_ready", self.not_ready),
            ("pod_limit", self.pod_limit),
            ("cpu", self.cpu),
            ("memory", self.memory),
            ("gpu_type", self.gpu_type),
            ("contexts", self.contexts),
            ("gpu_memory", self.gpu_memory),
        ]
    }

    pub(crate) fn add(&mut self, misfit: Misfit, nodes: u32) {
        *match misfit {
            Misfit::PodLimit => &mut self.pod_limit,
            Misfit::Cpu => &mut self.cpu,
            Misfit::Memory => &mut self.memory,
            Misfit::GpuType => &mut self.gpu_type,
            Misfit::Contexts => &mut self.contexts,
            Misfit::GpuMemory => &mut self.gpu_memory,
        } += nodes;
    }
}

impl fmt::Display for NoFit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "no node fits")?;
        let mut separator = ": ";
        for (name, nodes) in self.counts().into_iter().filter(|count| count.1 > 0) {
            write!(out, "{separator}{name} {nodes}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The rule by which one node turned a request away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    PodLimit,
    Cpu,
    Memory,
    GpuType,
    Contexts,
    GpuMemory,
}

/// Why the cluster refused to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceError {
    /// The request does not fit where it was to go.
    NoFit(NoFit),
    /// A node of this name exists already.
    DuplicateNode,
    /// The node was removed, or never existed.
    UnknownNode,
    /// The allocation was released before, or went with its node.
    StaleAllocation,
    /// More than 64 GPU types, or more than 255 devices on a node.
    TooMany,
    /// The devices named are not what the request needs: wrong number, twice the same, too full.
    BadDevices,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlaceError::NoFit(counts) => counts.fmt(out),
            PlaceError::DuplicateNode => out.write_str("a node of this name exists already"),
            PlaceError::UnknownNode => out.write_str("unknown node"),
            PlaceError::StaleAllocation => out.write_str("the allocation is gone already"),
            PlaceError::TooMany => out.write_str("more than 64 GPU types or 255 devices"),
            PlaceError::BadDevices => out.write_str("these devices cannot hold the request"),
        }
    }
}

impl std::error::Error for PlaceError {}
