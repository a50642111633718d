//! The world around the core in the simulation: agents, gateways, edits and faults, all from one
//! seed.

mod agent;
mod chaos;
mod orders;
mod random;
mod snapshots;

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::Core;
use scheduler_core::core::fault::Fault;
use scheduler_core::core::view::PodView;
use scheduler_core::messages::{Answer, Ask, Effect, Fact, Outcome, PodFact, PodRef, StartOrder};
use scheduler_core::model::{Config, FuncKey, Policy, Spec, Tenant};
use scheduler_core::pod::State;
use scheduler_core::queue::TicketId;

use agent::Agent;
use random::Random;
use snapshots::{Saves, Told};

/// Something that will happen.
pub enum Happening {
    /// The next thing that users, operators or misfortune do.
    Chaos,
    Heartbeat(i64),
    Return {
        gateway: i64,
        lease: u64,
    },
    Cancel(TicketId),
    Begin {
        kind: Kind,
        order: StartOrder,
    },
    Loaded {
        kind: Kind,
        pod: PodRef,
    },
    Parked(PodRef),
    Terminate(PodRef),
    Park(PodRef),
    Result {
        kind: Kind,
        outcome: Outcome,
    },
    Told(PodFact),
    Gone(String),
    NodeBack(usize),
    NodeLost(usize),
    Connect(i64),
    Snapshot(Told),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Start,
    Resume,
    Park,
    Terminate,
}

/// A gateway: what it believes to hold, and until when it is silent.
#[derive(Default)]
pub struct Gateway {
    leases: BTreeMap<u64, (String, u32)>,
    silent_until_ms: u64,
}

pub struct FunctionOf {
    key: FuncKey,
    revision: i64,
    present: bool,
    spec: Spec,
    policy: Policy,
}

pub struct World {
    seed: u64,
    /// The rule that this core breaks.
    fault: Option<Fault>,
    random: Random,
    now: u64,
    core: Core,
    process: u64,
    calm: bool,
    /// The scheduler or a node was lost, so that books may differ for a while.
    disturbed: bool,
    agents: Vec<Agent>,
    functions: Vec<FunctionOf>,
    gateways: BTreeMap<i64, Gateway>,
    /// Gateway and function of those that wait.
    tickets: BTreeMap<TicketId, (i64, usize)>,
    /// Pods whose end was reported to this core.
    ended: BTreeSet<String>,
    /// A node's pods are being told one by one: until the last, the core knows of too few.
    telling: bool,
    /// The limits in force.
    tenants: BTreeMap<String, Tenant>,
    saves: Saves,
    asked: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    pub grants: u64,
    pub resumes: u64,
}

fn core_of(seed: u64, process: u64, fault: Option<Fault>) -> Core {
    Core::new(Config {
        pod_id_prefix: format!("{:06x}", (seed * 16 + process) & 0xff_ffff),
        idle_park_ms: (!seed.is_multiple_of(3)).then_some(500),
        residence_min_ms: 100,
        lease_ttl_ms: 2_000,
        takeover_ms: 600,
        backoff_ms: 100,
        backoff_max_ms: 2_000,
        snapshot_backoff_ms: snapshots::BACKOFF_MS,
        snapshot_backoff_max_ms: 2_000,
        snapshot_wait_ms: 1_000,
        fault,
        ..Config::default()
    })
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>) -> World {
        let mut world = World {
            seed,
            fault,
            random: Random::new(seed),
            now: 0,
            core: core_of(seed, 0, fault),
            process: 0,
            calm: false,
            disturbed: false,
            agents: Vec::new(),
            functions: Vec::new(),
            gateways: BTreeMap::new(),
            tickets: BTreeMap::new(),
            ended: BTreeSet::new(),
            telling: false,
            tenants: BTreeMap::new(),
            saves: Saves::default(),
            asked: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            grants: 0,
            resumes: 0,
        };
        world.populate();
        world
    }

    /// Runs with faults for `steps` happenings, then calms down and looks at what is left.
    pub fn run(&mut self, steps: u32) {
        self.after(0, Happening::Chaos);
        for _ in 0..steps {
            self.step();
        }
        self.calm = true;
        let until_ms = self.now + 200_000;
        while self.now < until_ms && self.next_ms().is_some_and(|at_ms| at_ms < until_ms) {
            self.step();
        }
        self.check_calm();
    }

    fn next_ms(&self) -> Option<u64> {
        let world = self.queue.keys().next().map(|(at_ms, _)| *at_ms);
        let core = self.core.next_wakeup_ms();
        world.into_iter().chain(core).min()
    }

    fn step(&mut self) {
        let Some(at_ms) = self.next_ms() else { return };
        self.now = self.now.max(at_ms);
        if self
            .core
            .next_wakeup_ms()
            .is_some_and(|wakeup| wakeup <= self.now)
        {
            self.core.tick(self.now);
        } else if let Some((_, happening)) = self.queue.pop_first() {
            self.happen(happening);
        }
        self.carry_out();
        self.judge_snapshots();
        self.telling = false;
        self.core.check(self.now);
    }

    pub fn after(&mut self, delay_ms: u64, happening: Happening) {
        self.sequence += 1;
        self.queue
            .insert((self.now + delay_ms, self.sequence), happening);
    }

    fn observe(&mut self, fact: Fact) {
        self.core.observe(self.now, fact);
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Chaos => self.chaos(),
            Happening::Heartbeat(id) => self.heartbeat(id),
            Happening::Connect(id) => self.connect(id),
            Happening::Return { gateway, lease } => self.give_back(gateway, lease),
            Happening::Cancel(ticket) => {
                let waits = self.tickets.remove(&ticket).is_some();
                let taken = self.core.cancel(self.now, ticket);
                assert!(taken || !waits, "a ticket that waits can be withdrawn");
            }
            Happening::Begin { kind, order } => self.begin(kind, order),
            Happening::Loaded { kind, pod } => self.loaded(kind, &pod),
            Happening::Parked(pod) => self.parked(&pod),
            Happening::Terminate(pod) => self.terminate(&pod),
            Happening::Park(pod) => self.park(&pod),
            Happening::Result { kind, outcome } => self.result(kind, outcome),
            Happening::Told(fact) => self.told(fact),
            Happening::Gone(pod_id) => self.observe(Fact::PodGone { pod_id }),
            Happening::NodeLost(at) => self.node_lost(at),
            Happening::Snapshot(told) => self.snapshot_told(told),
            Happening::NodeBack(at) => self.node_back(at),
        }
    }

    fn told(&mut self, fact: PodFact) {
        if self.random.chance(10) {
            let again = fact.clone();
            self.observe(Fact::Pod(again));
        }
        let pod_id = fact.pod_id.clone();
        self.observe(Fact::Pod(fact));
        if self.ended.contains(&pod_id) && !self.disturbed {
            let lives = self.core.pods().iter().any(|pod| pod.pod_id == pod_id);
            assert!(!lives, "late news does not make {pod_id} live again");
        }
    }

    fn result(&mut self, kind: Kind, outcome: Outcome) {
        if self.random.chance(10) {
            let again = outcome.clone();
            let delay_ms = self.random.below(500);
            self.after(
                delay_ms,
                Happening::Result {
                    kind,
                    outcome: again,
                },
            );
        }
        if kind == Kind::Terminate && outcome.ok {
            self.ended.insert(outcome.pod_id.clone());
        }
        self.observe(match kind {
            Kind::Start | Kind::Resume => Fact::StartResult(outcome),
            Kind::Park => Fact::ParkResult(outcome),
            Kind::Terminate => Fact::TerminateResult(outcome),
        });
    }

    fn carry_out(&mut self) {
        for effect in self.core.effects() {
            let delay_ms = self.random.below(30);
            match effect {
                Effect::Grant { ticket, grant } => {
                    let (gateway, at) = self.tickets.remove(&ticket).expect("one answer a ticket");
                    let older = |id: &TicketId, of: usize| *id < ticket && of == at;
                    let overtaken = self.tickets.iter().any(|(id, (_, of))| older(id, *of));
                    assert!(
                        !overtaken,
                        "the oldest ticket of a function is served first"
                    );
                    self.granted(gateway, grant.lease.0, grant.pod_id, grant.slots);
                }
                Effect::Refuse { ticket, refusal } => {
                    let known = self.tickets.remove(&ticket);
                    assert!(known.is_some(), "one answer a ticket");
                    assert!(!refusal.message.is_empty(), "a refusal explains itself");
                }
                Effect::Start(order) => {
                    self.judge(&order);
                    self.judge_save(&order);
                    self.after(
                        delay_ms,
                        Happening::Begin {
                            kind: Kind::Start,
                            order,
                        },
                    );
                }
                Effect::Resume(order) => {
                    self.resumes += 1;
                    self.judge(&order);
                    self.after(
                        delay_ms,
                        Happening::Begin {
                            kind: Kind::Resume,
                            order,
                        },
                    );
                }
                Effect::Park(pod) => self.after(delay_ms, Happening::Park(pod)),
                Effect::Terminate(pod) => self.after(delay_ms, Happening::Terminate(pod)),
            }
        }
    }

    // ---- gateways ----

    fn ask(&mut self) {
        let ids: Vec<i64> = self.gateways.keys().copied().collect();
        let gateway = self.random.pick(&ids);
        if self.gateways[&gateway].silent_until_ms > self.now {
            return;
        }
        let at = self.random.below(self.functions.len() as u64) as usize;
        self.asked += 1;
        let ask = Ask {
            key: self.functions[at].key.clone(),
            gateway,
            consumer: String::new(),
            request_id: format!("r{}", self.asked),
            slots: if self.random.chance(50) { 0 } else { 1 },
            deadline_ms: self.now + 1 + self.random.below(6_000),
        };
        let again = self.random.chance(10).then(|| ask.clone());
        let answer = self.core.lease(self.now, ask);
        if let Some(again) = again {
            match (&answer, self.core.lease(self.now, again)) {
                (Answer::Leased(one), Answer::Leased(two)) => assert_eq!(one.lease, two.lease),
                (Answer::Queued(one), Answer::Queued(two)) => assert_eq!(*one, two),
                (Answer::Refused(_), Answer::Refused(_)) => {}
                (one, two) => panic!("{one:?} and then {two:?} for the same request"),
            }
        }
        let tenant = self.tenants.get(&self.functions[at].key.tenant);
        if tenant.is_some_and(|tenant| tenant.disabled) {
            let refused = matches!(answer, Answer::Refused(_));
            assert!(refused, "a disabled tenant is served by nobody");
        }
        match answer {
            Answer::Leased(grant) => {
                self.granted(gateway, grant.lease.0, grant.pod_id, grant.slots);
            }
            Answer::Queued(ticket) => {
                // An edit may lower the bound; those who wait already stay.
                let function = &self.functions[at];
                let (waiting, _) = self.core.waiting(&function.key).expect("it waits");
                let limit = function.policy.queue_len as usize;
                assert!(waiting <= limit, "{waiting} wait where {limit} may");
                self.tickets.insert(ticket, (gateway, at));
                if self.random.chance(10) {
                    let delay_ms = self.random.below(1_000);
                    self.after(delay_ms, Happening::Cancel(ticket));
                }
            }
            Answer::Refused(refusal) => assert!(!refusal.message.is_empty()),
        }
    }

    fn granted(&mut self, gateway: i64, lease: u64, pod_id: String, slots: u32) {
        self.grants += 1;
        assert!(slots > 0, "a lease holds slots");
        let pods = self.core.pods();
        let pod = pods.iter().find(|pod| pod.pod_id == pod_id);
        let pod = pod.expect("a lease is on a pod that exists");
        let wanted = self.functions.iter().find(|f| f.key == pod.key);
        let current = wanted.is_some_and(|f| f.present && f.revision == pod.revision);
        assert!(current, "leases are on pods of the current revision");
        let agent = self.agents.iter().find(|agent| agent.name == pod.node);
        let theirs = agent.and_then(|agent| agent.pods.get(&pod_id));
        if let Some(theirs) = theirs.filter(|_| !self.disturbed) {
            assert_eq!(
                theirs.state,
                State::Ready,
                "{pod_id} is leased when it is ready"
            );
        }
        let holder = self
            .gateways
            .get_mut(&gateway)
            .expect("a gateway of this world");
        assert!(
            holder.leases.insert(lease, (pod_id, slots)).is_none(),
            "lease ids are unique"
        );
        let delay_ms = self.random.below(900);
        self.after(delay_ms, Happening::Return { gateway, lease });
    }

    fn give_back(&mut self, gateway: i64, lease: u64) {
        let holder = self
            .gateways
            .get_mut(&gateway)
            .expect("a gateway of this world");
        if holder.silent_until_ms > self.now {
            let delay_ms = holder.silent_until_ms - self.now;
            return self.after(delay_ms, Happening::Return { gateway, lease });
        }
        if holder.leases.remove(&lease).is_none() {
            return;
        }
        let ok = !self.random.chance(3);
        let known = self.core.give_back(self.now, lease, ok);
        if known {
            assert!(!self.core.give_back(self.now, lease, ok), "given back once");
        }
    }

    fn heartbeat(&mut self, id: i64) {
        if self.gateways[&id].silent_until_ms <= self.now {
            if self.core.refresh(self.now, id) {
                let held: Vec<u64> = self.gateways[&id].leases.keys().copied().collect();
                self.core.names(self.now, id, &held);
            } else {
                self.connect(id);
            }
            self.give_up_shares(id);
        }
        let pause_ms = if self.calm { 1_500 } else { 300 };
        self.after(pause_ms, Happening::Heartbeat(id));
    }

    /// What other gateways wait for is given up, mostly.
    fn give_up_shares(&mut self, id: i64) {
        let holder = self.gateways.get_mut(&id).expect("a gateway of this world");
        let core = &mut self.core;
        let mut to_return = Vec::new();
        for (lease, (_, slots)) in &mut holder.leases {
            match core.share(*lease) {
                Some(0) => to_return.push(*lease),
                Some(kept) if self.random.chance(80) => {
                    *slots = kept.min(*slots);
                    core.trim(self.now, *lease, *slots);
                }
                _ => {}
            }
        }
        for lease in to_return {
            self.give_back(id, lease);
        }
    }

    fn connect(&mut self, id: i64) {
        self.core.connect(self.now, id);
        let holder = self.gateways.get_mut(&id).expect("a gateway of this world");
        let (core, now) = (&mut self.core, self.now);
        holder
            .leases
            .retain(|lease, (pod_id, slots)| core.announce(now, id, *lease, pod_id, *slots));
    }

    /// What an order must keep to besides the books: the tenant's limit, and other functions'
    /// minimum.
    fn judge(&self, order: &StartOrder) {
        let pods = self.core.pods();
        let tenant = &order.pod.key.tenant;
        let limit = self.tenants.get(tenant).and_then(|t| t.gpu_milli_max);
        if let Some(limit) = limit.filter(|_| !self.telling && !self.disturbed) {
            let of_tenant = pods.iter().filter(|pod| pod.key.tenant == *tenant);
            let used: u64 = of_tenant.map(|pod| agent::gpu_milli(&pod.alloc)).sum();
            let asks = agent::gpu_milli(&order.alloc);
            assert!(
                asks == 0 || used <= limit,
                "{tenant} may use {limit}: {used}"
            );
        }
        for victim in &order.park {
            let function = self.functions.iter().find(|f| f.key == victim.key);
            let function = function.expect("a function of this world");
            let disabled = self
                .tenants
                .get(&victim.key.tenant)
                .is_some_and(|t| t.disabled);
            if disabled || !function.present || function.revision != victim.revision {
                continue;
            }
            let current = |pod: &&PodView| {
                pod.key == victim.key && pod.revision == victim.revision && pod.state.is_running()
            };
            let running = pods.iter().filter(current).count();
            let least = function.policy.min_replica as usize;
            assert!(running >= least, "{:?} keeps its minimum", victim.key);
        }
    }

    // ---- the end ----

    /// After the faults: everybody was answered, nothing is leased, and the core's pods are those
    /// that the agents run, idle ones parked or ended.
    fn check_calm(&self) {
        assert_eq!(self.tickets.len(), 0, "every ticket was answered");
        let stats = self.core.stats();
        assert_eq!(
            (stats.tickets, stats.leases),
            (0, 0),
            "nothing waits or is held"
        );
        let ours: BTreeSet<String> = self.core.pods().into_iter().map(|pod| pod.pod_id).collect();
        let agents = self
            .agents
            .iter()
            .flat_map(|agent| agent.pods.keys().cloned());
        let theirs: BTreeSet<String> = agents.collect();
        let pods = self.core.pods();
        assert_eq!(
            ours, theirs,
            "the core and the agents know the same pods: {pods:?}"
        );
        for function in &self.functions {
            let of_function = |pod: &PodView| pod.key == function.key;
            let pods = self.core.pods().into_iter().filter(of_function);
            let running = pods.filter(|pod| pod.state.is_running()).count();
            let least = if function.present {
                function.policy.min_replica as usize
            } else {
                0
            };
            assert!(
                running <= least,
                "{running} of {:?} still run",
                function.key
            );
        }
    }
}
