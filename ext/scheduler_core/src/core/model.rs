//! The nouns of the core: functions, tenants, pods, their limits and policies.
//! They must hold data only; every decision is in the verbs.

use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "faults")]
use super::fault::Fault;
use super::messages::Refusal;
use super::tasks::{SnapshotTier, Task};
pub use super::times::{StartKind, StartTimes};
use crate::keepalive::{Adaptive, FunctionIx, TenantIx};
use crate::nodes::{GpuRequest, Holding, NodeId, Request};
use crate::place;
use crate::pod::State;

/// Number of a function inside one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FuncId(pub u32);

/// Number of a pod inside one core; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodIx(pub u64);

/// The whole name of a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct FuncKey {
    pub tenant: String,
    pub namespace: String,
    pub name: String,
}

/// Times and limits of the core itself, all in milliseconds.
#[derive(Clone, Debug)]
pub struct Config {
    /// First part of every pod id, different for each scheduler process.
    pub pod_id_prefix: String,
    /// An idle pod is parked this long after its last lease came back; `None` = the keep-alive
    /// policy says when, for each function from what it saw of its calls.
    pub idle_park_ms: Option<u64>,
    /// Share of held GPU time that the keep-alive policy lets be busy, above 0 and below 1: more
    /// parks earlier, less keeps more warm.
    pub busy_share: f64,
    /// A pod that became ready less than this ago makes room for nobody: two functions that want
    /// one place swap it at most once in this time.
    pub residence_min_ms: u64,
    /// Leases of one caller that follow each other within this time count as one visit.
    pub visit_gap_ms: u64,
    /// A ticket that waited this long asks for another replica whatever the wait ratio says.
    pub patience_ms: u64,
    /// Leases of a gateway that is silent for this long end.
    pub lease_ttl_ms: u64,
    /// Pods found ready at a start of the scheduler wait this long for their gateway to speak up.
    pub takeover_ms: u64,
    /// First back-off after a failed start; doubled each time up to `backoff_max_ms`.
    pub backoff_ms: u64,
    /// Longest back-off.
    pub backoff_max_ms: u64,
    /// The same for snapshots that could not be taken.
    pub snapshot_backoff_ms: u64,
    /// Longest of these.
    pub snapshot_backoff_max_ms: u64,
    /// A worker that was to be saved is ready, and its node says nothing of the snapshot for so
    /// long: it failed.
    pub snapshot_wait_ms: u64,
    /// How nodes are chosen; the others are there to be compared with the default.
    pub placement: place::Policy,
    /// How those that make room are chosen; as above.
    pub eviction: Eviction,
    /// The rule that a test breaks.
    #[cfg(feature = "faults")]
    pub fault: Option<Fault>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            pod_id_prefix: String::new(),
            idle_park_ms: None,
            busy_share: Adaptive::DEFAULT_BUSY_SHARE,
            residence_min_ms: 1_000,
            visit_gap_ms: 250,
            patience_ms: 1_000,
            lease_ttl_ms: 15_000,
            takeover_ms: 3_000,
            backoff_ms: 1_000,
            backoff_max_ms: 60_000,
            snapshot_backoff_ms: 30_000,
            snapshot_backoff_max_ms: 3_600_000,
            snapshot_wait_ms: 600_000,
            placement: place::Policy::default(),
            eviction: Eviction::Worth,
            #[cfg(feature = "faults")]
            fault: None,
        }
    }
}

impl Config {
    /// Back-off after this many failures in a row.
    pub fn backoff(&self, failures: u32) -> u64 {
        let doubled = self
            .backoff_ms
            .saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.backoff_max_ms)
    }
}

/// How the pods that make room are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The least wait caused per MiB.
    Worth,
    /// The one unused longest.
    LeastRecentlyUsed,
}

impl Eviction {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Eviction> {
        match name {
            "worth" => Some(Eviction::Worth),
            "LRU" => Some(Eviction::LeastRecentlyUsed),
            _ => None,
        }
    }
}

/// What one pod of a function needs. `vram_mib` is per GPU, 0 = whole GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Spec {
    pub cpu_millis: u64,
    pub mem_mib: u64,
    pub cache_mib: u64,
    /// Host memory of a standby pod without its GPU image, 0 = the same as `mem_mib`.
    pub standby_mem_mib: u64,
    pub gpu_kind: String,
    pub gpu_count: u32,
    pub vram_mib: u64,
    pub contexts: u32,
    /// A standby pod keeps its GPU memory in the node's cache memory (otherwise in a file).
    pub standby_image_in_memory: bool,
    /// How long a start is expected to take before one was seen.
    pub expected: StartTimes,
}

impl Spec {
    /// What a start from nothing asks of a node.
    pub fn request(&self) -> Request {
        Request {
            cpu_millis: self.cpu_millis,
            mem_mib: self.mem_mib,
            cache_mib: self.cache_mib,
            pods: 1,
            gpu: (self.gpu_count > 0).then(|| GpuRequest {
                kind: self.gpu_kind.clone(),
                count: self.gpu_count,
                vram_mib: self.vram_mib,
                contexts: self.contexts.max(1),
            }),
        }
    }

    /// Cache memory that the GPU image of a standby pod takes, given what it holds on the GPUs.
    pub fn image_mib(&self, held: &Holding) -> u64 {
        match self.standby_image_in_memory {
            true => held.gpus.iter().map(|share| share.mib).sum(),
            false => 0,
        }
    }

    /// What a standby pod holds, given its holding while it ran.
    pub fn standby_holding(&self, held: &Holding) -> Holding {
        let resident = if self.standby_mem_mib == 0 {
            self.mem_mib
        } else {
            self.standby_mem_mib
        };
        Holding {
            cpu_millis: 0,
            mem_mib: resident.min(self.mem_mib),
            cache_mib: self.cache_mib + self.image_mib(held),
            pods: 1,
            gpus: Vec::new(),
        }
    }
}

/// The scaling policy of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Policy {
    pub min_replica: u32,
    pub max_replica: u32,
    pub standby_per_node: u32,
    /// Slots of one pod.
    pub parallel: u32,
    pub queue_len: u32,
    pub queue_timeout_ms: u64,
    /// Another replica starts when the slots wanted exceed this part of those of the replicas that
    /// run, in thousandths.
    pub wait_ratio_milli: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            min_replica: 0,
            max_replica: 1,
            standby_per_node: 1,
            parallel: 50,
            queue_len: 100,
            queue_timeout_ms: 30_000,
            wait_ratio_milli: 100,
        }
    }
}

/// Limits of a tenant; `None` = no limit. GPUs are counted in thousandths of one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Tenant {
    pub disabled: bool,
    /// Tenants of higher priority are served first when they compete for room.
    pub priority: i32,
    /// Of one priority, who uses least GPU for its weight is served first.
    pub weight: u32,
    pub allow_standby: bool,
    pub replicas_max: Option<u32>,
    pub min_replica_cap: Option<u32>,
    pub standby_max: Option<u32>,
    pub gpu_milli_max: Option<u64>,
    pub queue_len_max: Option<u32>,
}

impl Default for Tenant {
    fn default() -> Tenant {
        Tenant {
            disabled: false,
            priority: 0,
            weight: 1,
            allow_standby: true,
            replicas_max: None,
            min_replica_cap: None,
            standby_max: None,
            gpu_milli_max: None,
            queue_len_max: None,
        }
    }
}

/// Why the last starts of a function failed and when the next may be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Backoff {
    pub failures: u32,
    pub until_ms: u64,
    pub reason: String,
}

/// One function.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Function {
    pub key: FuncKey,
    pub revision: i64,
    pub spec: Spec,
    pub policy: Policy,
    /// False once it was deleted; it stays until its last pod is gone.
    pub present: bool,
    pub pods: BTreeSet<PodIx>,
    pub backoff: Backoff,
    /// It has more replicas than its policy allows: the policy was changed, or pods were adopted.
    pub surplus: bool,
    /// Why its tickets wait.
    pub waiting_for: Option<Refusal>,
    /// The pod that it wants next was counted towards what is typical.
    pub learned: bool,
    /// How long its starts took of late.
    pub took: StartTimes,
    /// Its own tenant as a caller.
    pub caller: Option<TenantIx>,
    /// Its number in the keep-alive policy, from its first call on.
    pub warm: Option<FunctionIx>,
    /// Who uses it now or did a moment ago.
    pub visits: Vec<Visit>,
    /// The alarm that ends visits.
    pub visits_due_ms: Option<u64>,
    /// When a standby is resumed ahead of need.
    pub prewarm_ms: Option<u64>,
    /// Its snapshots, node by node.
    pub tasks: BTreeMap<NodeId, Task>,
}

/// One caller's use of a function: leases and tickets that overlap or follow each other closely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Visit {
    pub tenant: TenantIx,
    /// Leases and tickets now.
    pub open: u32,
    /// When the last of them ended.
    pub ended_ms: u64,
}

/// An order that this scheduler gave for a pod and whose result is still out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Start,
    Resume,
    Park,
    Terminate,
}

/// One pod.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Pod {
    pub id: String,
    pub func: FuncId,
    pub revision: i64,
    pub node: NodeId,
    pub spec: Spec,
    pub state: State,
    pub reason: String,
    pub op: Option<Op>,
    pub order: u64,
    /// What it takes of its node.
    pub held: Holding,
    /// What it will hold once it is parked.
    pub parked: Holding,
    pub slots: u32,
    pub leased: u32,
    pub start: StartKind,
    /// Where the snapshot was that its start was to restore.
    pub tier: Option<SnapshotTier>,
    pub since_ms: u64,
    pub ready_ms: u64,
    pub used_ms: u64,
    /// Since when it takes GPU memory in its present life, and how much of that time it was leased.
    /// It was ready for the minimum time and may make room for others.
    pub resident: bool,
    pub held_since_ms: Option<u64>,
    pub busy_ms: u64,
    pub busy_since_ms: u64,
    /// Adopted after a restart: not leased or parked before this time.
    pub held_until_ms: Option<u64>,
    /// It came from a former scheduler process.
    pub adopted: bool,
    /// This process gave an order for it; until then its agent alone tells what it does.
    pub ordered: bool,
    /// A gateway found it broken; it ends when the last lease is back.
    pub broken: bool,
    /// It ends or is parked to make room for the start of this pod.
    pub makes_room_for: Option<PodIx>,
    /// The pods that make room for this one and have not gone yet.
    pub victims: Vec<PodIx>,
    /// What of its holding was already passed on to that pod.
    pub lent: Holding,
    /// Its agent has shown it since the order that starts it, and then that it is over.
    pub shown: bool,
    pub died: bool,
    /// The agent reported the parking of this pod.
    pub parking_seen: bool,
    /// An order failed; try again at this time.
    pub retry_at_ms: Option<u64>,
    pub timer_ms: Option<u64>,
    /// Its place in the order of those that were not used longest.
    pub listed_ms: Option<u64>,
}

impl Pod {
    /// Slots nobody holds.
    pub fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(self.leased)
    }
}
