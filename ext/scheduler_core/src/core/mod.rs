//! `Core`: everything the scheduler knows, and the order in which it settles what changed.
//! It must never act by itself; each verb ends in `settle`, deeds are left in `effects`.

mod announce;
mod check;
mod facts;
pub mod fault;
mod grant;
mod life;
pub mod messages;
pub mod model;
mod outcome;
mod plan;
mod room;
mod share;
mod start;
pub mod tasks;
mod tick;
pub mod timers;
pub mod times;
mod victims;
pub mod view;
mod warmth;
mod ways;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::fleet::Fleet;
use crate::lease::Leases;
use crate::nodes::{NodeId, Request};
use crate::pod::{Event, next};
use crate::queue::Tickets;
use messages::{Effect, PodRef};
use model::{Config, FuncId, FuncKey, Function, Pod, PodIx, Tenant};
use tasks::TaskState;
use timers::{Timer, Timers};
use victims::IdleOrder;
use warmth::Warmth;

/// Deeds counted since the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counters {
    pub starts_cold: u64,
    pub starts_resume: u64,
    pub starts_failed: u64,
    pub prewarms: u64,
    pub parks: u64,
    pub terminations: u64,
    pub grants_warm: u64,
    pub grants_waited: u64,
    pub refusals: u64,
    pub leases_expired: u64,
    pub snapshots_failed: u64,
}

/// The scheduler core. All times are milliseconds of one monotonic clock that the caller owns.
#[derive(Debug)]
pub struct Core {
    config: Config,
    pod_counter: u64,
    order_counter: u64,
    func_counter: u32,
    node_counter: u32,
    func_ids: BTreeMap<FuncKey, FuncId>,
    functions: BTreeMap<FuncId, Function>,
    tenants: BTreeMap<String, Tenant>,
    namespaces_disabled: BTreeSet<(String, String)>,
    node_ids: BTreeMap<String, NodeId>,
    nodes: Fleet,
    pods_on: BTreeMap<NodeId, BTreeSet<PodIx>>,
    tenant_pods: BTreeMap<String, BTreeSet<PodIx>>,
    pod_ids: BTreeMap<String, PodIx>,
    pods: BTreeMap<PodIx, Pod>,
    /// Where room can be made, and where it is being made.
    idle_order: IdleOrder,
    /// Those of `idle_order` that may leave, until another one may.
    shortlist: Option<Vec<PodIx>>,
    /// Requests for which no room can be made, within one turn of `settle`.
    no_room: HashSet<Request>,
    leaving_on: BTreeMap<NodeId, u32>,
    /// Pods that ended here: late news of them is answered with another order to end them instead
    /// of adopting them.
    tombstones: BTreeSet<String>,
    tombstone_order: std::collections::VecDeque<String>,
    leases: Leases,
    tickets: Tickets,
    gateways: BTreeMap<i64, u64>,
    /// Who speaks for the gateways of a former scheduler; see `announce.rs`.
    roll: announce::Roll,
    timers: Timers,
    warmth: Warmth,
    /// Functions to look at before the verb returns.
    dirty: BTreeSet<FuncId>,
    /// Functions that want more than they have; looked at again when resources may be free.
    unmet: BTreeSet<FuncId>,
    capacity_changed: bool,
    /// Nodes that report more in use than they have; it passes as their pods end.
    overfull: BTreeSet<NodeId>,
    effects: Vec<Effect>,
    /// Snapshot tasks by state, and those of which there is news (function, node).
    task_counts: BTreeMap<TaskState, usize>,
    tasks_changed: BTreeSet<(FuncKey, String)>,
    counters: Counters,
}

impl Core {
    /// An empty core.
    pub fn new(config: Config) -> Core {
        let leases = Leases::new(&config.pod_id_prefix);
        let warmth = Warmth::new(&config);
        let nodes = Fleet::new(config.placement);
        Core {
            config,
            pod_counter: 0,
            order_counter: 0,
            func_counter: 0,
            node_counter: 0,
            func_ids: BTreeMap::new(),
            functions: BTreeMap::new(),
            tenants: BTreeMap::new(),
            namespaces_disabled: BTreeSet::new(),
            node_ids: BTreeMap::new(),
            nodes,
            pods_on: BTreeMap::new(),
            tenant_pods: BTreeMap::new(),
            pod_ids: BTreeMap::new(),
            pods: BTreeMap::new(),
            idle_order: IdleOrder::default(),
            shortlist: None,
            no_room: HashSet::new(),
            leaving_on: BTreeMap::new(),
            tombstones: BTreeSet::new(),
            tombstone_order: std::collections::VecDeque::new(),
            leases,
            tickets: Tickets::default(),
            gateways: BTreeMap::new(),
            roll: announce::Roll::default(),
            timers: Timers::default(),
            warmth,
            dirty: BTreeSet::new(),
            unmet: BTreeSet::new(),
            capacity_changed: false,
            overfull: BTreeSet::new(),
            effects: Vec::new(),
            task_counts: BTreeMap::new(),
            tasks_changed: BTreeSet::new(),
            counters: Counters::default(),
        }
    }

    /// The deeds decided since the last call, in order.
    pub fn effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Looks again at every function that a verb touched, in the order of `by_turn`, and at all
    /// that lack something when resources may have become free.
    fn settle(&mut self, now_ms: u64) {
        loop {
            if std::mem::take(&mut self.capacity_changed) {
                self.dirty.extend(self.unmet.iter().copied());
            }
            self.heed_forecasts(now_ms);
            if self.dirty.is_empty() {
                let nodes = &self.nodes;
                self.overfull.retain(|id| {
                    let node = nodes.get(id);
                    node.is_some_and(|node| !node.ledger.is_within_capacity())
                });
                self.nodes.refresh(now_ms);
                return;
            }
            let batch = std::mem::take(&mut self.dirty);
            self.no_room.clear();
            for func in self.by_turn(batch) {
                self.serve(now_ms, func);
            }
        }
    }

    /// Whose turn it is when several functions want something: (1) those somebody waits for; (2) of
    /// the tenant with the highest priority; (3) of the tenant that uses least GPU for its weight;
    /// (4) whose ticket waits longest. Nobody is served twice before the next verb, so a tenant
    /// cannot take all that became free by asking more often.
    fn by_turn(&self, batch: BTreeSet<FuncId>) -> Vec<FuncId> {
        let mut batch: Vec<FuncId> = batch.into_iter().collect();
        if batch.len() < 2 {
            return batch;
        }
        let mut standing: BTreeMap<&str, (Reverse<i32>, u64)> = BTreeMap::new();
        let mut turns = BTreeMap::new();
        for func in &batch {
            let (Some(oldest), Some(function)) =
                (self.tickets.oldest(*func), self.functions.get(func))
            else {
                continue;
            };
            let tenant = function.key.tenant.as_str();
            let standing = *standing
                .entry(tenant)
                .or_insert_with(|| self.standing(tenant));
            turns.insert(*func, (standing, oldest));
        }
        batch.sort_by_key(|func| (!turns.contains_key(func), turns.get(func).copied(), *func));
        batch
    }

    fn standing(&self, tenant: &str) -> (Reverse<i32>, u64) {
        let known = self.tenants.get(tenant);
        let (priority, weight) = known.map_or((0, 1), |t| (t.priority, t.weight.max(1)));
        (
            Reverse(priority),
            self.gpu_milli_of(tenant) * 1000 / u64::from(weight),
        )
    }

    /// Moves a pod along the one table; an illegal step is an error of this crate.
    fn apply(&mut self, now_ms: u64, ix: PodIx, event: Event) {
        let pod = self
            .pods
            .get_mut(&ix)
            .expect("an event for a pod that is gone");
        let state = next(pod.state, event).unwrap_or_else(|why| panic!("pod {}: {why}", pod.id));
        let before = pod.state;
        if state != before {
            pod.state = state;
            pod.since_ms = now_ms;
            pod.reason.clear();
            self.list_moved(now_ms, ix, Some(before));
        }
    }

    fn pod(&self, ix: PodIx) -> &Pod {
        &self.pods[&ix]
    }

    fn pod_mut(&mut self, ix: PodIx) -> &mut Pod {
        self.pods.get_mut(&ix).expect("a pod that is gone")
    }

    fn pod_ref(&self, ix: PodIx) -> PodRef {
        let pod = self.pod(ix);
        PodRef {
            pod_id: pod.id.clone(),
            node: self.nodes[&pod.node].name.clone(),
            key: self.functions[&pod.func].key.clone(),
            revision: pod.revision,
            order: 0,
        }
    }

    /// A reference with a new order number; outcomes of older orders no longer count.
    fn order_ref(&mut self, ix: PodIx) -> PodRef {
        self.order_counter += 1;
        let order = self.order_counter;
        self.pod_mut(ix).order = order;
        PodRef {
            order,
            ..self.pod_ref(ix)
        }
    }

    fn func_id(&mut self, key: &FuncKey) -> FuncId {
        if let Some(id) = self.func_ids.get(key) {
            return *id;
        }
        self.func_counter += 1;
        let id = FuncId(self.func_counter);
        self.func_ids.insert(key.clone(), id);
        let function = Function {
            key: key.clone(),
            revision: 0,
            spec: model::Spec::default(),
            policy: model::Policy::default(),
            present: false,
            pods: BTreeSet::new(),
            backoff: model::Backoff::default(),
            surplus: false,
            waiting_for: None,
            learned: false,
            took: model::StartTimes::default(),
            caller: None,
            warm: None,
            visits: Vec::new(),
            visits_due_ms: None,
            prewarm_ms: None,
            tasks: BTreeMap::new(),
        };
        self.functions.insert(id, function);
        id
    }

    /// Forgets a deleted function once nothing of it is left.
    fn forget_function(&mut self, func: FuncId) {
        let Some(function) = self.functions.get(&func) else {
            return;
        };
        if !function.present && function.pods.is_empty() && self.tickets.waiting(func) == 0 {
            self.func_ids.remove(&function.key);
            let function = self.functions.remove(&func).expect("just found");
            self.warmth.forget(&function);
            self.dirty.remove(&func);
            self.unmet.remove(&func);
        }
    }

    fn is_disabled(&self, key: &FuncKey) -> bool {
        let namespace = (key.tenant.clone(), key.namespace.clone());
        self.tenants
            .get(&key.tenant)
            .is_some_and(|tenant| tenant.disabled)
            || (!self.namespaces_disabled.is_empty()
                && self.namespaces_disabled.contains(&namespace))
    }

    /// True when new work may go to this pod: its function is there, in this revision, and allowed.
    fn is_wanted(&self, pod: &Pod) -> bool {
        let function = &self.functions[&pod.func];
        function.present
            && function.revision == pod.revision
            && !pod.broken
            && !self.is_disabled(&function.key)
    }

    /// Replicas of the current revision that run or start.
    fn running(&self, func: FuncId) -> u32 {
        let function = &self.functions[&func];
        let pods = function.pods.iter().map(|ix| self.pod(*ix));
        let counts = |pod: &&Pod| pod.state.is_running() && self.is_wanted(pod);
        pods.filter(counts).count() as u32
    }

    fn arm_pod(&mut self, ix: PodIx, at_ms: u64) {
        let pod = self
            .pods
            .get_mut(&ix)
            .expect("an alarm for a pod that is gone");
        match pod.timer_ms {
            Some(set) if set <= at_ms => {}
            earlier => {
                if let Some(set) = earlier {
                    self.timers.clear(set, Timer::Pod(ix));
                }
                pod.timer_ms = Some(at_ms);
                self.timers.set(at_ms, Timer::Pod(ix));
            }
        }
    }
}
