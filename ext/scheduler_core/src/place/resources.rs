//! What nodes offer and what is left of it, in a form in which equal nodes look equal.
//! Never knows which node it describes, nor who asks.

use std::hash::{Hash, Hasher};

use super::hashing::Mixer;
use super::request::{GpuRequest, GpuShare, Misfit, Request};

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
            GpuShare::Units(units) => {
                let overhead = self.overhead.checked_mul(gpu.contexts_taken())?;
                let need = units.checked_add(overhead)?;
                (need <= self.capacity).then_some(need)
            }
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
    /// Whether a device could take its part of `gpu`.
    fn usable(device: &Device, kinds: &[DeviceKind], gpu: &GpuRequest) -> bool {
        device.contexts >= gpu.contexts_taken()
            && kinds[usize::from(device.kind)]
                .need(gpu)
                .is_some_and(|need| device.free >= need)
    }

    /// Whether the request fits, and otherwise the first rule that it breaks. Devices must be in
    /// canonical order.
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
        let count = count.max(1);
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

    /// Whether everything but the GPUs suffices.
    pub fn fits_host(&self, request: &Request) -> bool {
        self.cpu >= request.cpu_millis
            && self.mem >= request.mem_mb
            && self.cache >= request.cache_mb
            && self.pods > 0
    }

    /// Positions of the devices that could take a part of the request, in canonical order.
    pub fn candidates(&self, ask: &Ask, out: &mut Vec<u8>) {
        out.clear();
        for (position, device) in self.devices.iter().enumerate() {
            if device.contexts >= ask.contexts && device.free >= ask.needs[usize::from(device.kind)]
            {
                out.push(position as u8);
            }
        }
    }

    /// GPU units left on all devices.
    pub fn units(&self) -> u32 {
        self.devices.iter().map(|device| device.free).sum()
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

/// A request with what it needs of each kind of device.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub request: Request,
    /// Units by kind; [`NEVER`] for kinds that will not do.
    pub needs: Vec<u32>,
    contexts: u32,
    needs_least: u32,
    kinds: u64,
}

/// More than any device has.
pub(crate) const NEVER: u32 = u32::MAX;

/// Kinds beyond this share one bit, so that a digest may say "perhaps" but never a wrong "no".
fn kind_bit(kind: usize) -> u64 {
    1 << kind.min(63)
}

impl Ask {
    pub fn new(request: Request, kinds: &[DeviceKind]) -> Ask {
        let need = |kind: &DeviceKind| request.gpu.and_then(|gpu| kind.need(&gpu));
        let needs: Vec<u32> = kinds
            .iter()
            .map(|kind| need(kind).unwrap_or(NEVER))
            .collect();
        let able = (0..needs.len()).filter(|kind| needs[*kind] != NEVER);
        let kinds = able.fold(0, |bits, kind| bits | kind_bit(kind));
        let contexts = request.gpu.map_or(0, |gpu| gpu.contexts_taken());
        let needs_least = needs.iter().copied().min().unwrap_or(NEVER);
        Ask {
            request,
            needs,
            contexts,
            needs_least,
            kinds,
        }
    }
}

/// The few numbers of a state that rule out most requests, kept close together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Digest {
    cpu: u32,
    mem: u32,
    free_most: u32,
    /// Whether a ready node is in the state.
    pub live: bool,
    kinds: u64,
}

impl Digest {
    pub fn new(free: &Free) -> Digest {
        let usable = || free.devices.iter().filter(|device| device.contexts > 0);
        Digest {
            cpu: free.cpu,
            mem: free.mem,
            free_most: usable().map(|device| device.free).max().unwrap_or(0),
            live: false,
            kinds: usable().fold(0, |bits, device| bits | kind_bit(usize::from(device.kind))),
        }
    }

    /// False when the request certainly does not fit.
    pub fn may_fit(&self, ask: &Ask) -> bool {
        let host = (self.cpu >= ask.request.cpu_millis) & (self.mem >= ask.request.mem_mb);
        let gpu = (self.free_most >= ask.needs_least) & (self.kinds & ask.kinds != 0);
        host & (gpu | ask.request.gpu.is_none())
    }
}
