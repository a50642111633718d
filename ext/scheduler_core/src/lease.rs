//! Leases: which gateway holds how many slots of which pod, under ids that are never valid twice.
//! It must never decide who gets a slot; it only keeps the record straight.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::core::model::{FuncId, PodIx};
use crate::keepalive::TenantIx;

/// Id of a lease: cell number in the low 32 bits, generation above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl LeaseId {
    fn cell(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

/// Some slots of one pod in the hands of one gateway.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Lease {
    pub gateway: i64,
    pub consumer: TenantIx,
    pub request_id: String,
    pub func: FuncId,
    pub pod: PodIx,
    pub slots: u32,
    /// When its gateway was told of it, or has last named it.
    pub named_ms: u64,
}

#[derive(Debug)]
struct Cell {
    generation: u32,
    lease: Option<Lease>,
    /// The id under which its gateway knows the lease from a former scheduler process.
    announced: Option<u64>,
}

/// What one gateway holds; kept while the gateway is known, so that a lease costs no allocation.
#[derive(Debug, Default)]
struct Held {
    leases: HashSet<LeaseId>,
    requests: HashMap<String, LeaseId>,
}

/// All live leases. A cell is reused with a higher generation, so a late or double give-back is
/// recognised; the first generation differs between scheduler processes for the same reason.
#[derive(Debug)]
pub struct Leases {
    first_generation: u32,
    cells: Vec<Cell>,
    free: Vec<u32>,
    /// Ids of a former scheduler process under which gateways still know their leases.
    announced: HashMap<u64, LeaseId>,
    by_gateway: BTreeMap<i64, Held>,
    by_pod: BTreeMap<PodIx, Vec<LeaseId>>,
    live: usize,
}

const GENERATION_BITS: u32 = 30; // ids stay positive in a signed 64-bit field

impl Leases {
    /// An empty table; `salt` makes the ids of this process differ from those of the one before.
    pub fn new(salt: &str) -> Leases {
        // FNV-1a, because the standard hasher is not promised to stay the same.
        let hash = salt.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        Leases {
            first_generation: hash & ((1 << GENERATION_BITS) - 1),
            cells: Vec::new(),
            free: Vec::new(),
            announced: HashMap::new(),
            by_gateway: BTreeMap::new(),
            by_pod: BTreeMap::new(),
            live: 0,
        }
    }

    /// Records a new lease.
    pub fn insert(&mut self, lease: Lease) -> LeaseId {
        let cell = match self.free.pop() {
            Some(cell) => cell,
            None => {
                self.cells.push(Cell {
                    generation: self.first_generation,
                    lease: None,
                    announced: None,
                });
                (self.cells.len() - 1) as u32
            }
        };
        let slot = &mut self.cells[cell as usize];
        slot.generation = (slot.generation + 1) & ((1 << GENERATION_BITS) - 1);
        let id = LeaseId((u64::from(slot.generation) << 32) | u64::from(cell));
        let held = self.by_gateway.entry(lease.gateway).or_default();
        held.leases.insert(id);
        if !lease.request_id.is_empty() {
            held.requests.insert(lease.request_id.clone(), id);
        }
        self.by_pod.entry(lease.pod).or_default().push(id);
        slot.lease = Some(lease);
        self.live += 1;
        id
    }

    /// Lets `old`, an id of a former process, stand for `id`.
    pub fn announce(&mut self, old: u64, id: LeaseId) {
        self.cells[id.cell()].announced = Some(old);
        self.announced.insert(old, id);
    }

    /// The live lease that a gateway means by `id`.
    pub fn resolve(&self, id: u64) -> Option<LeaseId> {
        if self.get(LeaseId(id)).is_some() {
            return Some(LeaseId(id));
        }
        self.announced
            .get(&id)
            .copied()
            .filter(|id| self.get(*id).is_some())
    }

    /// The lease under exactly this id, if it is live.
    pub fn get(&self, id: LeaseId) -> Option<&Lease> {
        let cell = self.cells.get(id.cell())?;
        let current = (u64::from(cell.generation) << 32) | id.cell() as u64;
        cell.lease.as_ref().filter(|_| current == id.0)
    }

    /// Its gateway knows of a live lease.
    pub fn name(&mut self, id: LeaseId, now_ms: u64) {
        let lease = self.cells[id.cell()].lease.as_mut();
        lease.expect("only a live lease is named").named_ms = now_ms;
    }

    /// Leaves at most `slots` of a live lease; returns how many those are less, and of which
    /// function and pod.
    pub fn trim(&mut self, id: LeaseId, slots: u32) -> (u32, FuncId, PodIx) {
        let lease = self.cells[id.cell()].lease.as_mut();
        let lease = lease.expect("only a live lease is trimmed");
        let given_up = lease.slots.saturating_sub(slots);
        lease.slots -= given_up;
        (given_up, lease.func, lease.pod)
    }

    /// Ends a lease.
    pub fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        self.get(id)?;
        let cell = &mut self.cells[id.cell()];
        let lease = cell.lease.take()?;
        if let Some(old) = cell.announced.take() {
            self.announced.remove(&old);
        }
        self.free.push(id.cell() as u32);
        self.live -= 1;
        if let Some(held) = self.by_gateway.get_mut(&lease.gateway) {
            held.leases.remove(&id);
            held.requests.remove(&lease.request_id);
        }
        if let Some(leases) = self.by_pod.get_mut(&lease.pod) {
            leases.retain(|other| *other != id);
        }
        Some(lease)
    }

    /// The lease that this request already got.
    pub fn of_request(&self, gateway: i64, request_id: &str) -> Option<LeaseId> {
        if request_id.is_empty() {
            return None;
        }
        let held = self.by_gateway.get(&gateway)?;
        held.requests.get(request_id).copied()
    }

    /// All leases of a gateway.
    pub fn of_gateway(&self, gateway: i64) -> Vec<LeaseId> {
        let held = self.by_gateway.get(&gateway);
        let mut leases = held.map_or_else(Vec::new, |held| held.leases.iter().copied().collect());
        leases.sort_unstable();
        leases
    }

    /// A gateway is gone and has no lease any more.
    pub fn forget_gateway(&mut self, gateway: i64) {
        if self
            .by_gateway
            .get(&gateway)
            .is_some_and(|held| held.leases.is_empty())
        {
            self.by_gateway.remove(&gateway);
        }
    }

    /// All leases on a pod.
    pub fn of_pod(&self, pod: PodIx) -> Vec<LeaseId> {
        self.by_pod.get(&pod).cloned().unwrap_or_default()
    }

    /// A pod is gone; it has no lease any more.
    pub fn forget_pod(&mut self, pod: PodIx) {
        self.by_pod.remove(&pod);
    }

    /// Panics where ids of a former process do not stand for live leases; for tests.
    pub fn check(&self) {
        let own = self.cells.iter().filter_map(|cell| cell.announced);
        assert_eq!(own.count(), self.announced.len(), "announced ids");
        for (old, id) in &self.announced {
            let cell = &self.cells[id.cell()];
            assert!(self.get(*id).is_some(), "{old} stands for a live lease");
            assert_eq!(cell.announced, Some(*old), "and that lease for it");
        }
    }

    /// Number of live leases.
    pub fn len(&self) -> usize {
        self.live
    }

    /// True when nobody holds anything.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }
}
