//! The index answers what a full scan answers, and the books balance, whatever happens.
//! Never compares with stored results: the definition is run beside the index at every step.

use scheduler_core::place::{
    AllocId, DeviceSpec, GpuRequest, GpuShare, NodeId, NodeSpec, PlaceError, Placer, Policy,
    Request, TypeSet,
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % u64::from(end)) as u32
    }
}

const TYPES: [&str; 3] = ["A", "B", "C"];

/// Few distinct values, so that equal states and equal scores are common.
fn node(random: &mut Random, name: u32) -> NodeSpec {
    let mixed = random.below(4) == 0;
    let gpu_type = random.below(3) as usize;
    let devices = (0..[0, 1, 2, 4, 8][random.below(5) as usize])
        .map(|index| DeviceSpec {
            gpu_type: TYPES[(gpu_type + usize::from(mixed) * index) % 3].to_owned(),
            capacity: if mixed { 100 } else { 80 },
        })
        .collect();
    NodeSpec {
        name: format!("node-{name}"),
        cpu_millis: 16_000 * (1 + random.below(3)),
        mem_mb: 65_536 * (1 + random.below(2)),
        cache_mb: 4_096,
        devices,
        context_overhead: random.below(2) * 2,
        contexts_max: [None, Some(2), Some(3)][random.below(3) as usize],
        pods_max: [None, Some(6)][random.below(2) as usize],
    }
}

fn request(random: &mut Random, types: &[TypeSet]) -> Request {
    let share = match random.below(4) {
        0 => GpuShare::Whole,
        _ => GpuShare::Units([10, 20, 40, 78][random.below(4) as usize]),
    };
    let gpu = GpuRequest {
        count: [1, 1, 1, 2, 4][random.below(5) as usize],
        share,
        contexts: [0, 1, 2][random.below(3) as usize],
        types: types[random.below(types.len() as u32) as usize],
    };
    Request {
        cpu_millis: 1_000 * random.below(5),
        mem_mb: 8_192 * random.below(4),
        cache_mb: 512 * random.below(2),
        gpu: (random.below(6) > 0).then_some(gpu),
    }
}

fn type_sets(placer: &mut Placer) -> Vec<TypeSet> {
    let cluster = placer.cluster_mut();
    let mut set = |names: &[&str]| cluster.type_set(names.iter().copied()).expect("few types");
    vec![
        TypeSet::ANY,
        TypeSet::ANY,
        set(&["A"]),
        set(&["B", "C"]),
        set(&["unknown"]),
    ]
}

struct World {
    placer: Placer,
    random: Random,
    nodes: Vec<NodeId>,
    pods: Vec<AllocId>,
    names: u32,
}

impl World {
    fn step(&mut self, types: &[TypeSet]) {
        match self.random.below(40) {
            0 => self.add_node(),
            1 if self.nodes.len() > 3 => {
                let at = self.random.below(self.nodes.len() as u32) as usize;
                let gone = self.nodes.swap_remove(at);
                let lost = self
                    .placer
                    .cluster_mut()
                    .remove_node(gone)
                    .expect("it was there");
                self.pods.retain(|pod| !lost.contains(pod));
            }
            2..=4 => {
                let node = self.nodes[self.random.below(self.nodes.len() as u32) as usize];
                let ready = self.random.below(3) > 0;
                self.placer
                    .cluster_mut()
                    .set_ready(node, ready)
                    .expect("it is there");
            }
            5..=17 if !self.pods.is_empty() => {
                let at = self.random.below(self.pods.len() as u32) as usize;
                let pod = self.pods.swap_remove(at);
                self.placer.release(pod).expect("it was held");
                assert_eq!(self.placer.release(pod), Err(PlaceError::StaleAllocation));
            }
            _ => self.place(types),
        }
    }

    fn add_node(&mut self) {
        self.names += 1;
        let spec = node(&mut self.random, self.names);
        self.nodes.push(
            self.placer
                .cluster_mut()
                .add_node(spec)
                .expect("a new name"),
        );
    }

    fn place(&mut self, types: &[TypeSet]) {
        let request = request(&mut self.random, types);
        self.placer.observe(&request);
        let scanned = self.placer.decide_by_scan(&request);
        let decided = self.placer.decide(&request);
        assert_eq!(decided, scanned, "{request:?}");
        let Some(choice) = decided else {
            let counts = self.placer.explain(&request).counts();
            let nodes: u32 = counts.iter().map(|count| count.1).sum();
            assert_eq!(
                nodes as usize,
                self.nodes.len(),
                "every node has its reason"
            );
            return;
        };
        let cluster = self.placer.cluster_mut();
        let pod = cluster.allocate(choice.node, request, &choice.devices);
        self.pods.push(pod.expect("what was decided fits"));
    }
}

fn run(policy: Policy, seed: u64, steps: u32) {
    let mut placer = Placer::new(policy);
    let types = type_sets(&mut placer);
    let mut world = World {
        placer,
        random: Random(seed),
        nodes: Vec::new(),
        pods: Vec::new(),
        names: 0,
    };
    (0..12).for_each(|_| world.add_node());
    for step in 0..steps {
        world.step(&types);
        if step % 16 == 0 {
            world.placer.cluster().check();
        }
    }
    while let Some(pod) = world.pods.pop() {
        world.placer.release(pod).expect("it was held");
    }
    world.placer.cluster().check();
}

#[test]
fn the_index_decides_as_a_scan_does() {
    for policy in Policy::ALL
        .into_iter()
        .filter(|policy| *policy != Policy::Random(0))
    {
        for seed in 0..6 {
            run(policy, seed, 500);
        }
    }
}

#[test]
fn a_random_policy_stays_within_the_nodes_that_fit() {
    let mut placer = Placer::new(Policy::Random(7));
    let types = type_sets(&mut placer);
    let mut random = Random(7);
    for name in 0..20 {
        placer
            .cluster_mut()
            .add_node(node(&mut random, name))
            .expect("a new name");
    }
    for _ in 0..400 {
        let request = request(&mut random, &types);
        if let Err(refusal) = placer.place(&request) {
            assert!(matches!(refusal, PlaceError::NoFit(_)));
        }
    }
    placer.cluster().check();
}

/// The same arrivals on the same nodes, added in another order, end on nodes of the same names.
#[test]
fn the_order_of_nodes_does_not_matter() {
    for seed in 0..8 {
        let mut random = Random(seed);
        let mut specs: Vec<NodeSpec> = (0..40).map(|name| node(&mut random, name)).collect();
        let outcome = |specs: &[NodeSpec]| {
            let mut placer = Placer::new(Policy::Inferx);
            let mut random = Random(seed + 100);
            for spec in specs {
                placer
                    .cluster_mut()
                    .add_node(spec.clone())
                    .expect("a new name");
            }
            let types = type_sets(&mut placer);
            let mut names = Vec::new();
            for _ in 0..400 {
                let request = request(&mut random, &types);
                placer.observe(&request);
                let Ok(pod) = placer.place(&request) else {
                    continue;
                };
                let held = placer.cluster().allocation(pod).expect("just placed");
                let view = placer.cluster().view(held.node).expect("it is there");
                names.push((view.spec.name.clone(), held.devices.clone()));
            }
            names
        };
        let first = outcome(&specs);
        for end in (1..specs.len()).rev() {
            specs.swap(end, random.below(end as u32 + 1) as usize);
        }
        assert_eq!(first, outcome(&specs), "seed {seed}");
    }
}
