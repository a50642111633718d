//! The books of one node: what it has, what is taken, and whether a request fits.
//! They must never take more than is there by themselves; what a node reports is a fact all the
//! same.

use crate::nodes::{Capacity, GpuCapacity, GpuRequest, GpuShare, Holding, Request, Shortage};

/// The books of one node: what it has and what is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// What the node has.
    pub capacity: Capacity,
    /// What is taken.
    pub used: Holding,
}

impl Ledger {
    /// Books with nothing taken.
    pub fn new(capacity: Capacity) -> Ledger {
        Ledger {
            capacity,
            used: Holding::default(),
        }
    }

    /// Takes resources. The caller asked `fit` first, or tells what a node reports as a fact.
    pub fn take(&mut self, holding: &Holding) {
        self.used.add(holding);
    }

    /// Gives resources back.
    pub fn release(&mut self, holding: &Holding) {
        self.used.subtract(holding);
    }

    /// True when nothing is taken beyond what the node has.
    pub fn is_within_capacity(&self) -> bool {
        let (used, has) = (&self.used, &self.capacity);
        used.cpu_millis <= has.cpu_millis
            && used.mem_mib <= has.mem_mib
            && self.has_cache(0)
            && used.pods <= self.pods_max()
            && used.gpus.iter().all(|share| {
                let contexts_max = self.contexts_max();
                has.gpus
                    .iter()
                    .any(|gpu| gpu.index == share.index && share.mib <= gpu.vram_mib)
                    && share.contexts <= contexts_max
            })
    }

    /// Is there room for that much more in the cache memory?
    pub fn has_cache(&self, more_mib: u64) -> bool {
        let limit = self.capacity.cache_mib;
        limit == 0 || self.used.cache_mib + more_mib <= limit
    }

    fn contexts_max(&self) -> u32 {
        unlimited_if_0(self.capacity.contexts_per_gpu_max)
    }

    /// How many pods may be here at once.
    pub(crate) fn pods_max(&self) -> u32 {
        unlimited_if_0(self.capacity.pods_max)
    }

    pub(crate) fn share_of(&self, index: u32) -> (u64, u32) {
        let share = self.used.gpus.iter().find(|share| share.index == index);
        share.map_or((0, 0), |share| (share.mib, share.contexts))
    }

    /// Could the request fit here if nothing were taken? Answers by capacity alone, and may say yes
    /// to what `fit` refuses all the same.
    pub fn could_take(&self, request: &Request) -> bool {
        let has = &self.capacity;
        let host = request.cpu_millis <= has.cpu_millis && request.mem_mib <= has.mem_mib;
        let cache = has.cache_mib == 0 || request.cache_mib <= has.cache_mib;
        let Some(gpu) = request.gpu.as_ref().filter(|gpu| gpu.count > 0) else {
            return host && cache;
        };
        let any = gpu.kind.is_empty() || gpu.kind.eq_ignore_ascii_case("any");
        let overhead_mib = has.context_overhead_mib * u64::from(gpu.contexts);
        let needed_mib = match gpu.vram_mib {
            0 => 0, // whole GPUs, whatever they have
            mib => mib + overhead_mib,
        };
        let fits = |own: &&GpuCapacity| {
            (any || own.kind.eq_ignore_ascii_case(&gpu.kind)) && needed_mib <= own.vram_mib
        };
        host && cache && has.gpus.iter().filter(fits).count() >= gpu.count as usize
    }

    /// The holding that `request` would take here, on the fullest GPUs that fit, or what is
    /// missing.
    pub fn fit(&self, request: &Request) -> Result<Holding, Shortage> {
        self.fit_where(request, |_| true)
    }

    /// The same on these GPUs only.
    pub fn fit_on(&self, request: &Request, gpus: &[u32]) -> Result<Holding, Shortage> {
        self.fit_where(request, |index| gpus.contains(&index))
    }

    fn fit_where(
        &self,
        request: &Request,
        may_use: impl Fn(u32) -> bool,
    ) -> Result<Holding, Shortage> {
        let (used, has) = (&self.used, &self.capacity);
        if used.pods + request.pods > self.pods_max() {
            return Err(Shortage::Pods);
        }
        if used.cpu_millis + request.cpu_millis > has.cpu_millis {
            return Err(Shortage::Cpu);
        }
        if used.mem_mib + request.mem_mib > has.mem_mib {
            return Err(Shortage::Memory);
        }
        if !self.has_cache(request.cache_mib) {
            return Err(Shortage::CacheMemory);
        }
        let gpus = match &request.gpu {
            Some(gpu) if gpu.count > 0 => self.fit_gpus(gpu, &may_use)?,
            _ => Vec::new(),
        };
        Ok(Holding {
            cpu_millis: request.cpu_millis,
            mem_mib: request.mem_mib,
            cache_mib: request.cache_mib,
            pods: request.pods,
            gpus,
        })
    }

    fn fit_gpus(
        &self,
        request: &GpuRequest,
        may_use: &impl Fn(u32) -> bool,
    ) -> Result<Vec<GpuShare>, Shortage> {
        let any = request.kind.is_empty() || request.kind.eq_ignore_ascii_case("any");
        let mut kinds: Vec<&str> = Vec::new();
        for gpu in &self.capacity.gpus {
            let wanted = any || gpu.kind.eq_ignore_ascii_case(&request.kind);
            if wanted && !kinds.contains(&gpu.kind.as_str()) {
                kinds.push(&gpu.kind);
            }
        }
        // The types of one node are few; the best one leaves the least memory unused.
        let mut best: Option<(u64, Vec<GpuShare>)> = None;
        let mut shortage = Shortage::GpuType;
        for kind in kinds {
            match self.fit_kind(kind, request, may_use) {
                Ok(found) => {
                    if best.as_ref().is_none_or(|(left, _)| found.0 < *left) {
                        best = Some(found);
                    }
                }
                Err(why) => shortage = shortage.max(why),
            }
        }
        best.map(|(_, shares)| shares).ok_or(shortage)
    }

    fn fit_kind(
        &self,
        kind: &str,
        ask: &GpuRequest,
        may_use: &impl Fn(u32) -> bool,
    ) -> Result<(u64, Vec<GpuShare>), Shortage> {
        let count = ask.count as usize;
        let usable = |gpu: &&GpuCapacity| gpu.kind == kind && may_use(gpu.index);
        let of_kind = self.capacity.gpus.iter().filter(usable);
        let (mut total, mut with_memory) = (0, 0);
        let mut options = Vec::new();
        for gpu in of_kind {
            total += 1;
            let (used_mib, used_contexts) = self.share_of(gpu.index);
            let overhead = self.capacity.context_overhead_mib * u64::from(ask.contexts);
            let whole = ask.vram_mib == 0;
            let need = if whole {
                gpu.vram_mib
            } else {
                ask.vram_mib + overhead
            };
            if used_mib + need > gpu.vram_mib {
                continue;
            }
            with_memory += 1;
            if used_contexts + ask.contexts > self.contexts_max() {
                continue;
            }
            let share = GpuShare {
                index: gpu.index,
                mib: need,
                contexts: ask.contexts,
            };
            options.push((gpu.vram_mib - used_mib - need, share));
        }
        if options.len() < count {
            return Err(match () {
                () if total < count => Shortage::GpuCount,
                () if with_memory < count => Shortage::GpuMemory,
                () => Shortage::GpuContexts,
            });
        }
        options.sort_by_key(|(left, share)| (*left, share.index));
        options.truncate(count);
        let left = options.iter().map(|(left, _)| left).sum();
        Ok((left, options.into_iter().map(|(_, share)| share).collect()))
    }
}

fn unlimited_if_0(limit: u32) -> u32 {
    match limit {
        0 => u32::MAX,
        limit => limit,
    }
}
