//! Where a pod goes: what every node has left, which nodes a request fits on and which one is best.
//! Never does I/O, never reads a clock and never depends on the order in which nodes were added.
//!
//! [`Placer`] is the entry: it owns a [`Cluster`] (the accounting), learns the typical requests
//! and answers [`Placer::decide`] from an index that gives exactly the answer of a full scan.

mod cluster;
mod hashing;
mod index;
mod learn;
mod node;
mod placer;
mod policies;
mod potential;
mod rating;
mod request;
mod resources;
mod state;
mod view;

pub use cluster::Cluster;
pub use placer::{Choice, Placer};
pub use policies::Policy;
pub use request::{
    DeviceSpec, GpuRequest, GpuShare, NoFit, NodeSpec, PlaceError, Request, TypeSet,
};
pub use view::{AllocId, Allocation, DeviceLeft, Left, NodeId, NodeView};
