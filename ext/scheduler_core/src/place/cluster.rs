//! The accounting of nodes: every unit that a pod takes is deducted here, and given back once.
//! Never decides where a pod goes; it refuses what does not fit and says why.

use std::collections::HashMap;

use super::hashing::hash_of;
use super::node::Node;
use super::request::{NodeSpec, PlaceError, Request, TypeSet};
use super::resources::{Device, DeviceKind, Free, Shape, UNLIMITED, sort_devices};
use super::state::States;
use super::view::{AllocId, Allocation, DeviceLeft, Left, NodeId, NodeView};

/// Nodes, what is left of them, and what each pod holds.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    type_names: Vec<String>,
    pub(crate) kinds: Vec<DeviceKind>,
    pub(crate) shapes: Vec<Shape>,
    pub(super) nodes: Vec<Option<Node>>,
    generations: u32,
    by_name: HashMap<String, NodeId>,
    pub(super) allocations: Vec<(u32, Option<Allocation>)>,
    free_allocations: Vec<u32>,
    pub(crate) states: States,
    pub(crate) not_ready: u32,
    /// GPU units of all nodes, ready or not.
    pub(crate) units: u64,
    /// Whether states tell nodes apart by what runs there.
    pub(crate) tagged: bool,
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Cluster {
        Cluster::default()
    }

    /// The set of the named GPU types; unknown names are remembered for nodes to come.
    ///
    /// # Errors
    /// [`PlaceError::TooMany`] beyond 64 types.
    pub fn type_set<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<TypeSet, PlaceError> {
        let mut bits = 0;
        for name in names {
            bits |= 1 << self.gpu_type(name)?;
        }
        Ok(TypeSet(bits))
    }

    fn gpu_type(&mut self, name: &str) -> Result<u8, PlaceError> {
        if let Some(known) = self.type_names.iter().position(|other| other == name) {
            return Ok(known as u8);
        }
        if self.type_names.len() == 64 {
            return Err(PlaceError::TooMany);
        }
        self.type_names.push(name.to_owned());
        Ok(self.type_names.len() as u8 - 1)
    }

    /// Adds an empty node that is ready.
    ///
    /// # Errors
    /// [`PlaceError::DuplicateNode`] or [`PlaceError::TooMany`].
    pub fn add_node(&mut self, spec: NodeSpec) -> Result<NodeId, PlaceError> {
        if self.by_name.contains_key(&spec.name) {
            return Err(PlaceError::DuplicateNode);
        }
        if spec.devices.len() > 255 {
            return Err(PlaceError::TooMany);
        }
        let free = self.empty(&spec)?;
        let slot = match self.nodes.iter().position(Option::is_none) {
            Some(hole) if self.by_name.len() < self.nodes.len() => hole,
            _ => {
                self.nodes.push(None);
                self.nodes.len() - 1
            }
        } as u32;
        self.generations += 1;
        let shape = &mut self.shapes[free.shape as usize];
        shape.nodes += 1;
        self.units += u64::from(shape.units);
        let id = NodeId {
            slot,
            generation: self.generations,
        };
        self.by_name.insert(spec.name.clone(), id);
        let key = (hash_of(spec.name.as_str()), slot);
        self.nodes[slot as usize] = Some(Node::new(spec, self.generations, key, free));
        self.list(slot);
        Ok(id)
    }

    fn empty(&mut self, spec: &NodeSpec) -> Result<Free, PlaceError> {
        let contexts = spec.contexts_max.map_or(UNLIMITED, u32::from);
        let mut devices = Vec::with_capacity(spec.devices.len());
        for device in &spec.devices {
            let gpu_type = self.gpu_type(&device.gpu_type)?;
            let hash = hash_of(&(&device.gpu_type, device.capacity, spec.context_overhead));
            let known = self.kinds.iter().position(|kind| kind.hash == hash);
            let kind = known.unwrap_or(self.kinds.len()) as u16;
            if known.is_none() {
                let (capacity, overhead) = (device.capacity, spec.context_overhead);
                self.kinds.push(DeviceKind {
                    gpu_type,
                    capacity,
                    overhead,
                    hash,
                });
            }
            devices.push(Device {
                kind,
                free: device.capacity,
                contexts,
            });
        }
        let mut free = Free {
            shape: 0,
            cpu: spec.cpu_millis,
            mem: spec.mem_mb,
            cache: spec.cache_mb,
            pods: spec.pods_max.unwrap_or(UNLIMITED),
            tags: 0,
            devices,
        };
        free.shape = self.shape_of(spec, &free);
        Ok(free)
    }

    fn shape_of(&mut self, spec: &NodeSpec, free: &Free) -> u32 {
        let mut empty = free.clone();
        sort_devices(&mut empty.devices, &self.kinds);
        let kind_hash = |device: &Device| self.kinds[usize::from(device.kind)].hash;
        let hashes: Vec<u64> = empty.devices.iter().map(kind_hash).collect();
        let host = (spec.cpu_millis, spec.mem_mb, spec.cache_mb);
        let hash = hash_of(&(host, spec.contexts_max, spec.pods_max, hashes));
        if let Some(known) = self.shapes.iter().position(|shape| shape.hash == hash) {
            return known as u32;
        }
        let units = spec.devices.iter().map(|device| device.capacity).sum();
        self.shapes.push(Shape {
            cpu: spec.cpu_millis,
            empty,
            units,
            nodes: 0,
            hash,
        });
        self.shapes.len() as u32 - 1
    }

    /// Removes a node with all that runs there; returns the allocations that went with it.
    ///
    /// # Errors
    /// [`PlaceError::UnknownNode`].
    pub fn remove_node(&mut self, node: NodeId) -> Result<Vec<AllocId>, PlaceError> {
        self.set_ready(node, false)?;
        let taken = self.nodes[node.slot as usize]
            .take()
            .ok_or(PlaceError::UnknownNode)?;
        self.not_ready -= 1;
        self.by_name.remove(&taken.spec.name);
        let shape = &mut self.shapes[taken.free.shape as usize];
        shape.nodes -= 1;
        self.units -= u64::from(shape.units);
        let mut lost = Vec::new();
        for (slot, (generation, held)) in self.allocations.iter_mut().enumerate() {
            if held
                .as_ref()
                .is_some_and(|allocation| allocation.node == node)
            {
                lost.push(AllocId {
                    slot: slot as u32,
                    generation: *generation,
                });
                *generation = generation.wrapping_add(1);
                *held = None;
                self.free_allocations.push(slot as u32);
            }
        }
        Ok(lost)
    }

    /// Says whether a node may be given pods; what runs there stays accounted for.
    ///
    /// # Errors
    /// [`PlaceError::UnknownNode`].
    pub fn set_ready(&mut self, node: NodeId, ready: bool) -> Result<(), PlaceError> {
        let is_ready = self.node(node)?.state.is_some();
        if ready && !is_ready {
            self.not_ready -= 1;
            self.list(node.slot);
        } else if !ready && is_ready {
            self.unlist(node.slot);
            self.not_ready += 1;
        }
        Ok(())
    }

    /// The node of that name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.by_name.get(name).copied()
    }

    /// What a node has left.
    ///
    /// # Errors
    /// [`PlaceError::UnknownNode`].
    pub fn view(&self, node: NodeId) -> Result<NodeView<'_>, PlaceError> {
        let node = self.node(node)?;
        Ok(NodeView {
            spec: &node.spec,
            cpu_millis: node.free.cpu,
            mem_mb: node.free.mem,
            cache_mb: node.free.cache,
            ready: node.state.is_some(),
            pods: node.pods,
            devices: &node.free.devices,
        })
    }

    /// What a node has left, as [`Cluster::set_left`] takes it.
    ///
    /// # Errors
    /// [`PlaceError::UnknownNode`].
    pub fn left(&self, node: NodeId) -> Result<Left, PlaceError> {
        let free = &self.node(node)?.free;
        let devices = free.devices.iter().map(|device| DeviceLeft {
            units: device.free,
            contexts: (device.contexts != UNLIMITED).then_some(device.contexts),
        });
        Ok(Left {
            cpu_millis: free.cpu,
            mem_mb: free.mem,
            cache_mb: free.cache,
            pods: (free.pods != UNLIMITED).then_some(free.pods),
            devices: devices.collect(),
        })
    }

    /// Says what is left on a node, for someone who keeps books of his own: then nothing is
    /// allocated here, and `check` does not apply.
    ///
    /// # Errors
    /// [`PlaceError::UnknownNode`], [`PlaceError::BadDevices`] when they are not those of the node.
    pub fn set_left(&mut self, node: NodeId, left: Left) -> Result<(), PlaceError> {
        if self.left(node)? == left {
            return Ok(());
        }
        if self.node(node)?.free.devices.len() != left.devices.len() {
            return Err(PlaceError::BadDevices);
        }
        self.change(node.slot, |node| {
            let free = &mut node.free;
            (free.cpu, free.mem, free.cache) = (left.cpu_millis, left.mem_mb, left.cache_mb);
            free.pods = left.pods.unwrap_or(UNLIMITED);
            for (device, left) in free.devices.iter_mut().zip(left.devices) {
                (device.free, device.contexts) = (left.units, left.contexts.unwrap_or(UNLIMITED));
            }
        });
        Ok(())
    }

    /// All nodes, ready or not.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.by_name.values().copied()
    }

    /// What a pod holds.
    ///
    /// # Errors
    /// [`PlaceError::StaleAllocation`].
    pub fn allocation(&self, id: AllocId) -> Result<&Allocation, PlaceError> {
        match self.allocations.get(id.slot as usize) {
            Some((generation, Some(held))) if *generation == id.generation => Ok(held),
            _ => Err(PlaceError::StaleAllocation),
        }
    }

    /// Deducts a request on a node, on these devices (any order); ready or not, so that what
    /// an agent reports can always be accounted for.
    ///
    /// # Errors
    /// [`PlaceError::BadDevices`] when the devices cannot hold it, [`PlaceError::NoFit`] when the
    /// rest of the node cannot, [`PlaceError::UnknownNode`].
    pub fn allocate(
        &mut self,
        node: NodeId,
        request: Request,
        devices: &[u8],
    ) -> Result<AllocId, PlaceError> {
        let units = self.check_devices(node, &request, devices)?;
        let mut devices = devices.to_vec();
        devices.sort_unstable();
        self.change(node.slot, |node| {
            node.take(&request, &devices, units);
        });
        let held = Allocation {
            node,
            request,
            devices,
            units,
        };
        let slot = self.free_allocations.pop().unwrap_or_else(|| {
            self.allocations.push((0, None));
            self.allocations.len() as u32 - 1
        });
        let entry = &mut self.allocations[slot as usize];
        entry.1 = Some(held);
        Ok(AllocId {
            slot,
            generation: entry.0,
        })
    }

    /// Gives back what a pod held.
    ///
    /// # Errors
    /// [`PlaceError::StaleAllocation`].
    pub fn release(&mut self, id: AllocId) -> Result<Allocation, PlaceError> {
        self.allocation(id)?;
        let entry = &mut self.allocations[id.slot as usize];
        entry.0 = entry.0.wrapping_add(1);
        let held = entry.1.take().ok_or(PlaceError::StaleAllocation)?;
        self.free_allocations.push(id.slot);
        self.change(held.node.slot, |node| {
            node.give_back(&held.request, &held.devices, held.units);
        });
        Ok(held)
    }
}
