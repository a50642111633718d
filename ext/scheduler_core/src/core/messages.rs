//! What goes into the core and what comes out: wishes, answers, facts, orders.
//! They must hold data only; every decision is in the verbs.

use super::model::{FuncKey, Policy, Spec, StartKind, Tenant};
use super::tasks::{SnapshotTier, Task, TaskState};
use crate::lease::LeaseId;
use crate::nodes::{Capacity, Holding};
use crate::pod::State;
use crate::queue::TicketId;

/// A refusal with its machine-readable code and the reason that reaches the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Refusal {
    pub code: &'static str,
    pub message: String,
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal without a hint when to come back.
    pub fn new(code: &'static str, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            retry_after_ms: None,
        }
    }

    /// The same with a hint.
    pub fn retry_after(mut self, ms: u64) -> Refusal {
        self.retry_after_ms = Some(ms);
        self
    }
}

/// A gateway's wish for slots.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Ask {
    pub key: FuncKey,
    pub gateway: i64,
    /// Who calls, where the gateway knows; empty = the function's own tenant.
    pub consumer: String,
    /// With `gateway` the idempotency key; empty = none.
    pub request_id: String,
    /// 0 = all slots of one pod.
    pub slots: u32,
    /// Absolute, in the core's clock; 0 = the policy's queue timeout from now.
    pub deadline_ms: u64,
}

/// Slots in somebody's hands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Grant {
    pub lease: LeaseId,
    pub pod_id: String,
    pub slots: u32,
    pub start: StartKind,
}

/// The answer to an `Ask`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Answer {
    Leased(Grant),
    Queued(TicketId),
    Refused(Refusal),
}

/// Which pod an order is about.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PodRef {
    pub pod_id: String,
    pub node: String,
    pub key: FuncKey,
    pub revision: i64,
    /// Comes back in the outcome, so that a late result is not taken for a newer one; 0 = none.
    pub order: u64,
}

/// Resources given to a pod, as the agent gets them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Alloc {
    pub cpu_millis: u64,
    pub mem_mib: u64,
    pub cache_mib: u64,
    pub gpu_kind: String,
    /// Per GPU, without the overhead.
    pub vram_mib: u64,
    /// Per GPU.
    pub context_overhead_mib: u64,
    pub devices: Vec<u32>,
}

/// A start or resume together with the pods that make room for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct StartOrder {
    pub pod: PodRef,
    pub alloc: Alloc,
    /// The worker may be saved before its first call, should the node have no snapshot of it.
    pub save: bool,
    pub terminate: Vec<PodRef>,
    pub park: Vec<PodRef>,
}

/// A deed for the outside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Effect {
    Grant { ticket: TicketId, grant: Grant },
    Refuse { ticket: TicketId, refusal: Refusal },
    Start(StartOrder),
    Resume(StartOrder),
    Park(PodRef),
    Terminate(PodRef),
}

/// What an agent says about one of its pods.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PodFact {
    pub pod_id: String,
    pub node: String,
    pub key: FuncKey,
    pub revision: i64,
    pub state: State,
    pub reason: String,
    /// Needed to adopt a pod of a former scheduler process.
    pub held: Holding,
}

/// The result of an order. `code` tells whose fault a failure is: `start_failed` is the function's.
/// `gone` means that the agent has nothing left of the pod.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Outcome {
    pub pod_id: String,
    pub ok: bool,
    pub code: String,
    pub reason: String,
    pub gone: bool,
    /// The order it answers, 0 = not known.
    pub order: u64,
    /// How a start or resume that succeeded was done; `None` = as ordered.
    pub start: Option<StartKind>,
}

/// What a node says of a function's snapshot: `state` is Done, ScheduleFail or Cannot; `failures`
/// counts its attempts at this revision that failed.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct SnapshotFact {
    pub key: FuncKey,
    pub node: String,
    pub revision: i64,
    pub state: TaskState,
    pub tier: SnapshotTier,
    pub size_mib: u64,
    pub failures: u32,
    pub reason: String,
}

/// A snapshot task as it is now, for people and the catalogue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SnapshotNews {
    pub key: FuncKey,
    pub node: String,
    pub task: Option<Task>,
}

/// Something that happened outside.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Fact {
    Function {
        key: FuncKey,
        revision: i64,
        spec: Spec,
        policy: Policy,
    },
    FunctionGone(FuncKey),
    Tenant {
        name: String,
        tenant: Tenant,
    },
    Namespace {
        tenant: String,
        name: String,
        disabled: bool,
    },
    Node {
        name: String,
        boot_id: String,
        ready: bool,
        keeps_snapshots: bool,
        capacity: Capacity,
    },
    NodeLost {
        name: String,
    },
    NodeGone {
        name: String,
    },
    Pod(PodFact),
    PodGone {
        pod_id: String,
    },
    StartResult(Outcome),
    ParkResult(Outcome),
    TerminateResult(Outcome),
    Snapshot(SnapshotFact),
    SnapshotGone {
        key: FuncKey,
        node: String,
    },
}
