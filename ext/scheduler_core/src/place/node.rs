//! One node's books: deducting a pod, giving it back, and listing the node under its state.
//! Never lets a resource go below zero or above what the node offers.

use super::cluster::Cluster;
use super::request::{GpuShare, NoFit, NodeSpec, PlaceError, Request};
use super::resources::{DeviceKind, Free, UNLIMITED, sort_devices};
use super::view::NodeId;

/// A node with what is left of it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub spec: NodeSpec,
    pub generation: u32,
    /// Hash of the name and slot: the key by which equal nodes are told apart.
    pub key: (u64, u32),
    /// Devices in index order.
    pub free: Free,
    /// The state it is listed under, while it is ready.
    pub state: Option<u32>,
    pub pods: u32,
    tag_counts: [u32; 8],
}

/// The kind of GPU demand, as a bit: a share, one whole device, two, up to four, more.
pub(crate) fn tag_of(request: &Request) -> Option<u8> {
    let gpu = request.gpu?;
    Some(match (gpu.share, gpu.count) {
        (GpuShare::Units(_), _) => 0,
        (GpuShare::Whole, 0 | 1) => 1,
        (GpuShare::Whole, 2) => 2,
        (GpuShare::Whole, 3 | 4) => 3,
        (GpuShare::Whole, _) => 4,
    })
}

impl Node {
    pub fn new(spec: NodeSpec, generation: u32, key: (u64, u32), free: Free) -> Node {
        Node {
            spec,
            generation,
            key,
            free,
            state: None,
            pods: 0,
            tag_counts: [0; 8],
        }
    }

    /// Deducts a request that is known to fit on these devices.
    pub fn take(&mut self, request: &Request, devices: &[u8], units: u32) {
        self.free.cpu -= request.cpu_millis;
        self.free.mem -= request.mem_mb;
        self.free.cache -= request.cache_mb;
        self.pods += 1;
        if self.free.pods != UNLIMITED {
            self.free.pods -= 1;
        }
        let contexts = request.gpu.map_or(0, |gpu| gpu.contexts_taken());
        for index in devices {
            let device = &mut self.free.devices[usize::from(*index)];
            device.free -= units;
            if device.contexts != UNLIMITED {
                device.contexts -= contexts;
            }
        }
        if let Some(tag) = tag_of(request) {
            self.tag_counts[usize::from(tag)] += 1;
        }
    }

    /// Undoes [`Node::take`].
    pub fn give_back(&mut self, request: &Request, devices: &[u8], units: u32) {
        self.free.cpu += request.cpu_millis;
        self.free.mem += request.mem_mb;
        self.free.cache += request.cache_mb;
        self.pods -= 1;
        if self.free.pods != UNLIMITED {
            self.free.pods += 1;
        }
        let contexts = request.gpu.map_or(0, |gpu| gpu.contexts_taken());
        for index in devices {
            let device = &mut self.free.devices[usize::from(*index)];
            device.free += units;
            if device.contexts != UNLIMITED {
                device.contexts += contexts;
            }
        }
        if let Some(tag) = tag_of(request) {
            self.tag_counts[usize::from(tag)] -= 1;
        }
    }

    /// Indices of the devices in canonical order: by kind, then the fullest first.
    pub fn order(&self, kinds: &[DeviceKind]) -> Vec<u8> {
        let mut order: Vec<u8> = (0..self.free.devices.len() as u8).collect();
        order.sort_by_key(|index| {
            let device = &self.free.devices[usize::from(*index)];
            (
                kinds[usize::from(device.kind)].hash,
                device.free,
                device.contexts,
                *index,
            )
        });
        order
    }

    /// What is left, in the form that equal nodes share.
    pub fn canonical(&self, kinds: &[DeviceKind], tagged: bool) -> Free {
        let mut free = self.free.clone();
        sort_devices(&mut free.devices, kinds);
        if tagged {
            for (tag, count) in self.tag_counts.iter().enumerate() {
                free.tags |= u8::from(*count > 0) << tag;
            }
        }
        free
    }
}

impl Cluster {
    pub(super) fn node(&self, id: NodeId) -> Result<&Node, PlaceError> {
        match self.nodes.get(id.slot as usize) {
            Some(Some(node)) if node.generation == id.generation => Ok(node),
            _ => Err(PlaceError::UnknownNode),
        }
    }

    /// The node in that slot, which is known to be taken.
    pub(super) fn node_at(&self, slot: u32) -> &Node {
        self.nodes[slot as usize]
            .as_ref()
            .expect("a listed slot holds a node")
    }

    fn node_at_mut(&mut self, slot: u32) -> &mut Node {
        self.nodes[slot as usize]
            .as_mut()
            .expect("a listed slot holds a node")
    }

    pub(super) fn id_at(&self, slot: u32) -> NodeId {
        NodeId {
            slot,
            generation: self.node_at(slot).generation,
        }
    }

    /// Ready nodes with their slots.
    pub(super) fn ready(&self) -> impl Iterator<Item = (u32, &Node)> {
        self.nodes.iter().enumerate().filter_map(|(slot, node)| {
            let node = node.as_ref().filter(|node| node.state.is_some())?;
            Some((slot as u32, node))
        })
    }

    /// Lists a node under the state that it is in.
    pub(super) fn list(&mut self, slot: u32) {
        let node = self.node_at(slot);
        let (free, key) = (node.canonical(&self.kinds, self.tagged), node.key);
        let (kinds, shapes) = (&self.kinds, &self.shapes);
        let state = self.states.enter(free, |free| free.tie(kinds, shapes), key);
        self.node_at_mut(slot).state = Some(state);
    }

    /// Takes a node out of the lists, so that it is given no pods.
    pub(super) fn unlist(&mut self, slot: u32) {
        let node = self.node_at_mut(slot);
        if let Some(state) = node.state.take() {
            let key = node.key;
            self.states.leave(state, key);
        }
    }

    /// Changes what is left on a node and lists it under its new state.
    pub(super) fn change(&mut self, slot: u32, deed: impl FnOnce(&mut Node)) {
        let was_listed = self.node_at(slot).state.is_some();
        self.unlist(slot);
        deed(self.node_at_mut(slot));
        if was_listed {
            self.list(slot);
        }
    }

    /// Units that the request takes of each of these devices.
    pub(super) fn check_devices(
        &self,
        id: NodeId,
        request: &Request,
        devices: &[u8],
    ) -> Result<u32, PlaceError> {
        let node = self.node(id)?;
        let short_of_host = Request {
            gpu: None,
            ..*request
        };
        if let Err(misfit) = node.free.check(&short_of_host, &self.kinds) {
            let mut counts = NoFit::default();
            counts.add(misfit, 1);
            return Err(PlaceError::NoFit(counts));
        }
        let Some(gpu) = request.gpu else {
            return if devices.is_empty() {
                Ok(0)
            } else {
                Err(PlaceError::BadDevices)
            };
        };
        let mut units = None;
        for (position, index) in devices.iter().enumerate() {
            let device = node
                .free
                .devices
                .get(usize::from(*index))
                .ok_or(PlaceError::BadDevices)?;
            let need = self.kinds[usize::from(device.kind)].need(&gpu);
            let need = need.ok_or(PlaceError::BadDevices)?;
            let twice = devices[..position].contains(index);
            let other = units.is_some_and(|units| units != need);
            if twice || other || device.free < need || device.contexts < gpu.contexts_taken() {
                return Err(PlaceError::BadDevices);
            }
            units = Some(need);
        }
        if devices.len() != gpu.devices_taken() {
            return Err(PlaceError::BadDevices);
        }
        units.ok_or(PlaceError::BadDevices)
    }

    /// Why no ready node takes the request, node by node.
    pub fn explain(&self, request: &Request) -> NoFit {
        let mut counts = NoFit {
            not_ready: self.not_ready,
            ..NoFit::default()
        };
        for (_, state) in self.states.iter_live() {
            if let Err(misfit) = state.free.check(request, &self.kinds) {
                counts.add(misfit, state.nodes.len() as u32);
            }
        }
        counts
    }

    /// Panics when allocated + free is not the total somewhere, or a node is listed wrongly.
    pub fn check(&self) {
        let mut again: Vec<Option<Node>> = self.nodes.clone();
        for held in self.allocations.iter().filter_map(|entry| entry.1.as_ref()) {
            assert!(
                self.node(held.node).is_ok(),
                "an allocation outlived its node"
            );
            let node = again[held.node.slot as usize]
                .as_mut()
                .expect("checked above");
            node.give_back(&held.request, &held.devices, held.units);
        }
        for (slot, node) in again.iter().enumerate() {
            let Some(node) = node else { continue };
            let (free, spec) = (&node.free, &node.spec);
            assert_eq!(node.pods, 0, "pods of {}", spec.name);
            assert_eq!(free.cpu, spec.cpu_millis, "cpu of {}", spec.name);
            assert_eq!(free.mem, spec.mem_mb, "memory of {}", spec.name);
            assert_eq!(free.cache, spec.cache_mb, "cache memory of {}", spec.name);
            assert_eq!(
                free.pods,
                spec.pods_max.unwrap_or(UNLIMITED),
                "pods of {}",
                spec.name
            );
            for (device, offered) in free.devices.iter().zip(&spec.devices) {
                let contexts = spec.contexts_max.map_or(UNLIMITED, u32::from);
                assert_eq!(device.free, offered.capacity, "units of {}", spec.name);
                assert_eq!(device.contexts, contexts, "contexts of {}", spec.name);
            }
            let real = self.node_at(slot as u32);
            if let Some(state) = real.state {
                let state = self.states.get(state);
                assert!(
                    state.nodes.contains(&real.key),
                    "{} is not listed",
                    spec.name
                );
                assert_eq!(state.free, real.canonical(&self.kinds, self.tagged));
            }
        }
    }
}
