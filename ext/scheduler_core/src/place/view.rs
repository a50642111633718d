//! What the cluster shows of itself: handles of nodes and pods, and what they have and hold.
//! Never changes anything.

use super::request::{NodeSpec, Request};
use super::resources::Device;

/// A node of the cluster; stale once the node was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// What a pod holds; stale once it was released or its node removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// What was deducted for one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Where the pod is.
    pub node: NodeId,
    /// What it asked for.
    pub request: Request,
    /// Indices of its devices on the node, ascending.
    pub devices: Vec<u8>,
    /// Units taken of each device, overhead included.
    pub units: u32,
}

/// What a node has left, for people and for metrics.
#[derive(Clone, Copy, Debug)]
pub struct NodeView<'a> {
    /// What the node offers when empty.
    pub spec: &'a NodeSpec,
    /// CPU left, in thousandths of a core.
    pub cpu_millis: u32,
    /// Host memory left, in MiB.
    pub mem_mb: u32,
    /// Pinned or cache memory left, in MiB.
    pub cache_mb: u32,
    /// Whether the node may be given pods.
    pub ready: bool,
    pub(super) pods: u32,
    pub(super) devices: &'a [Device],
}

/// What is left on one GPU; `contexts` is none where nothing limits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct DeviceLeft {
    pub units: u32,
    pub contexts: Option<u32>,
}

/// What is left on a node, told or asked by someone who keeps books of his own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Left {
    pub cpu_millis: u32,
    pub mem_mb: u32,
    pub cache_mb: u32,
    /// Pods that may still come; `None` means no limit.
    pub pods: Option<u32>,
    /// In index order.
    pub devices: Vec<DeviceLeft>,
}

impl NodeView<'_> {
    /// Units left on each device, in index order.
    pub fn device_units(&self) -> impl Iterator<Item = u32> + '_ {
        self.devices.iter().map(|device| device.free)
    }

    /// Pods on the node.
    pub fn pods(&self) -> u32 {
        self.pods
    }
}
