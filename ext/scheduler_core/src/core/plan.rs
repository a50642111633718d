//! Starts: how many pods a function lacks, and where the next one comes from.
//! It must never wait; what cannot be done now is recorded as the reason and tried again later.

use super::Core;
use super::fault::Fault;
use super::messages::Refusal;
use super::model::{FuncId, Pod, PodIx};
use super::room::Room;
use super::timers::Timer;
use super::ways::{Source, Way, cheaper};
use crate::nodes::{Holding, Ledger, NoFit, NodeId, Request, Shortage};
use crate::pod::State;

/// When a caller may try again where the core cannot tell (ms): what is busy changes soon, what no
/// node has comes at best with a new node.
const RETRY_MS: u64 = 1_000;
const RETRY_HOPELESS_MS: u64 = 30_000;

/// Why no start was made; `hopeless` means that waiting would not help, so the tickets are refused.
struct Blocked {
    refusal: Refusal,
    hopeless: bool,
}

impl Blocked {
    fn wait(code: &'static str, message: impl Into<String>) -> Blocked {
        Blocked {
            refusal: Refusal::new(code, message).retry_after(RETRY_MS),
            hopeless: false,
        }
    }
}

impl Core {
    /// Gives a function what it lacks: free slots to its tickets, then starts.
    pub(super) fn serve(&mut self, now_ms: u64, func: FuncId) {
        if !self.functions.contains_key(&func) {
            return;
        }
        if self.functions[&func].surplus {
            self.retire_surplus(now_ms, func);
            let limit = self.functions[&func].policy.max_replica;
            let surplus = self.running(func) > limit;
            self.functions.get_mut(&func).expect("checked").surplus = surplus;
        }
        self.grant_waiting(now_ms, func);
        let mut lacking = self.pods_lacking(now_ms, func);
        let mut waiting_for = None;
        while lacking > 0 {
            match self.start_one(now_ms, func) {
                Ok(()) => lacking -= 1,
                Err(Blocked { refusal, hopeless }) => {
                    // Slots of a pod that runs or starts may still come to those who wait.
                    if hopeless && self.running(func) == 0 {
                        self.refuse_all(now_ms, func, &refusal);
                    }
                    waiting_for = Some(refusal);
                    break;
                }
            }
        }
        match waiting_for.is_some() {
            true => self.unmet.insert(func),
            false => self.unmet.remove(&func),
        };
        if waiting_for.is_none() && self.tickets.waiting(func) > 0 && self.starting(func) == 0 {
            // Too few wait for another replica: the slots that come back are for them.
            waiting_for = Some(Refusal::new("queue_timeout", "its workers are busy"));
        }
        if let Some(function) = self.functions.get_mut(&func) {
            function.waiting_for = waiting_for;
        }
        self.forget_function(func);
    }

    /// Replicas that are kept running, within the tenant's cap and the function's own maximum.
    pub(super) fn min_replica(&self, func: FuncId) -> u32 {
        let function = &self.functions[&func];
        if !function.present || self.is_disabled(&function.key) {
            return 0;
        }
        let cap = self
            .tenants
            .get(&function.key.tenant)
            .and_then(|t| t.min_replica_cap);
        let policy = &function.policy;
        policy
            .min_replica
            .min(cap.unwrap_or(u32::MAX))
            .min(policy.max_replica)
    }

    /// Pods to start: for the slots that tickets want beyond those on their way, and for
    /// `min_replica`. One start on its way serves every ticket up to `parallel` slots. While
    /// replicas run, few waiting slots (by the wait ratio) are left to what they give back, for as
    /// long as the oldest ticket is patient.
    fn pods_lacking(&mut self, now_ms: u64, func: FuncId) -> u64 {
        let function = &self.functions[&func];
        if !function.present || self.is_disabled(&function.key) {
            return 0;
        }
        let parallel = u64::from(function.policy.parallel.max(1));
        let wanted: u64 = self
            .tickets
            .of_function(func)
            .map(|(_, ticket)| match ticket.slots {
                0 => parallel,
                slots => u64::from(slots).min(parallel),
            })
            .sum();
        let pods = function
            .pods
            .iter()
            .map(|ix| self.pod(*ix))
            .filter(|pod| self.is_wanted(pod));
        let coming = pods.filter(|pod| pod.state.is_starting() || pod.held_until_ms.is_some());
        let coming: u64 = coming.map(|pod| u64::from(pod.free_slots())).sum();
        let mut by_demand = wanted.saturating_sub(coming).div_ceil(parallel);
        let ratio = u64::from(function.policy.wait_ratio_milli);
        if by_demand > 0 && wanted * 1000 <= ratio * self.slots_running(func) {
            let oldest = self
                .tickets
                .oldest(func)
                .and_then(|id| self.tickets.get(id));
            let patient_ms = oldest.map_or(0, |t| t.queued_ms + self.config.patience_ms);
            if patient_ms > now_ms {
                self.timers.set(patient_ms, Timer::Function(func));
                by_demand = 0;
            }
        }
        let by_minimum = self.min_replica(func).saturating_sub(self.running(func));
        by_demand.max(u64::from(by_minimum))
    }

    pub(super) fn slots_running(&self, func: FuncId) -> u64 {
        let pods = self.functions[&func].pods.iter().map(|ix| self.pod(*ix));
        let open = pods.filter(|pod| matches!(pod.state, State::Idle | State::Working));
        let open = open.filter(|pod| self.is_wanted(pod));
        open.map(|pod| u64::from(pod.slots)).sum()
    }

    /// One more pod for a function: (1) not while it backs off; (2) not beyond its maximum or its
    /// tenant's; (3) resume a standby pod where it fits; (4) wait for one that is being parked;
    /// (5) otherwise the way that makes everybody wait least (`ways`): a resume by making room, a
    /// start from a snapshot or from nothing; (6) wait where room is being made already; (7) start
    /// by making room; (8) otherwise say what is missing.
    fn start_one(&mut self, now_ms: u64, func: FuncId) -> Result<(), Blocked> {
        self.check_backoff(now_ms, func)?;
        self.check_replicas(now_ms, func)?;
        let resume_ms = self.start_times(func).resume_ms;
        let mut resume: Option<Way> = None;
        for ix in self.standby_pods(func) {
            let pod = self.pod(ix);
            let (node_id, request) = (pod.node, resume_request(pod));
            let node = &self.nodes[&node_id];
            if node.closed(now_ms).is_some() {
                continue;
            }
            if let Ok(holding) = node.ledger.fit(&request) {
                self.check_tenant_gpu(now_ms, func, node_id, &holding)?;
                self.resume(now_ms, ix, holding, Room::default());
                return Ok(());
            }
            if self.fits_after_releases(node_id, &request) {
                return Err(Blocked::wait(
                    "no_capacity",
                    "room is being made for a resume",
                ));
            }
            if let Some(room) = self.make_room(now_ms, node_id, &request, Some(ix)) {
                let way = Way::by_making_room(Source::Standby(ix), room, resume_ms);
                resume = cheaper(resume, way);
            }
        }
        let is_parking =
            |ix: &PodIx| self.pod(*ix).state == State::Parking && self.is_wanted(self.pod(*ix));
        if resume.is_none() && self.functions[&func].pods.iter().any(is_parking) {
            return Err(Blocked::wait(
                "queue_timeout",
                "its worker is just being parked",
            ));
        }
        let request = self.functions[&func].spec.request();
        let function = self.functions.get_mut(&func).expect("served");
        if !std::mem::replace(&mut function.learned, true) {
            self.nodes.learn(&request);
        }
        match self.best_start(now_ms, func, &request, resume) {
            Ok(way) => self.take(now_ms, func, way),
            Err(no_fit) => self.start_by_making_room(now_ms, func, &request, &no_fit),
        }
    }

    /// Carries a way out, within the tenant's limit.
    fn take(&mut self, now_ms: u64, func: FuncId, way: Way) -> Result<(), Blocked> {
        let node = match way.source {
            Source::Standby(ix) => self.pod(ix).node,
            Source::New(node) => node,
        };
        self.check_tenant_gpu(now_ms, func, node, &way.holding)?;
        match way.source {
            Source::Standby(ix) => self.resume(now_ms, ix, way.holding, way.room),
            Source::New(node) => self.start(now_ms, func, node, way.holding, way.room),
        }
        Ok(())
    }

    /// Nothing fits as it is: wait where room is being made, else make some where it is cheapest.
    fn start_by_making_room(
        &mut self,
        now_ms: u64,
        func: FuncId,
        request: &Request,
        no_fit: &NoFit,
    ) -> Result<(), Blocked> {
        if self.room_is_being_made(now_ms, request) {
            return Err(Blocked::wait("no_capacity", "room is being made for it"));
        }
        match self.cheapest_room(now_ms, request) {
            Some((node, room)) => {
                let way = Way::by_making_room(Source::New(node), room, 0);
                self.take(now_ms, func, way)
            }
            None => Err(self.nowhere(now_ms, func, request, no_fit)),
        }
    }

    /// Resumes a standby pod where it fits into what is free, for a call that is expected.
    pub(super) fn resume_ahead(&mut self, now_ms: u64, func: FuncId) {
        if self.check_backoff(now_ms, func).is_err() || self.check_replicas(now_ms, func).is_err() {
            return;
        }
        for ix in self.standby_pods(func) {
            let (node_id, request) = (self.pod(ix).node, resume_request(self.pod(ix)));
            let node = &self.nodes[&node_id];
            if node.closed(now_ms).is_some() {
                continue;
            }
            let Ok(holding) = node.ledger.fit(&request) else {
                continue;
            };
            if self
                .check_tenant_gpu(now_ms, func, node_id, &holding)
                .is_ok()
            {
                self.counters.prewarms += 1;
                return self.resume(now_ms, ix, holding, Room::default());
            }
        }
    }

    /// Nothing fits: hopeless if no node could take the request even if it were empty.
    fn nowhere(&self, now_ms: u64, func: FuncId, request: &Request, no_fit: &NoFit) -> Blocked {
        let mut never = NoFit::default();
        for node in self.nodes.values() {
            match Ledger::new(node.ledger.capacity.clone()).fit(request) {
                Ok(_) => {
                    let fault = self.last_fault(now_ms);
                    let why = format!("{no_fit}, and no idle worker can make room{fault}");
                    return Blocked::wait("no_capacity", why);
                }
                Err(why) => never.count(why),
            }
        }
        if self.nodes.is_empty() {
            return Blocked::wait("no_capacity", never.to_string());
        }
        let name = &self.functions[&func].key.name;
        let message = format!("{name} asks for more than any node has: {never}");
        Blocked {
            refusal: Refusal::new("no_capacity", message).retry_after(RETRY_HOPELESS_MS),
            hopeless: true,
        }
    }

    /// What happened on a node that is left alone because of it, for whoever waits.
    fn last_fault(&self, now_ms: u64) -> String {
        let mut nodes = self.nodes.values();
        let faulty = nodes.find(|node| node.closed(now_ms) == Some(Shortage::BackingOff));
        faulty.map_or_else(String::new, |node| {
            format!("; on node {}: {}", node.name, node.fault)
        })
    }

    fn check_backoff(&self, now_ms: u64, func: FuncId) -> Result<(), Blocked> {
        let backoff = &self.functions[&func].backoff;
        if backoff.until_ms <= now_ms {
            return Ok(());
        }
        let refusal = Refusal::new("start_failed", backoff.reason.clone());
        let refusal = refusal.retry_after(backoff.until_ms - now_ms);
        Err(Blocked {
            refusal,
            hopeless: true,
        })
    }

    fn check_replicas(&mut self, now_ms: u64, func: FuncId) -> Result<(), Blocked> {
        let function = &self.functions[&func];
        let (running, limit) = (self.running(func), function.policy.max_replica);
        if running >= limit && !self.breaks(Fault::IgnoreReplicaLimit) {
            let refusal = match limit {
                0 => Refusal::new(
                    "no_capacity",
                    "the policy allows no replica (max_replica is 0)",
                ),
                _ => Refusal::new("queue_timeout", format!("all {running} replicas are busy")),
            };
            return Err(Blocked {
                refusal,
                hopeless: limit == 0,
            });
        }
        let tenant = function.key.tenant.clone();
        let Some(limit) = self.tenants.get(&tenant).and_then(|t| t.replicas_max) else {
            return Ok(());
        };
        let running = self
            .pods_of_tenant(&tenant)
            .filter(|ix| self.pod(**ix).state.is_running());
        if (running.count() as u64) < u64::from(limit) {
            return Ok(());
        }
        if limit > 0 {
            self.relieve_tenant(now_ms, &tenant, func);
        }
        let message = format!("tenant {tenant} runs its {limit} replicas already");
        let refusal = Refusal::new("tenant_limit", message);
        Err(Blocked {
            refusal,
            hopeless: limit == 0,
        })
    }

    /// Tenants are limited in thousandths of GPUs: the larger of the shares of memory counts.
    fn check_tenant_gpu(
        &mut self,
        now_ms: u64,
        func: FuncId,
        node: NodeId,
        holding: &Holding,
    ) -> Result<(), Blocked> {
        let tenant = self.functions[&func].key.tenant.clone();
        let Some(limit) = self.tenants.get(&tenant).and_then(|t| t.gpu_milli_max) else {
            return Ok(());
        };
        let asked = gpu_milli(&self.nodes[&node].ledger, holding);
        let used = self.gpu_milli_of(&tenant);
        if asked == 0 || used + asked <= limit || self.breaks(Fault::IgnoreTenantLimit) {
            return Ok(());
        }
        if asked <= limit {
            self.relieve_tenant(now_ms, &tenant, func);
        }
        let message = format!(
            "tenant {tenant} may use {:.2} GPUs, uses {:.2} and needs {:.2} more",
            limit as f64 / 1e3,
            used as f64 / 1e3,
            asked as f64 / 1e3,
        );
        let refusal = Refusal::new("tenant_gpu_limit", message);
        Err(Blocked {
            refusal,
            hopeless: asked > limit,
        })
    }

    /// Thousandths of GPUs that a tenant uses.
    pub(super) fn gpu_milli_of(&self, tenant: &str) -> u64 {
        let pods = self.pods_of_tenant(tenant).map(|ix| self.pod(*ix));
        pods.map(|pod| gpu_milli(&self.nodes[&pod.node].ledger, &pod.held))
            .sum()
    }

    /// A tenant at its limit makes room for itself: its idle pod that was unused longest leaves,
    /// unless one is leaving already or nobody waits for the start. One that is just ready stays
    /// for a while, as everywhere.
    fn relieve_tenant(&mut self, now_ms: u64, tenant: &str, func: FuncId) {
        if self.tickets.waiting(func) == 0 {
            return;
        }
        let pods: Vec<PodIx> = self.pods_of_tenant(tenant).copied().collect();
        let leaves = |state| matches!(state, State::Parking | State::Terminating);
        if pods.iter().any(|ix| leaves(self.pod(*ix).state)) {
            return;
        }
        let mut idle: Vec<PodIx> = pods
            .into_iter()
            .filter(|ix| {
                let pod = self.pod(*ix);
                self.is_evictable(pod) && self.is_resident(now_ms, pod)
            })
            .collect();
        idle.sort_by_key(|ix| (self.pod(*ix).used_ms, *ix));
        for ix in idle {
            if self.retire_idle(now_ms, ix) {
                return;
            }
        }
    }

    /// Standby pods of the current revision, the most recently used first.
    fn standby_pods(&self, func: FuncId) -> Vec<PodIx> {
        let pods = self.functions[&func].pods.iter().copied();
        let usable = |ix: &PodIx| {
            let pod = self.pod(*ix);
            pod.state == State::Standby && pod.op.is_none() && self.is_wanted(pod)
        };
        let mut pods: Vec<PodIx> = pods.filter(usable).collect();
        pods.sort_by_key(|ix| (std::cmp::Reverse(self.pod(*ix).used_ms), *ix));
        pods
    }
}

/// What a standby pod needs beyond what it holds. Its image stays in memory until it runs.
fn resume_request(pod: &Pod) -> Request {
    let request = pod.spec.request();
    Request {
        mem_mib: request.mem_mib.saturating_sub(pod.held.mem_mib),
        cache_mib: request.cache_mib.saturating_sub(pod.held.cache_mib),
        pods: 0,
        ..request
    }
}

fn gpu_milli(ledger: &Ledger, holding: &Holding) -> u64 {
    let share = |index: u32, mib: u64| {
        let gpu = ledger.capacity.gpus.iter().find(|gpu| gpu.index == index);
        gpu.map_or(0, |gpu| (mib * 1000).div_ceil(gpu.vram_mib.max(1)))
    };
    holding
        .gpus
        .iter()
        .map(|gpu| share(gpu.index, gpu.mib))
        .sum()
}
