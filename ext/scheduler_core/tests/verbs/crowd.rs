//! Many who wait on a full cluster: what comes free finds its taker, and all others still know why
//! they wait.

use scheduler_core::messages::{Answer, Effect};
use scheduler_core::model::Policy;

use crate::story::World;

/// Functions of two sizes wait on a full node; a pod that is given back makes room for the one
/// whose turn it is, and all others still wait, each with its reason.
#[test]
fn those_who_wait_for_the_same_are_told_the_same_and_one_is_served() {
    let mut world = World::new(2);
    for name in ["a", "b"] {
        world.function(name, 1, 20_000, Policy::default());
    }
    let held = [world.running("a"), world.running("b")];
    for number in 0..20 {
        let vram_mib = [20_000, 10_000][number % 2];
        let name = format!("w{number}");
        world.function(&name, 1, vram_mib, Policy::default());
        assert!(matches!(world.ask(&name), Answer::Queued(_)));
    }
    assert_eq!(world.core.effects(), []);
    world.give_back(held[0]);
    let order = world.start();
    assert_eq!((order.pod.key.name.as_str(), order.park.len()), ("w0", 1));
    world.started(&order.pod);
    assert_eq!(world.grants().len(), 1);
    world.give_back(held[1]);
    let order = world.start();
    assert_eq!((order.pod.key.name.as_str(), order.park.len()), ("w1", 1));
    world.started(&order.pod);
    // Two of the smaller size share a GPU: the next one fits beside w1 at once.
    let effects = world.core.effects();
    let fits = effects.iter().find_map(|effect| match effect {
        Effect::Start(order) => Some(order.clone()),
        _ => None,
    });
    let order = fits.expect("w3 fits beside w1");
    assert_eq!(order.pod.key.name, "w3");
    world.started(&order.pod);
    assert_eq!(world.grants().len(), 1);
    world.wait(30_000);
    let refused = world
        .core
        .effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Refuse { refusal, .. } => Some(refusal.message),
            _ => None,
        });
    let refused: Vec<String> = refused.collect();
    assert_eq!(refused.len(), 17, "those who were not served: {refused:?}");
    for message in refused {
        assert!(message.contains("too_little_gpu_memory: 1"), "{message}");
    }
}
