//! A made-up cluster and made-up pods, for those who have no trace at hand.
//! Never meant to resemble one particular cluster: only its kinds of variety.

use scheduler_core::place::{DeviceSpec, NodeSpec};

use crate::trace::{GPU_UNITS, Nodes, Pod, Random, Trace};

/// Cores, GiB, GPUs and GPU type of a node, and how many of a hundred nodes are like that.
const SHAPES: [(u32, u32, usize, &str, usize); 5] = [
    (16, 128, 2, "small", 10),
    (96, 512, 2, "light", 30),
    (64, 256, 8, "dense", 10),
    (96, 384, 8, "common", 45),
    (128, 768, 8, "large", 5),
];
const NODES: usize = 1000;
const PODS: usize = 8000;

fn pick<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.below(of.len())]
}

fn pod(random: &mut Random, number: usize) -> Pod {
    let (gpus, gpu_millis) = match random.below(100) {
        0..13 => (0, 0),
        13..60 => (1, GPU_UNITS),
        60..97 => (1, pick(random, &[110, 230, 320, 470, 590, 650, 810])),
        97 => (2, GPU_UNITS),
        98 => (4, GPU_UNITS),
        _ => (8, GPU_UNITS),
    };
    let per_gpu = pick(random, &[4, 6, 8, 8, 10, 12, 16]);
    let cores = per_gpu * u32::from(gpus.max(1));
    let constrained = gpus > 0 && random.below(10) == 0;
    Pod {
        name: format!("pod-{number:05}"),
        cpu_millis: cores * 1000,
        mem_mb: cores * pick(random, &[2048, 4096]),
        gpus,
        gpu_millis,
        types: if constrained {
            pick(random, &["light", "common|large"])
        } else {
            ""
        }
        .to_owned(),
    }
}

/// The same nodes and pods each time.
pub fn generate() -> (Nodes, Vec<Trace>) {
    let mut random = Random::new(1);
    let mut nodes = Vec::new();
    for (cores, gib, gpus, gpu_type, per_hundred) in SHAPES {
        let device = DeviceSpec {
            gpu_type: gpu_type.to_owned(),
            capacity: GPU_UNITS,
        };
        for _ in 0..NODES * per_hundred / 100 {
            nodes.push(NodeSpec {
                name: format!("node-{:04}", nodes.len()),
                cpu_millis: cores * 1000,
                mem_mb: gib * 1024,
                cache_mb: 0,
                devices: vec![device.clone(); gpus],
                context_overhead: 0,
                contexts_max: None,
                pods_max: None,
            });
        }
    }
    let pods = (0..PODS).map(|number| pod(&mut random, number)).collect();
    (Nodes(nodes), vec![Trace::new("generated".to_owned(), pods)])
}
