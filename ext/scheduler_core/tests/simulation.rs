//! Seeded simulation of the core with faults; every invariant is checked after every step.
//! `SIM_SEEDS=n` runs n seeds, `SIM_SEED=s` repeats the one that a failure named.

mod world;

use world::World;

const SEEDS: u64 = 150;
const STEPS: u32 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn one(seed: u64) -> (u64, u64) {
    let run = std::panic::catch_unwind(|| {
        let mut world = World::new(seed);
        world.run(STEPS);
        (world.grants, world.resumes)
    });
    run.unwrap_or_else(|_| panic!("repeat with SIM_SEED={seed} cargo test --test simulation"))
}

#[test]
fn no_invariant_breaks_under_faults() {
    let (mut grants, mut resumes) = (0, 0);
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let (granted, resumed) = one(seed);
        (grants, resumes) = (grants + granted, resumes + resumed);
    }
    assert!(
        number("SIM_SEED").is_some() || (grants > 0 && resumes > 0),
        "the simulation exercises leases and resumes"
    );
}
