//! Snapshot tasks: permitted with a start, done, failed and tried again, outdated by an edit.

use scheduler_core::core::tasks::{SnapshotTier, TaskState};
use scheduler_core::messages::{Fact, Outcome, SnapshotFact, StartOrder};
use scheduler_core::model::{Policy, StartKind};

use crate::story::{World, key};

/// One GPU on a node that keeps snapshots; no pod of `f` is parked, so each start is a new one.
fn world() -> World {
    let mut world = World::new(1);
    world.keeps_snapshots = true;
    world.node("one", 1, true);
    world.function("f", 1, 14_000, ends());
    world
}

fn ends() -> Policy {
    Policy {
        standby_per_node: 0,
        ..Policy::default()
    }
}

fn told(world: &mut World, state: TaskState, failures: u32) {
    world.observe(Fact::Snapshot(SnapshotFact {
        key: key("f"),
        node: "one".into(),
        revision: 1,
        state,
        tier: SnapshotTier::File,
        size_mib: 7,
        failures,
        reason: "as told".into(),
    }));
}

/// The one task's state and failures, and why.
fn task(world: &mut World) -> (TaskState, u32, String) {
    let news = world.core.snapshot_news();
    let [one] = news.as_slice() else {
        panic!("{news:?}")
    };
    let task = one.task.clone().expect("it is there");
    (task.state, task.failures, task.reason)
}

fn start(world: &mut World) -> StartOrder {
    world.queued("f");
    world.start()
}

/// The pod of this order is ready, used and ended.
fn finish(world: &mut World, order: &StartOrder) {
    world.started(&order.pod);
    let lease = world.grants()[0].1;
    world.give_back(lease);
    world.wait(5_000);
    let ended = World::outcome(&order.pod, None);
    world.core.effects();
    world.observe(Fact::TerminateResult(Outcome { order: 0, ..ended }));
    assert_eq!(world.states(), []);
}

#[test]
fn a_first_start_is_saved_and_later_ones_are_restored() {
    let mut world = world();
    let order = start(&mut world);
    assert!(order.save);
    assert_eq!(task(&mut world).0, TaskState::Scheduled);
    finish(&mut world, &order);
    told(&mut world, TaskState::Done, 0);
    assert_eq!(task(&mut world), (TaskState::Done, 0, "as told".into()));
    told(&mut world, TaskState::Done, 0);
    assert_eq!(world.core.snapshot_news(), [], "told again");
    let order = start(&mut world);
    assert!(order.save, "should it turn out to be unusable");
    world.observe(Fact::StartResult(Outcome {
        start: Some(StartKind::Snapshot),
        ..World::outcome(&order.pod, None)
    }));
    assert_eq!(world.grants()[0].2, "snapshot");
}

#[test]
fn a_failure_backs_off_longer_each_time_and_is_tried_again() {
    let mut world = world();
    let mut pause_ms = 30_000;
    for failures in 1..=9 {
        let order = start(&mut world);
        assert!(order.save, "attempt {failures}");
        finish(&mut world, &order);
        told(&mut world, TaskState::ScheduleFail, failures);
        told(&mut world, TaskState::ScheduleFail, failures);
        let expected = (TaskState::ScheduleFail, failures, "as told".into());
        assert_eq!(task(&mut world), expected);
        let order = start(&mut world);
        assert!(!order.save, "it backs off, the call is served");
        finish(&mut world, &order);
        world.wait(pause_ms - 5_001);
        assert_eq!(world.core.snapshot_news(), []);
        world.wait(1);
        assert_eq!(task(&mut world).0, TaskState::Waiting);
        pause_ms = (2 * pause_ms).min(3_600_000);
    }
    assert_eq!(world.core.stats().counters.snapshots_failed, 9);
}

#[test]
fn silence_is_a_failure() {
    let mut world = world();
    let order = start(&mut world);
    finish(&mut world, &order);
    world.wait(595_000);
    let (state, failures, reason) = task(&mut world);
    assert_eq!((state, failures), (TaskState::ScheduleFail, 1));
    assert_eq!(reason, "nothing was heard of it");
}

#[test]
fn a_start_that_fails_leaves_the_task_to_the_next() {
    let mut world = world();
    let order = start(&mut world);
    let failed = World::outcome(&order.pod, Some("no weights"));
    world.observe(Fact::StartResult(failed));
    let (state, failures, reason) = task(&mut world);
    assert_eq!((state, failures), (TaskState::Waiting, 0));
    assert!(reason.contains("did not get ready"), "{reason}");
}

#[test]
fn an_edit_outdates_a_snapshot_and_another_policy_does_not() {
    let mut world = world();
    let order = start(&mut world);
    finish(&mut world, &order);
    told(&mut world, TaskState::Done, 0);
    let policy = Policy {
        parallel: 3,
        ..ends()
    };
    world.core.snapshot_news();
    world.function("f", 1, 14_000, policy);
    assert_eq!(world.core.snapshot_news(), []);
    world.function("f", 2, 14_000, ends());
    assert_eq!(
        task(&mut world),
        (TaskState::Init, 0, "the function was edited".into())
    );
    told(&mut world, TaskState::Done, 0);
    assert_eq!(world.core.snapshot_news(), [], "of revision 1, too late");
    let order = start(&mut world);
    assert!(order.save);
}

#[test]
fn one_that_the_node_removed_is_taken_again() {
    let mut world = world();
    told(&mut world, TaskState::Done, 0);
    let (key, node) = (key("f"), "one".to_owned());
    world.observe(Fact::SnapshotGone { key, node });
    assert_eq!(task(&mut world).0, TaskState::Waiting);
    assert!(start(&mut world).save);
}

#[test]
fn a_node_that_keeps_none_says_so_until_it_does() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, ends());
    let order = start(&mut world);
    assert!(!order.save);
    let (state, _, reason) = task(&mut world);
    assert_eq!(state, TaskState::Cannot);
    assert_eq!(reason, "node one keeps no snapshots");
    finish(&mut world, &order);
    world.keeps_snapshots = true;
    world.node("one", 1, true);
    assert_eq!(task(&mut world).0, TaskState::Init);
    assert!(start(&mut world).save);
}

#[test]
fn what_the_node_cannot_save_is_not_tried_again() {
    let mut world = world();
    let order = start(&mut world);
    told(&mut world, TaskState::Cannot, 0);
    finish(&mut world, &order);
    assert_eq!(task(&mut world).0, TaskState::Cannot);
    assert!(!start(&mut world).save);
}

#[test]
fn a_deleted_function_is_forgotten() {
    let mut world = world();
    told(&mut world, TaskState::Done, 0);
    world.core.snapshot_news();
    world.observe(Fact::FunctionGone(key("f")));
    let news = world.core.snapshot_news();
    assert_eq!(news.len(), 1);
    assert_eq!(news[0].task, None);
    told(&mut world, TaskState::Done, 0);
    assert_eq!(world.core.snapshot_news(), []);
}
