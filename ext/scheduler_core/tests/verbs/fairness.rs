//! Tenants that compete for room: priority first, then who uses least for its weight.

use scheduler_core::messages::Fact;
use scheduler_core::model::{Config, Eviction, Policy, Tenant};

use crate::story::World;

/// Two GPUs: `a/busy` keeps one, `c/held` the other; `a/next` and `b/first` wait, in this order,
/// until `c/held` is given back and makes room.
fn winner(a: Tenant) -> String {
    let mut world = World::new(2);
    let name = "a".to_owned();
    world.observe(Fact::Tenant { name, tenant: a });
    for name in ["a/busy", "c/held", "a/next", "b/first"] {
        world.function(name, 1, 20_000, Policy::default());
    }
    world.running("a/busy");
    let held = world.running("c/held");
    world.queued("a/next");
    world.queued("b/first");
    assert_eq!(world.core.effects(), [], "both GPUs are taken");
    world.give_back(held);
    world.start().pod.key.name
}

#[test]
fn the_tenant_that_uses_less_is_served_first() {
    assert_eq!(winner(Tenant::default()), "first");
}

#[test]
fn a_weight_makes_a_share_count_less() {
    let weight = 1_000_000_000; // so much that a GPU counts as nothing; then the elder is served
    let tenant = Tenant {
        weight,
        ..Tenant::default()
    };
    assert_eq!(winner(tenant), "next");
}

#[test]
fn priority_comes_before_fairness() {
    let tenant = Tenant {
        priority: 1,
        ..Tenant::default()
    };
    assert_eq!(winner(tenant), "next");
}

#[test]
fn eviction_by_least_recent_use_ignores_forecasts() {
    let config = Config {
        pod_id_prefix: "abc123".into(),
        idle_park_ms: Some(600_000),
        residence_min_ms: 0,
        eviction: Eviction::LeastRecentlyUsed,
        ..Config::default()
    };
    let mut world = World::with(2, config);
    for name in ["often", "once", "new"] {
        world.function(name, 1, 14_000, Policy::default());
    }
    world.called_often("often");
    world.now += 10;
    let lease = world.running("once");
    world.give_back(lease);
    world.queued("new");
    assert_eq!(world.start().park[0].key.name, "often");
}
