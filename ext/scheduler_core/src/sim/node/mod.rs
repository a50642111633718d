//! One node with GPUs, a host pool and snapshot files under a trace of calls, event by event.
//! It must never decide by itself what to keep: the policy does, and is told only what has
//! happened.
//!
//! Rules, chosen so that fixed keep-alives on unlimited GPUs give the published reference figures:
//! * A worker runs `parallel` calls at once, in the default scenario one. A call that finds no free
//!   slot on a worker of its function asks for one more worker, unless one is starting with a slot
//!   to spare, and takes whichever slot of the function is free first: a new one or one that a call
//!   leaves. Calls do not slow each other down.
//! * A start takes GPU memory from its first moment. Held time is start + execution + idle; busy
//!   time is time with at least one call executing.
//! * A start costs `host_start_ms` when the snapshot is in the host pool, `file_start_ms` from file
//!   (which also brings it into the pool), `cold_start_ms` when the function never ran. A second
//!   start during the first one waits for that snapshot if this is sooner; a start during a read
//!   from file waits for the rest of the read.
//! * Parking writes the state back: a function that left the pool while it ran is in the pool again
//!   when it is parked.
//! * When GPU memory is full an idle worker is a victim; with no idle worker the call waits, oldest
//!   first.

mod parking;
mod steps;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::keepalive::{FunctionIx, Policy};

use super::pool::HostPool;
use super::report::Summary;
use super::trace::Trace;

/// The simulated node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// GPUs of the node.
    pub gpus: usize,
    /// Memory of one GPU, MB.
    pub gpu_memory_mb: u64,
    /// Memory of one worker on one GPU, MB.
    pub model_memory_mb: u64,
    /// Snapshots that fit into the host pool.
    pub host_models: usize,
    /// Start from the host pool, ms.
    pub host_start_ms: u64,
    /// Start from file, ms.
    pub file_start_ms: u64,
    /// First start of a function ever, ms.
    pub cold_start_ms: u64,
    /// Calls that a worker executes at once.
    pub parallel: usize,
    /// Every function has a snapshot file from the beginning; otherwise its first start makes it.
    pub all_on_file: bool,
    /// Whether the idle disk asks the policy what to read ahead of need.
    pub reads_ahead: bool,
}

impl NodeConfig {
    /// The scenario `genai-8`: 8 GPUs of 80 GB, models of 24.8 GB, all snapshots on NVMe, 1.0 / 6 /
    /// 22.7 s from host pool / file / nothing.
    #[must_use]
    pub fn genai8(host_models: usize) -> Self {
        Self {
            gpus: 8,
            gpu_memory_mb: 80_000,
            model_memory_mb: 24_800,
            host_models,
            host_start_ms: 1_000,
            file_start_ms: 6_000,
            cold_start_ms: 22_700,
            parallel: 1,
            all_on_file: true,
            reads_ahead: true,
        }
    }

    /// Unlimited GPUs and a resume of 1.0 s always: the setting of the published fixed keep-alive
    /// figures.
    #[must_use]
    pub fn unlimited(functions: usize) -> Self {
        let start = 1_000;
        Self {
            gpus: 1 << 20,
            file_start_ms: start,
            cold_start_ms: start,
            ..Self::genai8(functions.max(1))
        }
    }

    /// Workers that fit on the GPUs at once.
    #[must_use]
    pub fn workers_max(&self) -> usize {
        self.gpus * (self.gpu_memory_mb / self.model_memory_mb) as usize
    }
}

/// What a call waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartTier {
    /// An idle worker: nothing.
    Warm,
    /// A start from the host pool.
    Host,
    /// A start from file.
    File,
    /// The first start of the function.
    Cold,
}

/// Something the policy decided, for comparison of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A worker left the GPU.
    Park(FunctionIx),
    /// A worker was resumed ahead of need.
    Prewarm(FunctionIx),
    /// A snapshot left the host pool.
    Evict(FunctionIx),
    /// A snapshot is read ahead of need.
    Fetch(FunctionIx),
}

/// A finished run.
#[derive(Clone, Debug, Default)]
pub struct NodeRun {
    /// The figures.
    pub summary: Summary,
    /// Every decision with its time, in order.
    pub decisions: Vec<(u64, Decision)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting(StartTier),
    /// Executing that many calls, the first of them since the given time.
    Busy(usize, u64),
    Idle {
        since_ms: u64,
    },
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct Worker {
    function: FunctionIx,
    born_ms: u64,
    busy_ms: u64,
    state: State,
    /// Deadline events that name an older generation are stale.
    generation: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ready(usize),
    Done(usize, usize),
    Fetched,
    Deadline(usize, u64),
    Prewarm(FunctionIx),
}

impl Event {
    /// Ends before arrivals before deadlines, when they fall on the same millisecond.
    fn rank(self) -> u8 {
        match self {
            Self::Ready(_) | Self::Done(..) | Self::Fetched => 0,
            Self::Deadline(..) | Self::Prewarm(_) => 2,
        }
    }
}

struct Node<'a> {
    config: &'a NodeConfig,
    trace: &'a Trace,
    policy: &'a mut dyn Policy,
    now_ms: u64,
    events: BinaryHeap<Reverse<(u64, u8, u64, Event)>>,
    sequence: u64,
    workers: Vec<Worker>,
    live: Vec<Vec<usize>>,
    live_count: usize,
    waiting: Vec<VecDeque<usize>>,
    blocked: VecDeque<FunctionIx>,
    prewarm_ms: Vec<Option<u64>>,
    pool: HostPool,
    fetching: bool,
    open: bool,
    waits_ms: Vec<u64>,
    tiers: Vec<StartTier>,
    held_ms: u64,
    busy_ms: u64,
    run: NodeRun,
}

/// Replays `trace` on the node under `policy`.
///
/// # Panics
/// When the policy names a candidate that does not exist or a fetch that the pool cannot do.
pub fn simulate(config: &NodeConfig, trace: &Trace, policy: &mut dyn Policy) -> NodeRun {
    let mut node = Node {
        config,
        trace,
        policy,
        now_ms: 0,
        events: BinaryHeap::new(),
        sequence: 0,
        workers: Vec::new(),
        live: vec![Vec::new(); trace.functions],
        live_count: 0,
        waiting: vec![VecDeque::new(); trace.functions],
        blocked: VecDeque::new(),
        prewarm_ms: vec![None; trace.functions],
        pool: HostPool::new(config.host_models, trace.functions, config.all_on_file),
        fetching: false,
        open: true,
        waits_ms: vec![0; trace.calls.len()],
        tiers: vec![StartTier::Warm; trace.calls.len()],
        held_ms: 0,
        busy_ms: 0,
        run: NodeRun::default(),
    };
    for number in 0..trace.calls.len() {
        node.run_until(trace.calls[number].at_ms, 1);
        node.arrive(number);
    }
    node.open = false;
    node.run_until(u64::MAX, u8::MAX);
    node.finish()
}
