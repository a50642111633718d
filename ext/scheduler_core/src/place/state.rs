//! Node states: nodes of one shape with the same resources left are interchangeable and share one.
//! Never knows a policy; it says what is left, who has it and which states came to life since when.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::request::{GpuRequest, GpuShare, Misfit, Request};

/// A fast hash without a secret: keys are our own numbers, and ties must repeat between runs.
#[derive(Clone, Copy, Default)]
pub(crate) struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

pub(crate) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;

/// The hash of a value under [`Mixer`].
pub(crate) fn hash_of(value: &(impl Hash + ?Sized)) -> u64 {
    let mut mixer = Mixer::default();
    value.hash(&mut mixer);
    mixer.finish()
}

/// Devices that differ only in what is left on them.
#[derive(Clone, Debug)]
pub(crate) struct DeviceKind {
    pub gpu_type: u8,
    pub capacity: u32,
    pub overhead: u32,
    /// Of the content, not of the number of the kind: it orders devices and breaks ties.
    pub hash: u64,
}

impl DeviceKind {
    /// Units that a request takes of one such device, or `None` when it can never use it.
    pub fn need(&self, gpu: &GpuRequest) -> Option<u32> {
        if !gpu.types.contains(self.gpu_type) {
            return None;
        }
        match gpu.share {
            GpuShare::Whole => Some(self.capacity),
            GpuShare::Units(units) => units
                .checked_add(self.overhead)
                .filter(|need| *need <= self.capacity),
        }
    }
}

/// Nodes that are equal when empty.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub cpu: u32,
    /// A node of this shape with nothing on it, in canonical form.
    pub empty: Free,
    /// All GPU units of the node.
    pub units: u32,
    /// Nodes of this shape, ready or not.
    pub nodes: u32,
    pub hash: u64,
}

/// No limit on contexts or pods is kept as this value and never counted down.
pub(crate) const UNLIMITED: u32 = u32::MAX;

/// What is left on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Device {
    pub kind: u16,
    pub free: u32,
    pub contexts: u32,
}

/// Puts devices into canonical order: by kind, then the fullest first.
pub(crate) fn sort_devices(devices: &mut [Device], kinds: &[DeviceKind]) {
    devices.sort_unstable_by_key(|device| {
        (
            kinds[usize::from(device.kind)].hash,
            device.free,
            device.contexts,
        )
    });
}

/// What is left on a node, with its devices in canonical order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Free {
    pub shape: u32,
    pub cpu: u32,
    pub mem: u32,
    pub cache: u32,
    pub pods: u32,
    /// Kinds of GPU demand that run here, one bit each (only [`super::Policy::GpuClustering`]).
    pub tags: u8,
    pub devices: Vec<Device>,
}

impl Free {
    /// Devices that could each take their part of `gpu`, as positions in runs of one kind.
    fn usable(device: &Device, kinds: &[DeviceKind], gpu: &GpuRequest) -> bool {
        device.contexts > 0
            && kinds[usize::from(device.kind)]
                .need(gpu)
                .is_some_and(|need| device.free >= need)
    }

    /// Whether the request fits, and otherwise the first rule that it breaks.
    pub fn check(&self, request: &Request, kinds: &[DeviceKind]) -> Result<(), Misfit> {
        if self.pods == 0 {
            return Err(Misfit::PodLimit);
        }
        if self.cpu < request.cpu_millis {
            return Err(Misfit::Cpu);
        }
        if self.mem < request.mem_mb || self.cache < request.cache_mb {
            return Err(Misfit::Memory);
        }
        let Some(gpu) = request.gpu else {
            return Ok(());
        };
        if self.run_of(gpu.count, |device| Free::usable(device, kinds, &gpu)) {
            return Ok(());
        }
        if !self.run_of(gpu.count, |device| {
            gpu.types.contains(kinds[usize::from(device.kind)].gpu_type)
        }) {
            return Err(Misfit::GpuType);
        }
        let roomy = |device: &Device| {
            kinds[usize::from(device.kind)]
                .need(&gpu)
                .is_some_and(|need| device.free >= need)
        };
        let misfit = if self.run_of(gpu.count, roomy) {
            Misfit::Contexts
        } else {
            Misfit::GpuMemory
        };
        Err(misfit)
    }

    /// Whether `count` devices of one kind pass the test.
    fn run_of(&self, count: u8, test: impl Fn(&Device) -> bool) -> bool {
        let (mut kind, mut found) = (u16::MAX, 0);
        for device in &self.devices {
            if device.kind != kind {
                (kind, found) = (device.kind, 0);
            }
            found += u32::from(test(device));
            if found >= u32::from(count) {
                return true;
            }
        }
        false
    }

    /// Positions of the devices that could take a part of `gpu`, in canonical order.
    pub fn candidates(&self, kinds: &[DeviceKind], gpu: &GpuRequest, out: &mut Vec<u8>) {
        out.clear();
        for (position, device) in self.devices.iter().enumerate() {
            if Free::usable(device, kinds, gpu) {
                out.push(position as u8);
            }
        }
    }

    /// A hash of the content that does not depend on the order in which shapes were met.
    pub fn tie(&self, kinds: &[DeviceKind], shapes: &[Shape]) -> u64 {
        let mut mixer = Mixer::default();
        shapes[self.shape as usize].hash.hash(&mut mixer);
        (self.cpu, self.mem, self.cache, self.pods).hash(&mut mixer);
        for device in &self.devices {
            (
                kinds[usize::from(device.kind)].hash,
                device.free,
                device.contexts,
            )
                .hash(&mut mixer);
        }
        mixer.finish()
    }
}

/// One state; it is alive while a ready node is in it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub free: Free,
    pub tie: u64,
    /// Changes when the slot is given to another state, so that old references show.
    pub generation: u32,
    /// How often the state lost its last node; tells the valid entry of the list of the dead.
    pub deaths: u32,
    /// Ready nodes in this state: (hash of the name, slot of the node).
    pub nodes: BTreeSet<(u64, u32)>,
}

/// A state and the generation it was met in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRef {
    pub slot: u32,
    pub generation: u32,
}

/// All states, with a log of those that came to life.
#[derive(Clone, Debug, Default)]
pub(crate) struct States {
    slots: Vec<State>,
    by_free: FastMap<Free, u32>,
    /// Slots without nodes, oldest first; kept for a while because starts and stops repeat.
    dead: VecDeque<(u32, u32)>,
    live: usize,
    log: VecDeque<StateRef>,
    log_start: u64,
}

impl States {
    pub fn get(&self, slot: u32) -> &State {
        &self.slots[slot as usize]
    }

    /// Number of slots, dead ones included.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Number of states that some ready node is in.
    pub fn live(&self) -> usize {
        self.live
    }

    pub fn iter_live(&self) -> impl Iterator<Item = (StateRef, &State)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, state)| !state.nodes.is_empty())
            .map(|(slot, state)| {
                (
                    StateRef {
                        slot: slot as u32,
                        generation: state.generation,
                    },
                    state,
                )
            })
    }

    /// Whether the reference still means a state with nodes in it.
    pub fn is_live(&self, state: StateRef) -> bool {
        let held = &self.slots[state.slot as usize];
        held.generation == state.generation && !held.nodes.is_empty()
    }

    /// The end of the log; what comes to life later is found from here on.
    pub fn log_end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    /// States that came to life since `from`, or `None` when the log no longer reaches back.
    pub fn born_since(&self, from: u64) -> Option<impl Iterator<Item = StateRef>> {
        let skip = from.checked_sub(self.log_start)?;
        Some(self.log.iter().skip(skip as usize).copied())
    }

    /// Puts a node into the state that `free` describes and returns the slot of that state.
    pub fn enter(&mut self, free: Free, tie: impl Fn(&Free) -> u64, node: (u64, u32)) -> u32 {
        let slot = match self.by_free.get(&free) {
            Some(slot) => *slot,
            None => self.create(free, tie),
        };
        let state = &mut self.slots[slot as usize];
        if state.nodes.is_empty() {
            self.live += 1;
            self.log.push_back(StateRef {
                slot,
                generation: state.generation,
            });
            while self.log.len() > 2 * self.live + 64 {
                self.log.pop_front();
                self.log_start += 1;
            }
        }
        state.nodes.insert(node);
        slot
    }

    /// Takes a node out of its state.
    pub fn leave(&mut self, slot: u32, node: (u64, u32)) {
        let state = &mut self.slots[slot as usize];
        state.nodes.remove(&node);
        if state.nodes.is_empty() {
            self.live -= 1;
            state.deaths = state.deaths.wrapping_add(1);
            self.dead.push_back((slot, state.deaths));
        }
    }

    fn create(&mut self, free: Free, tie: impl Fn(&Free) -> u64) -> u32 {
        let hash = tie(&free);
        let reused = self.reusable();
        let slot = reused.unwrap_or(self.slots.len() as u32);
        self.by_free.insert(free.clone(), slot);
        if reused.is_some() {
            let state = &mut self.slots[slot as usize];
            self.by_free.remove(&state.free);
            (state.free, state.tie) = (free, hash);
            state.generation = state.generation.wrapping_add(1);
        } else {
            self.slots.push(State {
                free,
                tie: hash,
                generation: 1,
                deaths: 0,
                nodes: BTreeSet::new(),
            });
        }
        slot
    }

    fn reusable(&mut self) -> Option<u32> {
        while self.dead.len() > self.live + 256 {
            let (slot, deaths) = self.dead.pop_front()?;
            let state = &self.slots[slot as usize];
            // It may have come back to life, and even have died again, since it was listed.
            if state.nodes.is_empty() && state.deaths == deaths {
                return Some(slot);
            }
        }
        None
    }
}
