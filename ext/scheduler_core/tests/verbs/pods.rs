//! Pods: started, parked, resumed, ended, lost.

use scheduler_core::messages::{Answer, Effect, Fact, Outcome, PodRef};
use scheduler_core::model::{Policy, StartKind, Tenant};
use scheduler_core::pod::State;

use crate::story::{World, key, one_slot};

#[test]
fn an_idle_pod_is_parked_and_resumed() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    world.wait(4_999);
    assert_eq!(world.states(), [State::Idle]);
    world.wait(1);
    let pod = world.park();
    world.observe(Fact::ParkResult(World::outcome(&pod, None)));
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

/// The agent started it again, because its standby failed: the call is told so, and the time that
/// it took is not taken for that of a resume.
#[test]
fn a_resume_that_became_a_start_is_granted_as_one() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    world.wait(5_000);
    let pod = world.park();
    world.observe(Fact::ParkResult(World::outcome(&pod, None)));
    world.queued("f");
    let effects = world.core.effects();
    let [Effect::Resume(order)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    world.observe(Fact::StartResult(Outcome {
        start: Some(StartKind::Cold),
        ..World::outcome(&order.pod, None)
    }));
    assert_eq!(world.grants()[0].2, "cold");
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
fn a_lost_node_moves_its_tickets_elsewhere() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    let lease = world.running("f");
    world.node("two", 1, true);
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

#[test]
fn a_worker_that_dies_before_its_start_is_answered_is_not_leased() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.queued("f");
    let first = world.start();
    let pod_id = first.pod.pod_id.clone();
    world.observe(Fact::PodGone {
        pod_id: pod_id.clone(),
    });
    assert_eq!(world.states(), [State::Creating], "it is still to be made");
    world.shown("f", &pod_id, State::Ready);
    world.observe(Fact::PodGone { pod_id });
    world.started(&first.pod);
    let second = world.start();
    assert_ne!(second.pod.pod_id, first.pod.pod_id, "started anew");
}
