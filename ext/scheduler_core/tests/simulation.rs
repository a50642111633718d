//! Seeded simulation of the core with faults; every invariant is checked after every step.
//! `SIM_SEEDS=n` runs n seeds, `SIM_SEED=s` repeats the one that a failure named.

mod world;

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use world::World;

const SEEDS: u64 = 10_000;
const STEPS: u32 = 600;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn one(seed: u64) -> (u64, u64) {
    let run = catch_unwind(|| {
        let mut world = World::new(seed, None);
        world.run(STEPS);
        (world.grants, world.resumes)
    });
    run.unwrap_or_else(|_| panic!("repeat with SIM_SEED={seed} cargo test --test simulation"))
}

/// Seeds are dealt out to as many threads as there are cores.
#[test]
fn no_invariant_breaks_under_faults() {
    let (first, end) = match number("SIM_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("SIM_SEEDS").unwrap_or(SEEDS)),
    };
    let next = AtomicU64::new(first);
    let (grants, resumes) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let (granted, resumed) = one(seed);
            grants.fetch_add(granted, Ordering::Relaxed);
            resumes.fetch_add(resumed, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().expect("the seed to repeat is named above");
        }
    });
    let exercised = grants.into_inner() > 0 && resumes.into_inner() > 0;
    assert!(
        number("SIM_SEED").is_some() || exercised,
        "the simulation exercises leases and resumes"
    );
}
