//! What each verb promises, told as small stories with a node, a function and a clock.

use scheduler_core::Core;
use scheduler_core::messages::{Answer, Ask, Effect, Fact, Outcome, PodRef, StartOrder};
use scheduler_core::model::{Config, FuncKey, Policy, Spec, Tenant};
use scheduler_core::nodes::{Capacity, GpuCapacity};
use scheduler_core::pod::State;
use scheduler_core::queue::TicketId;

fn key(name: &str) -> FuncKey {
    FuncKey {
        tenant: "t".into(),
        namespace: "n".into(),
        name: name.into(),
    }
}

struct World {
    core: Core,
    now: u64,
    asked: u64,
}

impl World {
    /// One node with `gpus` GPUs of 24,000 MiB.
    fn new(gpus: u32) -> World {
        let config = Config {
            pod_id_prefix: "abc123".into(),
            ..Config::default()
        };
        let mut world = World {
            core: Core::new(config),
            now: 0,
            asked: 0,
        };
        world.node("one", gpus, true);
        world
    }

    fn node(&mut self, name: &str, gpus: u32, ready: bool) {
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
        };
        let (name, boot_id) = (name.to_owned(), "boot".to_owned());
        self.observe(Fact::Node {
            name,
            boot_id,
            ready,
            capacity,
        });
    }

    fn function(&mut self, name: &str, revision: i64, vram_mib: u64, policy: Policy) {
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

    fn observe(&mut self, fact: Fact) {
        self.core.observe(self.now, fact);
        self.core.check(self.now);
    }

    fn ask_with(&mut self, name: &str, request_id: &str, slots: u32, wait_ms: u64) -> Answer {
        let ask = Ask {
            key: key(name),
            gateway: 1,
            request_id: request_id.into(),
            slots,
            deadline_ms: self.now + wait_ms,
        };
        let answer = self.core.lease(self.now, ask);
        self.core.check(self.now);
        answer
    }

    fn ask(&mut self, name: &str) -> Answer {
        self.asked += 1;
        self.ask_with(name, &format!("r{}", self.asked), 0, 30_000)
    }

    fn queued(&mut self, name: &str) -> TicketId {
        match self.ask(name) {
            Answer::Queued(ticket) => ticket,
            other => panic!("{name} was not queued: {other:?}"),
        }
    }

    fn start(&mut self) -> StartOrder {
        match self.core.effects().as_slice() {
            [Effect::Start(order)] | [Effect::Resume(order)] => order.clone(),
            other => panic!("not one start: {other:?}"),
        }
    }

    fn outcome(pod: &PodRef, error: Option<&str>) -> Outcome {
        Outcome {
            pod_id: pod.pod_id.clone(),
            ok: error.is_none(),
            code: "start_failed".into(),
            reason: error.unwrap_or_default().into(),
            gone: true,
            order: pod.order,
        }
    }

    fn started(&mut self, pod: &PodRef) {
        self.observe(Fact::StartResult(World::outcome(pod, None)));
    }

    fn grants(&mut self) -> Vec<(TicketId, u64, &'static str)> {
        let effects = self.core.effects().into_iter();
        let grants = effects.map(|effect| match effect {
            Effect::Grant { ticket, grant } => (ticket, grant.lease.0, grant.start.name()),
            other => panic!("not a grant: {other:?}"),
        });
        grants.collect()
    }

    /// A cold start of `name` that succeeds; the lease.
    fn running(&mut self, name: &str) -> u64 {
        self.queued(name);
        let order = self.start();
        self.started(&order.pod);
        self.grants()[0].1
    }

    fn give_back(&mut self, lease: u64) -> bool {
        let known = self.core.give_back(self.now, lease, true);
        self.core.check(self.now);
        known
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        self.core.tick(self.now);
        self.core.check(self.now);
    }

    fn states(&self) -> Vec<State> {
        self.core.pods().iter().map(|pod| pod.state).collect()
    }
}

fn one_slot() -> Policy {
    Policy {
        parallel: 1,
        ..Policy::default()
    }
}

#[test]
fn a_burst_of_first_calls_starts_one_pod() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let asks: Vec<Answer> = (0..32)
        .map(|at| world.ask_with("f", &format!("r{at}"), 1, 30_000))
        .collect();
    assert!(asks.iter().all(|ask| matches!(ask, Answer::Queued(_))));
    let order = world.start();
    assert_eq!(order.alloc.devices, [0]);
    assert_eq!(
        (order.alloc.vram_mib, order.alloc.context_overhead_mib),
        (14_000, 400)
    );
    world.started(&order.pod);
    assert_eq!(world.grants().len(), 32);
    assert_eq!(world.core.pods()[0].leased, 32);
}

#[test]
fn the_same_request_gets_the_same_ticket_and_lease() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let first = world.ask_with("f", "same", 0, 30_000);
    assert_eq!(world.ask_with("f", "same", 0, 30_000), first);
    let order = world.start();
    world.started(&order.pod);
    let lease = world.grants()[0].1;
    let Answer::Leased(again) = world.ask_with("f", "same", 0, 30_000) else {
        panic!("the lease is given again");
    };
    assert_eq!(again.lease.0, lease);
    assert!(world.give_back(lease));
    assert!(!world.give_back(lease), "a second give-back is recognised");
}

#[test]
fn a_returned_slot_goes_to_the_oldest_ticket() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    let lease = world.running("f");
    world.wait(10);
    let (first, second) = (world.queued("f"), world.queued("f"));
    assert!(world.give_back(lease));
    let grants = world.grants();
    assert_eq!(
        grants.iter().map(|grant| grant.0).collect::<Vec<_>>(),
        [first]
    );
    assert_eq!(grants[0].2, "warm");
    assert!(world.give_back(grants[0].1));
    assert_eq!(world.grants()[0].0, second);
}

#[test]
fn gateways_share_the_only_pod() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let (first, second) = (world.queued("f"), world.queued("f"));
    let order = world.start();
    world.started(&order.pod);
    let granted: Vec<TicketId> = world.grants().iter().map(|grant| grant.0).collect();
    assert_eq!(granted, [first, second]);
}

#[test]
fn an_idle_pod_is_parked_and_resumed() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    world.wait(4_999);
    assert_eq!(world.states(), [State::Idle]);
    world.wait(1);
    let effects = world.core.effects();
    let [Effect::Park(pod)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    world.observe(Fact::ParkResult(World::outcome(pod, None)));
    assert_eq!(world.states(), [State::Standby]);
    assert_eq!(world.core.stats().gpu_mib_used, 0);
    world.queued("f");
    let effects = world.core.effects();
    let [Effect::Resume(order)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(order.pod.pod_id, pod.pod_id);
    let late = PodRef {
        order: pod.order,
        ..order.pod.clone()
    };
    world.started(&late);
    assert_eq!(
        world.states(),
        [State::Resuming],
        "an old order's result does not count"
    );
    world.started(&order.pod);
    assert_eq!(world.grants()[0].2, "resume");
}

#[test]
fn min_replica_is_started_and_kept() {
    let mut world = World::new(1);
    let policy = Policy {
        min_replica: 1,
        ..Policy::default()
    };
    world.function("f", 1, 14_000, policy);
    let order = world.start();
    world.started(&order.pod);
    world.wait(60_000);
    assert_eq!(world.states(), [State::Idle]);
    world.function("g", 1, 14_000, Policy::default());
    world.queued("g");
    assert_eq!(
        world.core.effects(),
        [],
        "a pod that the policy keeps is no victim"
    );
}

#[test]
fn the_pod_unused_longest_is_parked_to_make_room() {
    let mut world = World::new(2);
    for name in ["f", "g", "h"] {
        world.function(name, 1, 14_000, Policy::default());
    }
    for name in ["f", "g"] {
        world.now += 10;
        let lease = world.running(name);
        world.give_back(lease);
    }
    world.queued("h");
    let order = world.start();
    assert_eq!(order.park.len(), 1);
    assert_eq!(order.park[0].key.name, "f");
    assert!(order.terminate.is_empty());
    world.started(&order.pod);
    let standby: Vec<_> = world
        .core
        .pods()
        .into_iter()
        .filter(|pod| pod.state == State::Standby)
        .collect();
    assert_eq!(standby.len(), 1);
    assert_eq!(standby[0].key.name, "f");
}

#[test]
fn a_pod_without_standby_is_ended_to_make_room() {
    let mut world = World::new(1);
    let policy = Policy {
        standby_per_node: 0,
        ..Policy::default()
    };
    world.function("f", 1, 14_000, policy);
    world.function("g", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    world.queued("g");
    let order = world.start();
    assert_eq!((order.terminate.len(), order.park.len()), (1, 0));
}

#[test]
fn victims_of_a_failed_start_get_orders_of_their_own() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.function("g", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    let ticket = world.queued("g");
    let order = world.start();
    world.observe(Fact::StartResult(World::outcome(
        &order.pod,
        Some("no weights"),
    )));
    let effects = world.core.effects();
    assert!(matches!(&effects[0], Effect::Park(pod) if pod.pod_id == order.park[0].pod_id));
    match &effects[1] {
        Effect::Refuse {
            ticket: refused,
            refusal,
        } => {
            assert_eq!((*refused, refusal.code), (ticket, "start_failed"));
            assert_eq!(refusal.message, "no weights");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.states(), [State::Parking]);
}

#[test]
fn a_broken_function_backs_off_until_it_is_edited() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.queued("f");
    let order = world.start();
    world.observe(Fact::StartResult(World::outcome(
        &order.pod,
        Some("no weights"),
    )));
    world.core.effects();
    let Answer::Refused(refusal) = world.ask("f") else {
        panic!("it backs off")
    };
    assert_eq!(
        (refusal.code, refusal.retry_after_ms),
        ("start_failed", Some(1_000))
    );
    world.function("f", 2, 14_000, Policy::default());
    world.queued("f");
    let order = world.start();
    assert_eq!(order.pod.revision, 2);
}

#[test]
fn too_large_a_function_is_refused_at_once_with_the_reason() {
    let mut world = World::new(2);
    world.function("f", 1, 90_000, Policy::default());
    let Answer::Refused(refusal) = world.ask("f") else {
        panic!("it can never start")
    };
    assert_eq!(refusal.code, "no_capacity");
    assert!(
        refusal.message.contains("too_little_gpu_memory: 1"),
        "{}",
        refusal.message
    );
}

#[test]
fn a_ticket_ends_at_its_deadline_with_the_reason() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.function("g", 1, 14_000, Policy::default());
    world.running("f");
    let Answer::Queued(ticket) = world.ask_with("g", "x", 0, 500) else {
        panic!("queued")
    };
    assert_eq!(world.core.next_wakeup_ms(), Some(500));
    world.wait(500);
    let effects = world.core.effects();
    let [
        Effect::Refuse {
            ticket: refused,
            refusal,
        },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*refused, refusal.code), (ticket, "no_capacity"));
    assert!(
        refusal.message.contains("too_little_gpu_memory: 1"),
        "{}",
        refusal.message
    );
}

#[test]
fn a_full_queue_refuses() {
    let mut world = World::new(1);
    let policy = Policy {
        queue_len: 2,
        ..Policy::default()
    };
    world.function("f", 1, 14_000, policy);
    world.queued("f");
    world.queued("f");
    let Answer::Refused(refusal) = world.ask("f") else {
        panic!("the queue is full")
    };
    assert_eq!(refusal.code, "queue_full");
}

#[test]
fn a_lost_node_moves_its_tickets_elsewhere() {
    let mut world = World::new(1);
    world.node("two", 1, true);
    world.function("f", 1, 14_000, one_slot());
    let lease = world.running("f");
    let ticket = world.queued("f");
    world.observe(Fact::NodeLost { name: "one".into() });
    assert!(!world.give_back(lease), "the lease died with its node");
    let order = world.start();
    assert_eq!(order.pod.node, "two");
    world.started(&order.pod);
    assert_eq!(world.grants()[0].0, ticket);
}

#[test]
fn leases_of_a_silent_gateway_end() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.wait(10_000);
    assert!(world.core.refresh(world.now, 1));
    world.wait(14_999);
    assert_eq!(world.states(), [State::Working]);
    world.wait(1);
    assert_eq!(world.states(), [State::Idle]);
    assert!(!world.give_back(lease));
    assert!(
        !world.core.refresh(world.now + 15_000, 2),
        "an unknown gateway has to connect"
    );
}

#[test]
fn an_edited_function_drains_its_old_pods() {
    let mut world = World::new(2);
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.function("f", 2, 14_000, Policy::default());
    assert_eq!(world.states(), [State::Working], "calls that run may end");
    world.queued("f");
    let order = world.start();
    assert_eq!(order.pod.revision, 2);
    world.give_back(lease);
    assert!(matches!(
        world.core.effects().as_slice(),
        [Effect::Terminate(_)]
    ));
}

#[test]
fn a_deleted_function_ends_with_its_pods_and_tickets() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    world.running("f");
    world.queued("f");
    world.observe(Fact::FunctionGone(key("f")));
    let effects = world.core.effects();
    assert!(matches!(&effects[0], Effect::Refuse { refusal, .. }
        if refusal.code == "function_not_found"));
    let Effect::Terminate(pod) = &effects[1] else {
        panic!("{effects:?}")
    };
    world.observe(Fact::TerminateResult(World::outcome(pod, None)));
    assert_eq!(world.core.stats().functions, 0);
    assert_eq!(world.core.stats().gpu_mib_used, 0);
}

#[test]
fn a_tenant_is_limited_in_slices_of_gpus() {
    let mut world = World::new(2);
    world.function(
        "f",
        1,
        11_600,
        Policy {
            max_replica: 4,
            ..one_slot()
        },
    );
    let tenant = Tenant {
        gpu_milli_max: Some(1_000),
        ..Tenant::default()
    };
    world.observe(Fact::Tenant {
        name: "t".into(),
        tenant,
    });
    world.running("f");
    world.running("f");
    let Answer::Queued(_) = world.ask_with("f", "x", 0, 100) else {
        panic!("queued")
    };
    world.wait(100);
    let effects = world.core.effects();
    let [Effect::Refuse { refusal, .. }] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(refusal.code, "tenant_gpu_limit");
}

#[test]
fn a_disabled_tenant_is_refused_and_drained() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    let tenant = Tenant {
        disabled: true,
        ..Tenant::default()
    };
    world.observe(Fact::Tenant {
        name: "t".into(),
        tenant,
    });
    assert!(matches!(world.ask("f"), Answer::Refused(refusal) if refusal.code == "disabled"));
    world.give_back(lease);
    assert!(matches!(
        world.core.effects().as_slice(),
        [Effect::Terminate(_)]
    ));
}
