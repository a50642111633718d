//! A core that breaks one rule does not get through the simulation: each rule is broken in turn.
//! Without this nobody knows whether the simulation would notice anything.

mod world;

use std::panic::{catch_unwind, set_hook};

use scheduler_core::core::fault::Fault;
use world::World;

/// A broken rule that this many seeds do not show would be seen too late.
const SEEDS_MAX: u64 = 2_000;
const STEPS: u32 = 400;

#[test]
fn every_broken_rule_is_caught() {
    set_hook(Box::new(|_| {})); // hundreds of intended panics
    let survived = |fault: &Fault| {
        (0..SEEDS_MAX).all(|seed| {
            let run = || {
                let mut world = World::new(seed, Some(*fault));
                world.run(STEPS);
                world.grants + world.resumes
            };
            catch_unwind(run).is_ok()
        })
    };
    let unnoticed: Vec<&Fault> = Fault::ALL.iter().filter(|fault| survived(fault)).collect();
    let _ = std::panic::take_hook();
    assert!(
        unnoticed.is_empty(),
        "broken and not noticed: {unnoticed:?}"
    );
}
