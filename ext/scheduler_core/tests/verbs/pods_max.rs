//! A node's limit of pods: counted for running and parked ones, named by refusals, freed by ends.

use scheduler_core::messages::{Answer, Effect, Fact};
use scheduler_core::model::Policy;
use scheduler_core::pod::State;

use crate::story::World;

/// One node of four GPUs that takes `pods_max` pods, and functions of half a GPU each.
fn world(pods_max: u32, functions: &[&str]) -> World {
    let mut world = World::new(4);
    world.pods_max = pods_max;
    world.node("one", 4, true);
    for name in functions {
        world.function(name, 1, 10_000, Policy::default());
    }
    world
}

#[test]
fn a_refusal_names_the_limit_of_pods() {
    let mut world = world(2, &["a", "b", "c"]);
    world.running("a");
    world.running("b");
    let ticket = world.queued("c");
    assert_eq!(world.core.effects(), [], "both pods are leased");
    world.wait(30_000);
    let effects = world.core.effects();
    let [Effect::Refuse { refusal, .. }] = effects.as_slice() else {
        panic!("{ticket:?}: {effects:?}")
    };
    assert_eq!(refusal.code, "no_capacity");
    assert!(
        refusal.message.contains("too_many_pods: 1"),
        "{}",
        refusal.message
    );
}

#[test]
fn parked_pods_count_and_end_to_make_room() {
    let mut world = world(1, &["a", "b"]);
    let lease = world.running("a");
    world.give_back(lease);
    world.wait(5_000);
    let pod = world.park();
    world.observe(Fact::ParkResult(World::outcome(&pod, None)));
    assert_eq!(world.states(), [State::Standby]);
    world.queued("b");
    let order = world.start();
    assert_eq!(order.terminate[0].pod_id, pod.pod_id, "parking is no help");
    assert_eq!(order.park, []);
    world.started(&order.pod);
    assert_eq!(world.core.pods().len(), 1);
}

#[test]
fn a_resume_needs_no_place_of_its_own() {
    let mut world = world(1, &["a"]);
    let lease = world.running("a");
    world.give_back(lease);
    world.wait(5_000);
    let pod = world.park();
    world.observe(Fact::ParkResult(World::outcome(&pod, None)));
    world.queued("a");
    assert!(matches!(
        world.core.effects().as_slice(),
        [Effect::Resume(_)]
    ));
}

#[test]
fn a_limit_that_is_lowered_ends_nobody_but_takes_no_more() {
    let mut world = world(3, &["a", "b", "c"]);
    let leases = [world.running("a"), world.running("b")];
    world.pods_max = 1;
    world.node("one", 4, true);
    assert_eq!(world.states(), [State::Working, State::Working]);
    assert!(matches!(world.ask("c"), Answer::Queued(_)));
    assert_eq!(world.core.effects(), []);
    for lease in leases {
        world.give_back(lease);
    }
    let order = world.start();
    assert_eq!(order.terminate.len(), 2, "both have to leave for one");
}
