//! A node, functions and a clock to tell small stories with; `check` runs after each step.

use scheduler_core::Core;
use scheduler_core::messages::{Answer, Ask, Effect, Fact, Outcome, PodFact, PodRef, StartOrder};
use scheduler_core::model::{Config, FuncKey, Policy, Spec};
use scheduler_core::nodes::{Capacity, GpuCapacity, GpuShare, Holding};
use scheduler_core::pod::State;
use scheduler_core::queue::TicketId;

/// `name` or `tenant/name`.
pub fn key(name: &str) -> FuncKey {
    let (tenant, name) = name.split_once('/').unwrap_or(("t", name));
    FuncKey {
        tenant: tenant.into(),
        namespace: "n".into(),
        name: name.into(),
    }
}

pub struct World {
    pub core: Core,
    pub now: u64,
    /// Of the nodes to come; 0 = no limit.
    pub pods_max: u32,
    /// Whether the nodes to come keep snapshots.
    pub keeps_snapshots: bool,
    asked: u64,
}

impl World {
    /// One node with `gpus` GPUs of 24,000 MiB; idle pods are parked after 5 s.
    pub fn new(gpus: u32) -> World {
        let config = Config {
            pod_id_prefix: "abc123".into(),
            idle_park_ms: Some(5_000),
            residence_min_ms: 0,
            ..Config::default()
        };
        World::with(gpus, config)
    }

    pub fn with(gpus: u32, config: Config) -> World {
        let mut world = World {
            core: Core::new(config),
            now: 0,
            pods_max: 0,
            keeps_snapshots: false,
            asked: 0,
        };
        world.node("one", gpus, true);
        world
    }

    pub fn node(&mut self, name: &str, gpus: u32, ready: bool) {
        let gpu = |index| GpuCapacity {
            index,
            kind: "A".into(),
            vram_mib: 24_000,
        };
        let capacity = Capacity {
            cpu_millis: 8_000,
            mem_mib: 8_000,
            cache_mib: 60_000,
            gpus: (0..gpus).map(gpu).collect(),
            context_overhead_mib: 400,
            contexts_per_gpu_max: 0,
            pods_max: self.pods_max,
        };
        let (name, boot_id) = (name.to_owned(), "boot".to_owned());
        self.observe(Fact::Node {
            name,
            boot_id,
            ready,
            keeps_snapshots: self.keeps_snapshots,
            capacity,
        });
    }

    pub fn function(&mut self, name: &str, revision: i64, vram_mib: u64, policy: Policy) {
        let spec = Spec {
            cpu_millis: 1_000,
            mem_mib: 1_000,
            gpu_kind: "Any".into(),
            gpu_count: 1,
            vram_mib,
            standby_image_in_memory: true,
            ..Spec::default()
        };
        let key = key(name);
        self.observe(Fact::Function {
            key,
            revision,
            spec,
            policy,
        });
    }

    pub fn observe(&mut self, fact: Fact) {
        self.core.observe(self.now, fact);
        self.core.check(self.now);
    }

    pub fn ask_with(&mut self, name: &str, request_id: &str, slots: u32, wait_ms: u64) -> Answer {
        self.ask_of(1, name, request_id, slots, wait_ms)
    }

    /// The same of any gateway.
    pub fn ask_of(
        &mut self,
        gateway: i64,
        name: &str,
        request_id: &str,
        slots: u32,
        wait_ms: u64,
    ) -> Answer {
        let ask = Ask {
            key: key(name),
            gateway,
            consumer: String::new(),
            request_id: request_id.into(),
            slots,
            deadline_ms: self.now + wait_ms,
        };
        let answer = self.core.lease(self.now, ask);
        self.core.check(self.now);
        answer
    }

    pub fn ask(&mut self, name: &str) -> Answer {
        self.asked += 1;
        self.ask_with(name, &format!("r{}", self.asked), 0, 30_000)
    }

    pub fn queued(&mut self, name: &str) -> TicketId {
        match self.ask(name) {
            Answer::Queued(ticket) => ticket,
            other => panic!("{name} was not queued: {other:?}"),
        }
    }

    /// A warm lease of `name`.
    pub fn leased(&mut self, name: &str) -> u64 {
        match self.ask(name) {
            Answer::Leased(grant) => grant.lease.0,
            other => panic!("{name} was not leased: {other:?}"),
        }
    }

    pub fn start(&mut self) -> StartOrder {
        match self.core.effects().as_slice() {
            [Effect::Start(order)] | [Effect::Resume(order)] => order.clone(),
            other => panic!("not one start: {other:?}"),
        }
    }

    /// The one order that is out: to park this pod.
    pub fn park(&mut self) -> PodRef {
        match self.core.effects().as_slice() {
            [Effect::Park(pod)] => pod.clone(),
            other => panic!("not one park: {other:?}"),
        }
    }

    pub fn outcome(pod: &PodRef, error: Option<&str>) -> Outcome {
        Outcome {
            pod_id: pod.pod_id.clone(),
            ok: error.is_none(),
            code: "start_failed".into(),
            reason: error.unwrap_or_default().into(),
            gone: true,
            order: pod.order,
            start: None,
        }
    }

    pub fn started(&mut self, pod: &PodRef) {
        self.observe(Fact::StartResult(World::outcome(pod, None)));
    }

    pub fn grants(&mut self) -> Vec<(TicketId, u64, &'static str)> {
        let effects = self.core.effects().into_iter();
        let grants = effects.map(|effect| match effect {
            Effect::Grant { ticket, grant } => (ticket, grant.lease.0, grant.start.name()),
            other => panic!("not a grant: {other:?}"),
        });
        grants.collect()
    }

    /// A cold start of `name` that succeeds; the lease.
    pub fn running(&mut self, name: &str) -> u64 {
        self.queued(name);
        let order = self.start();
        self.started(&order.pod);
        self.grants()[0].1
    }

    /// Called so often, every two seconds, that more calls are expected.
    pub fn called_often(&mut self, name: &str) {
        let mut lease = self.running(name);
        for _ in 0..20 {
            self.now += 1_000;
            self.give_back(lease);
            self.wait(1_000);
            lease = self.leased(name);
        }
        self.give_back(lease);
    }

    pub fn give_back(&mut self, lease: u64) -> bool {
        let known = self.core.give_back(self.now, lease, true);
        self.core.check(self.now);
        known
    }

    pub fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.core.tick(self.now);
        self.core.check(self.now);
    }

    /// An agent shows a pod, maybe one of a former scheduler process.
    pub fn shown(&mut self, name: &str, pod_id: &str, state: State) {
        let share = GpuShare {
            index: 0,
            mib: 14_400,
            contexts: 1,
        };
        self.observe(Fact::Pod(PodFact {
            pod_id: pod_id.into(),
            node: "one".into(),
            key: key(name),
            revision: 1,
            state,
            reason: String::new(),
            held: Holding {
                cpu_millis: 1_000,
                mem_mib: 1_000,
                cache_mib: 0,
                pods: 1,
                gpus: vec![share],
            },
        }));
    }

    pub fn states(&self) -> Vec<State> {
        self.core.pods().iter().map(|pod| pod.state).collect()
    }
}

/// One slot a pod.
pub fn one_slot() -> Policy {
    Policy {
        parallel: 1,
        ..Policy::default()
    }
}
