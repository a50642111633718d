//! What to keep warm: which worker to park when, which snapshot leaves the host pool, what to bring
//! in ahead of need. It must never see the future: a policy is told facts in the order they happen
//! and knows nothing else.

mod adaptive;
mod baselines;
mod experts;
mod hazard;
mod history;
mod plan;
mod price;
mod ranker;
mod tenants;

pub use adaptive::Adaptive;
pub use baselines::{FixedKeepAlive, GreedyDual, Lru};
pub use price::Goal;

/// A function (model) as a dense index; the caller keeps the table from function keys to indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionIx(pub u32);

/// A tenant (or any finer caller identity, e.g. an API key) as a dense index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantIx(pub u32);

/// Where something is about to be thrown out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Idle workers on GPUs; the candidates are functions with an idle worker.
    Gpu,
    /// Snapshots in the pinned host pool.
    Host,
}

/// A read from file into the host pool ahead of need, and what makes room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The function whose snapshot is read.
    pub load: FunctionIx,
    /// The function whose snapshot leaves the pool; `None` when the pool has room.
    pub evict: Option<FunctionIx>,
}

/// What a policy may look at when it plans a fetch.
#[derive(Clone, Copy, Debug)]
pub struct HostView<'a> {
    /// Functions whose snapshot is in the host pool, in index order.
    pub resident: &'a [FunctionIx],
    /// Functions that have a snapshot file on this node, in index order.
    pub on_file: &'a [FunctionIx],
    /// How many snapshots the pool can hold.
    pub capacity: usize,
}

/// A keep-alive policy. Times are monotonic milliseconds and never go back.
///
/// Facts (`arrived`, `completed`) come first, questions after; every answer depends only on the
/// facts told so far.
pub trait Policy {
    /// A call of `function` by `tenant` arrived.
    fn arrived(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx);

    /// A call of `function` by `tenant` ended; its slot is free again.
    fn completed(&mut self, now_ms: u64, function: FunctionIx, tenant: TenantIx);

    /// A worker left the GPU after holding it for `held_ms`, of which it executed calls for
    /// `busy_ms`.
    fn charged(&mut self, _now_ms: u64, _held_ms: u64, _busy_ms: u64) {}

    /// Takes the functions whose forecast the last facts changed: the caller asks `keep_until`
    /// again for their idle workers and `prewarm_at` for those without.
    fn changed(&mut self) -> Vec<FunctionIx> {
        Vec::new()
    }

    /// Which of `candidates` (never empty, no duplicates) leaves `tier`: an index into
    /// `candidates`.
    fn victim(&mut self, now_ms: u64, tier: Tier, candidates: &[FunctionIx]) -> usize;

    /// Until when a worker of `function`, idle since `idle_since_ms`, stays on the GPU.
    /// `idle_before` other workers of the function are idle and would be used first. An answer `<=
    /// now_ms` means park now. The caller asks again at the answered time and may ask at any time
    /// in between.
    fn keep_until(
        &mut self,
        now_ms: u64,
        function: FunctionIx,
        idle_since_ms: u64,
        idle_before: usize,
    ) -> u64;

    /// When to resume a worker of a function that has none idle, ahead of need. The caller asks
    /// again at that time; an answer `<= now_ms` then means resume now.
    fn prewarm_at(&mut self, _now_ms: u64, _function: FunctionIx) -> Option<u64> {
        None
    }

    /// Whether the snapshot of `function`, which is not among the `resident` ones of a full host
    /// pool, is to take the place of one of them: its worker starts from file or is parked. If so
    /// the caller asks for the victim, else the snapshot stays on file only.
    fn admits(&mut self, _now_ms: u64, _function: FunctionIx, _resident: &[FunctionIx]) -> bool {
        true
    }

    /// What the idle disk should read into the host pool now.
    fn fetch(&mut self, _now_ms: u64, _host: HostView<'_>) -> Option<Fetch> {
        None
    }
}
