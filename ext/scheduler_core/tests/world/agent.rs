//! A node agent of the simulation: it carries orders out late, fails some, tells its pods, and
//! judges by its own books whether the core ever gave away more GPU memory than there is.

use std::collections::BTreeMap;

use scheduler_core::messages::{Alloc, PodFact, PodRef};
use scheduler_core::model::FuncKey;
use scheduler_core::nodes::{Capacity, GpuShare, Holding};
use scheduler_core::pod::State;

/// Memory of each GPU.
pub const GPU_MIB: u64 = 24_000;

#[derive(Clone)]
pub struct AgentPod {
    pub key: FuncKey,
    pub revision: i64,
    pub state: State,
    pub alloc: Alloc,
    /// Its worker may be saved.
    pub save: bool,
}

pub struct Agent {
    pub name: String,
    pub capacity: Capacity,
    pub up: bool,
    pub pods: BTreeMap<String, AgentPod>,
    /// The stream of facts keeps their order; this is when the last one arrives.
    pub stream_ms: u64,
    pub keeps_snapshots: bool,
    /// What it keeps, by function: the revision.
    pub snapshots: BTreeMap<FuncKey, i64>,
    /// Attempts that failed, by function and revision.
    pub failed: BTreeMap<(FuncKey, i64), u32>,
}

impl Agent {
    /// Takes the room of a pod, or says on which GPU it does not fit.
    pub fn admit(&self, pod_id: &str, alloc: &Alloc, leaving: &[&str]) -> Result<(), String> {
        let stays = |id: &&String| *id != pod_id && !leaving.contains(&id.as_str());
        let pods = self.pods.keys().filter(stays).count() as u32;
        if self.capacity.pods_max > 0 && pods >= self.capacity.pods_max {
            return Err(format!("there are {pods} pods already"));
        }
        for device in &alloc.devices {
            let capacity = self.capacity.gpus.iter().find(|gpu| gpu.index == *device);
            let capacity = capacity.ok_or("no such GPU")?.vram_mib;
            let others = self.pods.iter().filter(|(id, pod)| {
                *id != pod_id
                    && pod.state != State::Standby
                    && !leaving.contains(&id.as_str())
                    && pod.alloc.devices.contains(device)
            });
            let taken: u64 = others.map(|(_, pod)| per_gpu(&pod.alloc)).sum();
            if taken + per_gpu(alloc) > capacity {
                return Err(format!("GPU {device} has {taken} of {capacity} taken"));
            }
        }
        Ok(())
    }

    pub fn fact(&self, pod_id: &str) -> Option<PodFact> {
        let pod = self.pods.get(pod_id)?;
        let parked = pod.state == State::Standby;
        let share = |index: &u32| GpuShare {
            index: *index,
            mib: per_gpu(&pod.alloc),
            contexts: 1,
        };
        let gpus = pod.alloc.devices.iter().map(share);
        Some(PodFact {
            pod_id: pod_id.to_owned(),
            node: self.name.clone(),
            key: pod.key.clone(),
            revision: pod.revision,
            state: pod.state,
            reason: String::new(),
            held: Holding {
                cpu_millis: if parked { 0 } else { pod.alloc.cpu_millis },
                mem_mib: pod.alloc.mem_mib,
                cache_mib: pod.alloc.cache_mib,
                pods: 1,
                gpus: if parked { Vec::new() } else { gpus.collect() },
            },
        })
    }

    pub fn set(&mut self, pod: &PodRef, state: State) {
        if let Some(known) = self.pods.get_mut(&pod.pod_id) {
            known.state = state;
        }
    }
}

/// Thousandths of GPUs, each rounded up; all GPUs of this world are of one size.
pub fn gpu_milli(alloc: &Alloc) -> u64 {
    let share = (per_gpu(alloc) * 1000).div_ceil(GPU_MIB);
    share * alloc.devices.len() as u64
}

fn per_gpu(alloc: &Alloc) -> u64 {
    alloc.vram_mib + alloc.context_overhead_mib
}
