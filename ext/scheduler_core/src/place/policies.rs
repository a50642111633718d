//! The placement policies: one score per node state and request, the highest wins.
//! Never depends on the position of a node, except where that is the policy (first fit, random).

use super::node::tag_of;
use super::potential::{Potential, Weights, Worth};
use super::request::{GpuShare, Request};
use super::resources::{Ask, Free, Shape};

/// How the best node is chosen among those that fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// A random node, from this seed.
    Random(u64),
    /// The node that was added first.
    FirstFit,
    /// The node that has least left afterwards.
    BestFit,
    /// The node whose free resources have the smallest dot product with the request.
    DotProd,
    /// Nodes that run the same kind of GPU demand (share, one, two, four, eight devices).
    GpuClustering,
    /// Devices in use first, then nodes in use, then empty nodes.
    GpuPacking,
    /// Fragmentation gradient descent (USENIX ATC'23).
    Fgd,
    /// FGD with worth capped by what CPU and memory can carry, and a best-fit term.
    #[default]
    Inferx,
}

impl Policy {
    /// All policies, with seed 0 where one is needed.
    pub const ALL: [Policy; 8] = [
        Policy::Random(0),
        Policy::FirstFit,
        Policy::BestFit,
        Policy::DotProd,
        Policy::GpuClustering,
        Policy::GpuPacking,
        Policy::Fgd,
        Policy::Inferx,
    ];

    /// The name as published; `inferx` for the default.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Random(_) => "Random",
            Policy::FirstFit => "FirstFit",
            Policy::BestFit => "BestFit",
            Policy::DotProd => "DotProd",
            Policy::GpuClustering => "GpuClustering",
            Policy::GpuPacking => "GpuPacking",
            Policy::Fgd => "FGD",
            Policy::Inferx => "inferx",
        }
    }

    /// The policy of that name.
    pub fn named(name: &str) -> Option<Policy> {
        Policy::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// Whether nodes must be looked at one by one, because the policy tells equal ones apart.
    pub(crate) fn by_node(self) -> bool {
        matches!(self, Policy::Random(_) | Policy::FirstFit)
    }

    pub(crate) fn weights(self) -> Option<Weights> {
        match self {
            Policy::Fgd => Some(Weights {
                capped_odds: 0.0,
                scarcity: 0.0,
                best_fit: 0.0,
                any_device: true,
            }),
            Policy::Inferx => Some(Weights {
                capped_odds: 0.5,
                scarcity: 0.5,
                best_fit: 0.005,
                any_device: false,
            }),
            _ => None,
        }
    }
}

/// The largest node of the cluster: the yardstick of the policies that compare dimensions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Yardstick {
    pub cpu: u32,
    pub units: u32,
}

/// All that a score depends on, beside the state and the request.
#[derive(Clone, Debug)]
pub(crate) struct Scorer {
    pub policy: Policy,
    /// Whether all devices of a node are tried, or only the fullest that fit.
    pub any_device: bool,
    pub potential: Potential,
    pub yardstick: Yardstick,
}

/// A score and the devices (positions in the state) it was computed for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    pub score: f32,
    /// Where the window of devices starts in the list of candidates.
    pub window: usize,
}

impl Scorer {
    /// The depth at which scores are exact.
    pub fn depth(&self) -> u8 {
        self.potential.depth()
    }

    /// The score of a request on a state, or `None` when it does not fit. At less than
    /// [`Scorer::depth`], a score that is at least the exact one. `candidates` is a buffer; it
    /// is left with the devices among which the window lies.
    pub fn score(
        &self,
        (free, shape): (&Free, &Shape),
        worth: Option<&Worth>,
        ask: &Ask,
        depth: u8,
        candidates: &mut Vec<u8>,
    ) -> Option<Scored> {
        if !free.fits_host(&ask.request) {
            return None;
        }
        let units = free.units();
        let state = Subject {
            free,
            shape,
            units,
            worth,
        };
        let Some(gpu) = ask.request.gpu else {
            let score = self.rate(&state, &ask.request, (&[], 0), depth);
            return Some(Scored { score, window: 0 });
        };
        free.candidates(ask, candidates);
        let last = gpu.devices_taken() - 1;
        let mut best: Option<Scored> = None;
        for (window, devices) in candidates.windows(last + 1).enumerate() {
            let newest = free.devices[usize::from(devices[last])];
            if free.devices[usize::from(devices[0])].kind != newest.kind {
                continue;
            }
            // A window that only swaps a device for an equal one scores the same.
            if window > 0 && free.devices[usize::from(candidates[window - 1])] == newest {
                continue;
            }
            let need = ask.needs[usize::from(newest.kind)];
            let score = self.rate(&state, &ask.request, (devices, need), depth);
            if best.is_none_or(|best| score > best.score) {
                best = Some(Scored { score, window });
            }
            if !self.any_device {
                break;
            }
        }
        best
    }

    fn rate(
        &self,
        state: &Subject<'_>,
        request: &Request,
        devices: (&[u8], u32),
        depth: u8,
    ) -> f32 {
        let Subject {
            free,
            shape,
            units,
            worth,
        } = *state;
        let taken = devices.0.len() as u32 * devices.1;
        let (cpu_left, units_left) = (free.cpu - request.cpu_millis, units - taken);
        if let Some(worth) = worth {
            let loss = self.potential.loss(free, worth, request, devices, depth);
            let spare = self
                .potential
                .spare((cpu_left, shape.cpu), (units_left, shape.units));
            return -loss - spare;
        }
        let of = |part: u32, all: u32| part as f32 / all.max(1) as f32;
        let cpu = |part: u32| of(part, self.yardstick.cpu);
        let gpu = |part: u32| of(part, self.yardstick.units);
        match self.policy {
            Policy::BestFit => -(cpu(cpu_left) + gpu(units_left)),
            Policy::DotProd => -(cpu(free.cpu) * cpu(request.cpu_millis) + gpu(units) * gpu(taken)),
            // Within a class the fuller node first.
            Policy::GpuClustering => clustering(free, request) - gpu(units) / 2.0,
            Policy::GpuPacking => {
                let in_use = units < shape.units || free.cpu < shape.cpu;
                let shared = devices.0.iter().any(|position| {
                    let device = free.devices[usize::from(*position)];
                    let share = request.gpu.is_some_and(|gpu| gpu.share != GpuShare::Whole);
                    share && device.free * free.devices.len() as u32 != shape.units
                });
                // Within a class the fuller node first.
                f32::from(u8::from(shared) * 2 + u8::from(in_use)) - gpu(units) / 2.0
            }
            _ => 0.0,
        }
    }
}

/// What is scored.
#[derive(Clone, Copy)]
struct Subject<'a> {
    free: &'a Free,
    shape: &'a Shape,
    units: u32,
    worth: Option<&'a Worth>,
}

/// Only this kind of demand on the node, this kind among others, no GPU demand yet, others only.
fn clustering(free: &Free, request: &Request) -> f32 {
    let Some(tag) = tag_of(request) else {
        return 0.0;
    };
    let own = 1 << tag;
    if free.tags == own {
        3.0
    } else if free.tags == 0 {
        1.0
    } else if free.tags & own != 0 {
        2.0
    } else {
        0.0
    }
}
