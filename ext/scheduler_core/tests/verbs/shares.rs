//! Gateways that want slots of the same pods, and what each may keep.

use scheduler_core::messages::{Answer, Effect, Grant};
use scheduler_core::model::Policy;

use crate::story::{World, one_slot};

const PATIENT_MS: u64 = 30_000;

fn policy(parallel: u32) -> Policy {
    Policy {
        parallel,
        max_replica: 1,
        ..Policy::default()
    }
}

/// Gateway `gateway` waits for all that it can get.
fn waits(world: &mut World, gateway: i64, request_id: &str) {
    let answer = world.ask_of(gateway, "f", request_id, 0, PATIENT_MS);
    assert!(matches!(answer, Answer::Queued(_)), "{answer:?}");
}

fn grants(world: &mut World) -> Vec<Grant> {
    let effects = world.core.effects().into_iter();
    let grants = effects.filter_map(|effect| match effect {
        Effect::Grant { grant, .. } => Some(grant),
        _ => None,
    });
    grants.collect()
}

fn trim(world: &mut World, lease: u64, slots: u32) {
    assert!(world.core.trim(world.now, lease, slots));
    world.core.check(world.now);
}

#[test]
fn a_lone_gateway_keeps_everything() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, policy(8));
    let lease = world.running("f");
    assert_eq!(world.core.share(lease), None);
    waits(&mut world, 1, "more of the same");
    assert_eq!(world.core.share(lease), None, "it does not wait for itself");
}

#[test]
fn what_is_given_up_goes_to_who_waits_until_the_shares_are_equal() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, policy(5));
    let first = world.running("f");
    waits(&mut world, 2, "b1");
    assert_eq!(world.core.share(first), Some(2));
    trim(&mut world, first, 4);
    let [one] = grants(&mut world).try_into().expect("one grant");
    assert_eq!(one.slots, 1);
    waits(&mut world, 2, "b2");
    trim(&mut world, first, 3);
    let [two] = grants(&mut world).try_into().expect("one grant");
    assert_eq!(two.slots, 1);
    waits(&mut world, 2, "b3");
    assert_eq!(world.core.share(first), Some(3), "2 and 3 is equal enough");
    assert_eq!(world.core.share(one.lease.0), None, "nobody else waits");
    assert_eq!(world.core.pods()[0].leased, 5);
}

#[test]
fn older_leases_are_kept_before_younger_ones() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, policy(4));
    world.ask_with("f", "a1", 2, PATIENT_MS);
    let order = world.start();
    world.started(&order.pod);
    let [old] = grants(&mut world).try_into().expect("one grant");
    let Answer::Leased(young) = world.ask_with("f", "a2", 2, PATIENT_MS) else {
        panic!("two slots are free");
    };
    waits(&mut world, 2, "b1");
    let mut kept = [old.lease.0, young.lease.0].map(|lease| world.core.share(lease));
    kept.sort_unstable();
    assert_eq!(kept, [Some(0), Some(2)]);
}

#[test]
fn gateways_take_turns_where_there_are_fewer_slots_than_gateways() {
    let mut world = World::new(1);
    world.function(
        "f",
        1,
        14_000,
        Policy {
            max_replica: 1,
            ..one_slot()
        },
    );
    let mut lease = world.running("f");
    let mut holder = 1;
    for turn in 0..4 {
        let other = 3 - holder;
        waits(&mut world, other, &format!("turn {turn}"));
        assert_eq!(
            world.core.share(lease),
            Some(0),
            "it goes back after its call"
        );
        assert!(world.give_back(lease));
        let [grant] = grants(&mut world).try_into().expect("one grant");
        (lease, holder) = (grant.lease.0, other);
    }
}

#[test]
fn a_lease_that_has_ended_is_not_trimmed() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, policy(4));
    let lease = world.running("f");
    assert!(
        world.core.trim(world.now, lease, 9),
        "more than it has changes nothing"
    );
    assert_eq!(world.core.pods()[0].leased, 4);
    assert!(world.give_back(lease));
    assert!(!world.core.trim(world.now, lease, 1));
    assert_eq!(world.core.share(lease), None);
}
