//! Where a pod is started: the way that is expected to make everybody wait least.

use scheduler_core::core::tasks::{SnapshotTier, TaskState};
use scheduler_core::messages::{Fact, SnapshotFact, StartOrder};
use scheduler_core::model::{Policy, Spec, StartTimes};

use crate::story::{World, key};

/// Nodes of one GPU each, `one` and those named.
fn world(more: &[&str]) -> World {
    let mut world = World::new(1);
    world.keeps_snapshots = true;
    world.node("one", 1, true);
    for name in more {
        world.node(name, 1, true);
    }
    world
}

fn function(world: &mut World, name: &str, cold_ms: u64) {
    world.observe(Fact::Function {
        key: key(name),
        revision: 1,
        spec: Spec {
            cpu_millis: 1_000,
            mem_mib: 1_000,
            gpu_count: 1,
            vram_mib: 14_000,
            expected: StartTimes {
                cold_ms,
                ..StartTimes::default()
            },
            ..Spec::default()
        },
        policy: Policy {
            standby_per_node: 0,
            ..Policy::default()
        },
    });
}

fn has(world: &mut World, name: &str, node: &str, tier: SnapshotTier) {
    world.observe(Fact::Snapshot(SnapshotFact {
        key: key(name),
        node: node.into(),
        revision: 1,
        state: TaskState::Done,
        tier,
        size_mib: 1,
        failures: 0,
        reason: String::new(),
    }));
}

fn start(world: &mut World, name: &str) -> StartOrder {
    world.queued(name);
    world.start()
}

#[test]
fn the_node_with_the_snapshot_is_preferred() {
    for holder in ["one", "two", "three"] {
        let mut world = world(&["two", "three"]);
        function(&mut world, "f", 0);
        has(&mut world, "f", holder, SnapshotTier::File);
        assert_eq!(start(&mut world, "f").pod.node, holder);
    }
}

#[test]
fn memory_is_preferred_to_a_file() {
    for (memory, file) in [("one", "two"), ("two", "one")] {
        let mut world = world(&["two"]);
        function(&mut world, "f", 0);
        has(&mut world, "f", file, SnapshotTier::File);
        has(&mut world, "f", memory, SnapshotTier::Host);
        assert_eq!(start(&mut world, "f").pod.node, memory);
    }
}

/// `f` has a snapshot on the node where `idle` runs and nobody is expected to call it.
fn occupied(cold_ms: u64) -> (World, String) {
    let mut world = world(&["two"]);
    function(&mut world, "idle", 0);
    let order = start(&mut world, "idle");
    world.started(&order.pod);
    let lease = world.grants()[0].1;
    world.give_back(lease);
    function(&mut world, "f", cold_ms);
    has(&mut world, "f", &order.pod.node, SnapshotTier::File);
    (world, order.pod.node)
}

#[test]
fn room_is_made_at_the_snapshot_where_a_start_from_nothing_takes_long() {
    let (mut world, holder) = occupied(900_000);
    let order = start(&mut world, "f");
    assert_eq!(order.pod.node, holder);
    assert_eq!(order.terminate.len(), 1);
}

#[test]
fn free_room_is_taken_where_a_start_from_nothing_is_quick() {
    let (mut world, holder) = occupied(400);
    let order = start(&mut world, "f");
    assert_ne!(order.pod.node, holder);
    assert_eq!(order.terminate, []);
}

#[test]
fn what_starts_took_decides_where_nothing_was_told() {
    let mut world = world(&["two"]);
    function(&mut world, "f", 0);
    let order = start(&mut world, "f");
    world.now += 200; // from nothing, quicker than any room is made
    world.started(&order.pod);
    let lease = world.grants()[0].1;
    has(&mut world, "f", &order.pod.node, SnapshotTier::File);
    world.give_back(lease);
    world.core.kill(world.now, &order.pod.pod_id);
    world.core.effects();
    world.observe(Fact::PodGone {
        pod_id: order.pod.pod_id,
    });
    function(&mut world, "other", 0);
    let other = start(&mut world, "other");
    world.started(&other.pod);
    let lease = world.grants()[0].1;
    world.give_back(lease);
    let second = start(&mut world, "f");
    assert_ne!(second.pod.node, other.pod.node, "no room is made");
}

#[test]
fn room_is_found_on_the_last_of_many_nodes() {
    let mut world = World::new(0);
    let names: Vec<String> = (0..100).map(|at| format!("n{at:02}")).collect();
    for name in &names {
        world.node(name, 1, true);
    }
    for at in 0..names.len() {
        function(&mut world, &format!("f{at}"), 0);
        let order = start(&mut world, &format!("f{at}"));
        world.started(&order.pod);
        let lease = world.grants()[0].1;
        if at == 77 {
            world.give_back(lease);
        }
    }
    function(&mut world, "late", 0);
    let order = start(&mut world, "late");
    assert_eq!(order.terminate[0].key.name, "f77");
}
