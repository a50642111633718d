//! The placement decision: cluster, policy, learned requests and the index, behind one type.
//! Never acts: it says where a pod should go, and deducts it there when told to.

use super::cluster::Cluster;
use super::hashing::{FastMap, hash_of};
use super::index::Index;
use super::learn::{Learner, Typical, content_hash, distance};
use super::policies::Policy;
use super::potential::TYPICAL_MAX;
use super::rating::{AskRating, Rater};
use super::request::{NoFit, PlaceError, Request};
use super::resources::Ask;
use super::view::{AllocId, NodeId};

/// Heap entries that all indexes together may hold, about 32 bytes each.
const ENTRIES_MAX: usize = 1 << 22;

/// Typical requests are only replaced when this part of their weight has moved: new tables make
/// every index start again.
const DRIFT_LEAST: f64 = 0.05;

/// Where a request should go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The node.
    pub node: NodeId,
    /// The devices on that node, by index.
    pub devices: Vec<u8>,
}

/// One request that was asked for, with its index.
#[derive(Clone, Debug)]
struct Class {
    ask: Ask,
    index: Index,
    used: u64,
}

/// A cluster and the way to place pods on it.
#[derive(Clone, Debug)]
pub struct Placer {
    cluster: Cluster,
    learner: Learner,
    typical: Vec<Typical>,
    stale: bool,
    /// GPU units of the cluster when the tables were drawn up.
    units_then: u64,
    rater: Rater,
    classes: Vec<Class>,
    by_request: FastMap<Request, usize>,
    decisions: u64,
}

impl Placer {
    /// An empty cluster under a policy.
    pub fn new(policy: Policy) -> Placer {
        let mut cluster = Cluster::new();
        cluster.tagged = policy == Policy::GpuClustering;
        Placer {
            cluster,
            learner: Learner::default(),
            typical: Vec::new(),
            stale: true,
            units_then: 0,
            rater: Rater::new(policy),
            classes: Vec::new(),
            by_request: FastMap::default(),
            decisions: 0,
        }
    }

    /// The accounting.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The accounting, for adding nodes and for deducting what is known to run already.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// Counts an arrival of a request towards what is typical. Once per pod that is wanted, not
    /// once per attempt to place it.
    pub fn observe(&mut self, request: &Request) {
        self.expect(request, 1);
    }

    /// Counts `weight` arrivals that are expected, such as those of a function just registered.
    pub fn expect(&mut self, request: &Request, weight: u64) {
        self.stale |= self.learner.observe(*request, weight);
    }

    /// Takes what was observed and expected so far as typical at once, instead of at the next
    /// time that the number of arrivals calls for it.
    pub fn relearn(&mut self) {
        self.stale = true;
    }

    /// The best node and devices, or `None` when the request fits nowhere; nothing is deducted.
    /// Equals [`Placer::decide_by_scan`], without looking at all nodes.
    pub fn decide(&mut self, request: &Request) -> Option<Choice> {
        self.refresh();
        self.decisions += 1;
        if self.rater.scorer.policy.by_node() {
            return self.scan(request);
        }
        let class = self.class_of(request);
        let Class { ask, index, used } = &mut self.classes[class];
        *used = self.decisions;
        let cluster = &self.cluster;
        if ask.needs.len() != cluster.kinds.len() {
            *ask = Ask::new(*request, &cluster.kinds);
        }
        let version = self.rater.version;
        let mut rating = AskRating {
            rater: &mut self.rater,
            cluster,
            ask,
        };
        let state = index.best(&cluster.states, version, &mut rating)?;
        let node = cluster.states.get(state.slot).nodes.first()?.1;
        self.choice(node, &Ask::new(*request, &self.cluster.kinds))
    }

    /// The definition of the decision: every ready node is scored afresh; the highest score wins,
    /// ties go to the smaller hash of the state, then of the node's name.
    pub fn decide_by_scan(&mut self, request: &Request) -> Option<Choice> {
        self.refresh();
        self.decisions += 1;
        self.scan(request)
    }

    /// The best of some nodes only, for instance of those that hold a snapshot.
    pub fn best_among(&mut self, request: &Request, nodes: &[NodeId]) -> Option<Choice> {
        self.refresh();
        let slots = nodes.iter().filter(|id| {
            self.cluster
                .node(**id)
                .is_ok_and(|node| node.state.is_some())
        });
        let slots: Vec<u32> = slots.map(|id| id.slot).collect();
        self.best_of(request, slots.into_iter())
    }

    /// Decides and deducts.
    ///
    /// # Errors
    /// [`PlaceError::NoFit`] with the number of nodes that each rule turned away.
    pub fn place(&mut self, request: &Request) -> Result<AllocId, PlaceError> {
        match self.decide(request) {
            Some(choice) => self
                .cluster
                .allocate(choice.node, *request, &choice.devices),
            None => Err(PlaceError::NoFit(self.explain(request))),
        }
    }

    /// Why no node takes the request. Looks at all states; ask when a person wants to know.
    pub fn explain(&self, request: &Request) -> NoFit {
        self.cluster.explain(request)
    }

    /// Gives back what a pod held.
    ///
    /// # Errors
    /// [`PlaceError::StaleAllocation`].
    pub fn release(&mut self, id: AllocId) -> Result<(), PlaceError> {
        self.cluster.release(id).map(|_| ())
    }

    fn scan(&mut self, request: &Request) -> Option<Choice> {
        let slots: Vec<u32> = self.cluster.ready().map(|(slot, _)| slot).collect();
        self.best_of(request, slots.into_iter())
    }

    fn best_of(&mut self, request: &Request, slots: impl Iterator<Item = u32>) -> Option<Choice> {
        let ask = Ask::new(*request, &self.cluster.kinds);
        let mut best: Option<(f32, u64, (u64, u32))> = None;
        for slot in slots {
            let Some((score, tie)) = self.rated(slot, &ask) else {
                continue;
            };
            let key = self.cluster.node_at(slot).key;
            let better = best.is_none_or(|best| {
                let ahead = score.total_cmp(&best.0).then(best.1.cmp(&tie));
                ahead.then(best.2.cmp(&key)).is_gt()
            });
            if better {
                best = Some((score, tie, key));
            }
        }
        self.choice(best?.2.1, &ask)
    }

    /// Score and tie-breaker of one node, or `None` when the request does not fit on it.
    fn rated(&mut self, slot: u32, ask: &Ask) -> Option<(f32, u64)> {
        let cluster = &self.cluster;
        let node = cluster.node_at(slot);
        let by_node = match self.rater.scorer.policy {
            Policy::Random(seed) => (hash_of(&(seed, self.decisions, node.key.0)) >> 40) as f32,
            Policy::FirstFit => -(node.generation as f32),
            _ => {
                let free = node.canonical(&cluster.kinds, cluster.tagged);
                let scored = self.rater.fresh(cluster, &free, ask)?;
                return Some((scored.score, free.tie(&cluster.kinds, &cluster.shapes)));
            }
        };
        let free = &cluster.states.get(node.state?).free;
        let fits = free.check(&ask.request, &cluster.kinds).is_ok();
        fits.then_some((by_node, 0))
    }

    /// The devices to take on a node that was chosen.
    fn choice(&mut self, slot: u32, ask: &Ask) -> Option<Choice> {
        let id = self.cluster.id_at(slot);
        let Some(gpu) = ask.request.gpu else {
            return Some(Choice {
                node: id,
                devices: Vec::new(),
            });
        };
        let node = self.cluster.node_at(slot);
        let free = node.canonical(&self.cluster.kinds, self.cluster.tagged);
        let window = self.rater.fresh(&self.cluster, &free, ask)?.window;
        let order = node.order(&self.cluster.kinds);
        let taken = self.rater.candidates.iter().skip(window);
        let taken = taken.take(gpu.devices_taken());
        let devices = taken
            .map(|position| order[usize::from(*position)])
            .collect();
        Some(Choice { node: id, devices })
    }

    fn class_of(&mut self, request: &Request) -> usize {
        if let Some(class) = self.by_request.get(request) {
            return *class;
        }
        let fresh = Class {
            ask: Ask::new(*request, &self.cluster.kinds),
            index: Index::default(),
            used: self.decisions,
        };
        let most = (ENTRIES_MAX / self.cluster.states.live().max(1)).clamp(128, 2048);
        let oldest = (0..self.classes.len()).min_by_key(|class| self.classes[*class].used);
        let class = match oldest {
            Some(oldest) if self.classes.len() >= most => {
                self.by_request.remove(&self.classes[oldest].ask.request);
                self.classes[oldest] = fresh;
                oldest
            }
            _ => {
                self.classes.push(fresh);
                self.classes.len() - 1
            }
        };
        self.by_request.insert(*request, class);
        class
    }

    /// Draws up new tables when enough arrived since the last time, or the cluster changed.
    fn refresh(&mut self) {
        let cluster = &self.cluster;
        let units = cluster.units;
        let grown = units.abs_diff(self.units_then) * 20 > self.units_then;
        let new_kinds = cluster.kinds.len() != self.rater.scorer.potential.kinds();
        if !(self.stale || grown || new_kinds) {
            return;
        }
        let kinds = &cluster.kinds;
        let rank = |request: &Request| content_hash(request, kinds);
        let typical = self.learner.refresh(TYPICAL_MAX, rank);
        self.stale = false;
        let changed = grown || new_kinds;
        if changed || distance(&typical, &self.typical) >= DRIFT_LEAST {
            self.rater.redraw(cluster, &typical, &self.learner.demand());
            (self.typical, self.units_then) = (typical, units);
        }
    }
}
