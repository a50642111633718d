//! Keeping warm: parked when no call is expected, resumed ahead of need, and no thrashing.

use scheduler_core::messages::{Effect, Fact};
use scheduler_core::model::{Config, Policy, Tenant};
use scheduler_core::pod::State;

use crate::story::World;

/// A resume takes a second here.
const RESUME_MS: u64 = 1_000;

fn adaptive() -> World {
    World::with(1, config(None))
}

fn config(idle_park_ms: Option<u64>) -> Config {
    Config {
        pod_id_prefix: "abc123".into(),
        idle_park_ms,
        ..Config::default()
    }
}

/// Lets the clock run and carries orders out until `wait_ms` have passed.
fn live(world: &mut World, wait_ms: u64) -> Vec<&'static str> {
    let end_ms = world.now + wait_ms;
    let mut deeds = Vec::new();
    while let Some(at_ms) = world.core.next_wakeup_ms().filter(|at_ms| *at_ms <= end_ms) {
        world.wait(at_ms.saturating_sub(world.now));
        for effect in world.core.effects() {
            match effect {
                Effect::Park(pod) => {
                    deeds.push("park");
                    world.observe(Fact::ParkResult(World::outcome(&pod, None)));
                }
                Effect::Resume(order) => {
                    deeds.push("resume");
                    world.now += RESUME_MS;
                    world.started(&order.pod);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    world.wait(end_ms.saturating_sub(world.now));
    deeds
}

#[test]
fn a_regular_caller_finds_its_function_resumed() {
    let mut world = adaptive();
    world.function("f", 1, 14_000, Policy::default());
    let mut lease = world.running("f");
    let mut warm = 0;
    for round in 0..60 {
        world.now += 20_000;
        world.give_back(lease);
        live(&mut world, 120_000);
        match world.states()[0] {
            State::Idle => {
                warm += u32::from(round >= 40);
                lease = world.leased("f");
            }
            _ => {
                world.queued("f");
                let order = world.start();
                world.now += RESUME_MS;
                world.started(&order.pod);
                lease = world.grants()[0].1;
            }
        }
    }
    assert!(warm >= 15, "{warm} of the last 20 calls found it running");
    assert!(world.core.stats().counters.prewarms > 0);
    assert!(world.core.stats().counters.parks > 40, "parked in between");
}

#[test]
fn nothing_is_kept_or_resumed_for_a_caller_that_stays_away() {
    let mut world = adaptive();
    world.function("f", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    live(&mut world, 3_600_000);
    assert_eq!(world.states(), [State::Standby]);
    assert_eq!(live(&mut world, 86_400_000), Vec::<&str>::new());
}

#[test]
fn a_pod_that_is_just_ready_makes_room_only_after_a_while() {
    let mut world = World::with(1, config(Some(5_000)));
    world.function("f", 1, 14_000, Policy::default());
    world.function("g", 1, 14_000, Policy::default());
    let lease = world.running("f");
    world.give_back(lease);
    world.queued("g");
    assert_eq!(world.core.effects(), [], "f became ready just now");
    world.wait(1_000);
    let order = world.start();
    assert_eq!(order.park[0].key.name, "f");
}

#[test]
fn the_function_that_is_called_often_is_not_the_victim() {
    let mut world = World::with(2, config(Some(600_000)));
    for name in ["often", "once", "new"] {
        world.function(name, 1, 14_000, Policy::default());
    }
    let lease = world.running("once");
    world.give_back(lease);
    world.called_often("often");
    // It was used last by a hair, yet nobody is expected to call it.
    world.now += 10;
    let lease = world.leased("once");
    world.give_back(lease);
    world.queued("new");
    let order = world.start();
    assert_eq!(order.park[0].key.name, "once");
}

#[test]
fn a_replica_that_its_tenant_no_longer_keeps_is_parked() {
    let mut world = World::new(1);
    let policy = Policy {
        min_replica: 1,
        ..Policy::default()
    };
    world.function("f", 1, 14_000, policy);
    let order = world.start();
    world.started(&order.pod);
    world.wait(60_000);
    assert_eq!(world.states(), [State::Idle], "its policy keeps it");
    let tenant = Tenant {
        min_replica_cap: Some(0),
        ..Tenant::default()
    };
    let name = "t".to_owned();
    world.observe(Fact::Tenant { name, tenant });
    world.wait(10_000);
    assert_eq!(world.park().key.name, "f");
}

#[test]
fn a_tenant_at_its_limit_swaps_its_pods_no_more_often_than_others() {
    let mut world = World::with(2, config(Some(600_000)));
    let tenant = Tenant {
        replicas_max: Some(1),
        ..Tenant::default()
    };
    let name = "t".to_owned();
    world.observe(Fact::Tenant { name, tenant });
    for name in ["f", "g"] {
        world.function(name, 1, 14_000, Policy::default());
    }
    let lease = world.running("f");
    world.give_back(lease);
    world.queued("g");
    assert_eq!(world.core.effects(), [], "f became ready just now");
    world.wait(1_000);
    assert_eq!(world.park().key.name, "f");
}
