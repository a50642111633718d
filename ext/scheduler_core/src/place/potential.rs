//! What the free GPUs of a node are worth to the requests that usually come, and what a
//! placement would destroy of it. Never looks at more than one node.
//!
//! After "Beware of Fragmentation" (Weng et al., USENIX ATC'23): a unit of a GPU is worth
//! something to a typical request if that request could use it where it is. FGD takes the
//! placement that destroys least of the expected worth. It counts every free GPU of a node as
//! usable when *one* such request fits, however little CPU is left for a second one. Here a part
//! of the worth is therefore capped by the GPU units that the node's CPU and memory could carry
//! if only that request came, so that a placement which leaves GPUs without CPU costs early and
//! not only when the last CPU goes. A typical request that few nodes can serve weighs more.

use super::learn::{Demand, Typical};
use super::request::Request;
use super::resources::{DeviceKind, Free};

/// Typical requests that are looked at, in blocks that the compiler turns into vector code.
pub(crate) const TYPICAL_MAX: usize = BLOCK * BLOCKS;
const BLOCK: usize = 16;
const BLOCKS: usize = 8;

type Block = [f32; BLOCK];
type Lanes = [Block; BLOCKS];

/// The knobs by which policies of this family differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// Odds of the capped worth against the uncapped when requests ask for CPU (or memory) and
    /// GPUs in the proportion in which the cluster has them; FGD: 0.
    pub capped_odds: f64,
    /// Exponent of the scarcity of nodes that can serve a typical request; FGD: 0.
    pub scarcity: f64,
    /// Worth, in whole devices, of a node that is entirely free: the best-fit term; FGD: 0.
    pub best_fit: f32,
    /// Whether a share may take any device of a node, or the fullest on which it fits; FGD: any.
    pub any_device: bool,
}

/// What the cluster has and what is asked of it; GPUs in units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Supply {
    pub cpu: u64,
    pub mem: u64,
    pub units: u64,
    pub devices: u64,
}

impl Supply {
    /// Units of a usual device.
    fn device(&self) -> f64 {
        self.units as f64 / self.devices.max(1) as f64
    }

    /// CPU or memory asked for per GPU, over that which there is per GPU: above 1 it runs out
    /// before the GPUs do.
    fn tightness(&self, demand: &Demand) -> f64 {
        let asked = demand.units as f64 + demand.devices as f64 * self.device();
        let of = |wanted: u64, has: u64| wanted as f64 / has.max(1) as f64;
        let host = of(demand.cpu, self.cpu).max(of(demand.mem, self.mem));
        if asked > 0.0 {
            host * self.units as f64 / asked
        } else {
            0.0
        }
    }
}

/// A typical request as seen by one kind of device.
#[derive(Clone, Debug)]
struct KindLanes {
    /// Units needed on each device; infinite when this kind will not do.
    need: Lanes,
    /// GPU units that a thousandth of a core (a MiB of memory) can carry.
    per_cpu: Lanes,
    per_mem: Lanes,
}

/// The typical requests, one per lane, heaviest first.
#[derive(Clone, Debug)]
pub(crate) struct Potential {
    cpu: Lanes,
    mem: Lanes,
    count: Lanes,
    uncapped: Lanes,
    capped: Lanes,
    kinds: Vec<KindLanes>,
    blocks: usize,
    best_fit: f32,
}

/// What a state is worth to one block of typical requests, and the parts from which it follows.
#[derive(Clone, Copy, Debug, Default)]
struct BlockWorth {
    usable: Block,
    eligible: Block,
    value: Block,
}

/// What a state is worth to each typical request; the heaviest lie together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Worth {
    blocks: [BlockWorth; BLOCKS],
    /// One bit per block that has any value to lose.
    filled: u8,
}

const NOTHING: Lanes = [[0.0; BLOCK]; BLOCKS];

fn set(lanes: &mut Lanes, lane: usize, value: f32) {
    lanes[lane / BLOCK][lane % BLOCK] = value;
}

impl Potential {
    /// Draws up the tables. `able` gives the GPU units of all nodes that could serve a request
    /// if they were empty.
    pub fn new(
        (typical, demand): (&[Typical], &Demand),
        kinds: &[DeviceKind],
        weights: Weights,
        supply: &Supply,
        able: impl Fn(&Request) -> u64,
    ) -> Potential {
        let uncapped = 1.0 / (1.0 + weights.capped_odds * supply.tightness(demand).powi(2));
        let unusable = KindLanes {
            need: [[f32::INFINITY; BLOCK]; BLOCKS],
            per_cpu: NOTHING,
            per_mem: NOTHING,
        };
        let mut tables = Potential {
            cpu: NOTHING,
            mem: NOTHING,
            count: NOTHING,
            uncapped: NOTHING,
            capped: NOTHING,
            kinds: vec![unusable; kinds.len()],
            blocks: typical.len().div_ceil(BLOCK),
            best_fit: weights.best_fit * supply.device() as f32,
        };
        for (lane, Typical { request, weight }) in typical.iter().enumerate() {
            let Some(gpu) = request.gpu else { continue };
            let scarcity = supply.units as f64 / able(request).max(1) as f64;
            let weight = weight * scarcity.powf(weights.scarcity);
            set(&mut tables.cpu, lane, request.cpu_millis as f32);
            set(&mut tables.mem, lane, request.mem_mb as f32);
            set(&mut tables.count, lane, f32::from(gpu.count));
            set(&mut tables.uncapped, lane, (weight * uncapped) as f32);
            set(&mut tables.capped, lane, (weight * (1.0 - uncapped)) as f32);
            for (kind, lanes) in kinds.iter().zip(&mut tables.kinds) {
                let Some(need) = kind.need(&gpu) else {
                    continue;
                };
                let units = f64::from(need) * f64::from(gpu.count);
                set(&mut lanes.need, lane, need as f32);
                let per = |amount: u32| (units / f64::from(amount.max(1))) as f32;
                set(&mut lanes.per_cpu, lane, per(request.cpu_millis));
                set(&mut lanes.per_mem, lane, per(request.mem_mb));
            }
        }
        tables
    }

    /// Blocks of typical requests that there are: the depth of an exact loss.
    pub fn depth(&self) -> u8 {
        self.blocks.max(1) as u8
    }

    /// Kinds of devices that the tables know.
    pub fn kinds(&self) -> usize {
        self.kinds.len()
    }

    /// What a state is worth.
    pub fn worth(&self, free: &Free) -> Worth {
        let mut worth = Worth::default();
        let Some(first) = free.devices.first() else {
            return worth;
        };
        for (block, out) in worth.blocks.iter_mut().enumerate().take(self.blocks) {
            for device in free.devices.iter().filter(|device| device.contexts > 0) {
                let need = &self.kinds[usize::from(device.kind)].need[block];
                add_device(
                    device.free as f32,
                    need,
                    1.0,
                    &mut out.usable,
                    &mut out.eligible,
                );
            }
            let host = (free.cpu as f32, free.mem as f32);
            let kind = usize::from(first.kind);
            out.value = self.values(block, kind, host, &out.usable, &out.eligible);
            worth.filled |= u8::from(out.value.iter().any(|value| *value > 0.0)) << block;
        }
        worth
    }

    /// Worth of one block of typical requests, given the usable units and devices for each.
    #[inline(always)]
    fn values(
        &self,
        block: usize,
        kind: usize,
        (cpu, mem): (f32, f32),
        usable: &Block,
        eligible: &Block,
    ) -> Block {
        let (need_cpu, need_mem) = (&self.cpu[block], &self.mem[block]);
        let (count, uncapped, capped) = (
            &self.count[block],
            &self.uncapped[block],
            &self.capped[block],
        );
        let (per_cpu, per_mem) = (
            &self.kinds[kind].per_cpu[block],
            &self.kinds[kind].per_mem[block],
        );
        let mut out = [0.0; BLOCK];
        for lane in 0..BLOCK {
            let by_cpu = per_cpu[lane] * cpu;
            let by_mem = per_mem[lane] * mem;
            let carried = if by_cpu < by_mem { by_cpu } else { by_mem };
            let within = if usable[lane] < carried {
                usable[lane]
            } else {
                carried
            };
            let worth = uncapped[lane] * usable[lane] + capped[lane] * within;
            let fits =
                (cpu >= need_cpu[lane]) & (mem >= need_mem[lane]) & (eligible[lane] >= count[lane]);
            out[lane] = if fits { worth } else { 0.0 };
        }
        out
    }

    /// What is lost when `request` takes `units` of each of `devices` (positions in `free`).
    /// Over only the first `depth` blocks it is never above the exact loss, not even by rounding:
    /// losses are not negative, and adding and rounding keep the order.
    pub fn loss(
        &self,
        free: &Free,
        worth: &Worth,
        request: &Request,
        (devices, units): (&[u8], u32),
        depth: u8,
    ) -> f32 {
        let Some(first) = free.devices.first() else {
            return 0.0;
        };
        let kind = usize::from(first.kind);
        let host = (
            (free.cpu - request.cpu_millis) as f32,
            (free.mem - request.mem_mb) as f32,
        );
        let blocks = self.blocks.min(usize::from(depth));
        let contexts = request.gpu.map_or(0, |gpu| gpu.contexts_taken());
        let mut sum = [0.0; BLOCK];
        for block in (0..blocks).filter(|block| worth.filled >> block & 1 == 1) {
            let BlockWorth {
                mut usable,
                mut eligible,
                value: before,
            } = worth.blocks[block];
            for position in devices {
                let device = &free.devices[usize::from(*position)];
                let need = &self.kinds[usize::from(device.kind)].need[block];
                add_device(device.free as f32, need, -1.0, &mut usable, &mut eligible);
                if device.contexts > contexts {
                    let left = (device.free - units) as f32;
                    add_device(left, need, 1.0, &mut usable, &mut eligible);
                }
            }
            let after = self.values(block, kind, host, &usable, &eligible);
            for lane in 0..BLOCK {
                let lost = before[lane] - after[lane];
                sum[lane] += if lost > 0.0 { lost } else { 0.0 };
            }
        }
        total(sum)
    }

    /// The best-fit term: how much of the node would still be free.
    pub fn spare(&self, cpu: (u32, u32), units: (u32, u32)) -> f32 {
        let part = |(left, all): (u32, u32)| left as f32 / all.max(1) as f32;
        self.best_fit * (part(cpu) + part(units))
    }
}

/// Adds (or with `sign` -1 removes) a device to what is usable by each typical request.
#[inline(always)]
fn add_device(free: f32, need: &Block, sign: f32, usable: &mut Block, eligible: &mut Block) {
    let units = sign * free;
    for lane in 0..BLOCK {
        let fits = free >= need[lane];
        usable[lane] += if fits { units } else { 0.0 };
        eligible[lane] += if fits { sign } else { 0.0 };
    }
}

/// Adds up the lanes pairwise: a fixed order that vector code can follow.
fn total(mut sum: Block) -> f32 {
    let mut width = BLOCK / 2;
    while width > 0 {
        for lane in 0..width {
            sum[lane] += sum[lane + width];
        }
        width /= 2;
    }
    sum[0]
}
