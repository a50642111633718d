//! What is deducted, what is refused and for which reason: the rules that users notice.
//! Never looks inside: only what the public interface shows.

use scheduler_core::place::{
    DeviceSpec, GpuRequest, GpuShare, NoFit, NodeId, NodeSpec, PlaceError, Placer, Policy, Request,
    TypeSet,
};

fn spec(name: &str, gpu_type: &str, gpus: usize) -> NodeSpec {
    let device = DeviceSpec {
        gpu_type: gpu_type.to_owned(),
        capacity: 80_000,
    };
    NodeSpec {
        name: name.to_owned(),
        cpu_millis: 32_000,
        mem_mb: 256_000,
        cache_mb: 64_000,
        devices: vec![device; gpus],
        context_overhead: 500,
        contexts_max: Some(2),
        pods_max: None,
    }
}

fn ask(count: u8, share: GpuShare) -> Request {
    let gpu = GpuRequest {
        count,
        share,
        contexts: 1,
        types: TypeSet::ANY,
    };
    Request {
        cpu_millis: 4_000,
        mem_mb: 16_000,
        cache_mb: 1_000,
        gpu: Some(gpu),
    }
}

fn placer(specs: impl IntoIterator<Item = NodeSpec>) -> (Placer, Vec<NodeId>) {
    let mut placer = Placer::new(Policy::Inferx);
    let add = |spec| {
        placer
            .cluster_mut()
            .add_node(spec)
            .expect("names are unique")
    };
    let nodes = specs.into_iter().map(add).collect();
    (placer, nodes)
}

fn refusal(placer: &mut Placer, request: &Request) -> NoFit {
    match placer.place(request) {
        Err(PlaceError::NoFit(counts)) => counts,
        other => panic!("{request:?} was not refused: {other:?}"),
    }
}

#[test]
fn everything_asked_for_is_deducted_and_given_back() {
    let (mut placer, nodes) = placer([spec("n", "A", 2)]);
    let pod = placer
        .place(&ask(2, GpuShare::Units(30_000)))
        .expect("it fits");
    let held = placer.cluster().allocation(pod).expect("it is held");
    assert_eq!(
        (held.units, held.devices.as_slice()),
        (30_500, [0, 1].as_slice())
    );
    let view = placer.cluster().view(nodes[0]).expect("known");
    assert_eq!(
        (view.cpu_millis, view.mem_mb, view.cache_mb),
        (28_000, 240_000, 63_000)
    );
    assert_eq!(view.device_units().collect::<Vec<u32>>(), [49_500, 49_500]);
    assert_eq!(view.pods(), 1);
    placer.release(pod).expect("it is held");
    let view = placer.cluster().view(nodes[0]).expect("known");
    assert_eq!((view.cpu_millis, view.pods()), (32_000, 0));
    assert_eq!(view.device_units().collect::<Vec<u32>>(), [80_000, 80_000]);
    assert_eq!(placer.release(pod), Err(PlaceError::StaleAllocation));
}

#[test]
fn a_whole_device_is_shared_with_nobody() {
    let (mut placer, _) = placer([spec("n", "A", 2)]);
    let small = placer
        .place(&ask(1, GpuShare::Units(100)))
        .expect("it fits");
    placer
        .place(&ask(1, GpuShare::Whole))
        .expect("one device is untouched");
    let counts = refusal(&mut placer, &ask(1, GpuShare::Whole));
    assert_eq!(
        counts,
        NoFit {
            gpu_memory: 1,
            ..NoFit::default()
        }
    );
    placer.release(small).expect("it is held");
    placer
        .place(&ask(1, GpuShare::Whole))
        .expect("the other device is whole again");
}

#[test]
fn contexts_run_out_before_memory_does() {
    let (mut placer, _) = placer([spec("n", "A", 1)]);
    for _ in 0..2 {
        placer
            .place(&ask(1, GpuShare::Units(10_000)))
            .expect("it fits");
    }
    let counts = refusal(&mut placer, &ask(1, GpuShare::Units(10_000)));
    assert_eq!(
        counts,
        NoFit {
            contexts: 1,
            ..NoFit::default()
        }
    );
}

#[test]
fn each_context_of_a_pod_has_its_overhead() {
    let (mut placer, nodes) = placer([spec("n", "A", 1)]);
    let mut both = ask(1, GpuShare::Units(10_000));
    both.gpu = both.gpu.map(|gpu| GpuRequest { contexts: 2, ..gpu });
    let pod = placer.place(&both).expect("it fits");
    let view = placer.cluster().view(nodes[0]).expect("known");
    assert_eq!(view.device_units().next(), Some(69_000));
    assert_eq!(
        refusal(&mut placer, &ask(1, GpuShare::Units(1))).contexts,
        1
    );
    placer.release(pod).expect("it is held");
    placer
        .place(&ask(1, GpuShare::Units(1)))
        .expect("both contexts are free again");
}

#[test]
fn the_overhead_of_a_context_counts() {
    let (mut placer, _) = placer([spec("n", "A", 1)]);
    let counts = refusal(&mut placer, &ask(1, GpuShare::Units(79_501)));
    assert_eq!(
        counts,
        NoFit {
            gpu_memory: 1,
            ..NoFit::default()
        }
    );
    placer
        .place(&ask(1, GpuShare::Units(79_500)))
        .expect("it fits to the last unit");
}

#[test]
fn a_refusal_counts_each_node_once_under_its_first_reason() {
    let mut tight = spec("tight", "A", 8);
    tight.cpu_millis = 3_999;
    let mut poor = spec("poor", "A", 8);
    poor.mem_mb = 15_999;
    let mut full = spec("full", "A", 8);
    full.pods_max = Some(0);
    let (mut placer, nodes) = placer([
        tight,
        poor,
        full,
        spec("b", "B", 8),
        spec("one", "A", 1),
        spec("down", "A", 8),
    ]);
    placer
        .cluster_mut()
        .set_ready(nodes[5], false)
        .expect("known");
    let only_a = placer.cluster_mut().type_set(["A"]).expect("few types");
    let mut wanted = ask(1, GpuShare::Units(80_000));
    wanted.gpu = wanted.gpu.map(|gpu| GpuRequest {
        types: only_a,
        ..gpu
    });
    let counts = refusal(&mut placer, &wanted);
    let expected = NoFit {
        not_ready: 1,
        pod_limit: 1,
        cpu: 1,
        memory: 1,
        gpu_type: 1,
        gpu_memory: 1,
        contexts: 0,
    };
    assert_eq!(counts, expected);
    let text = "no node fits: not_ready 1, pod_limit 1, cpu 1, memory 1, gpu_type 1, gpu_memory 1";
    assert_eq!(counts.to_string(), text);
}

#[test]
fn devices_of_one_request_are_of_one_kind() {
    let mut mixed = spec("mixed", "A", 3);
    mixed.devices[2].gpu_type = "B".to_owned();
    let (mut placer, _) = placer([mixed]);
    let pod = placer
        .place(&ask(2, GpuShare::Units(1_000)))
        .expect("two of type A");
    assert_eq!(
        placer.cluster().allocation(pod).expect("held").devices,
        [0, 1]
    );
    let counts = refusal(&mut placer, &ask(3, GpuShare::Units(1_000)));
    assert_eq!(
        counts,
        NoFit {
            gpu_type: 1,
            ..NoFit::default()
        }
    );
}

#[test]
fn what_an_agent_reports_is_booked_on_its_devices_even_while_not_ready() {
    let (mut placer, nodes) = placer([spec("n", "A", 4)]);
    let cluster = placer.cluster_mut();
    cluster.set_ready(nodes[0], false).expect("known");
    let request = ask(2, GpuShare::Units(40_000));
    let pod = cluster
        .allocate(nodes[0], request, &[3, 1])
        .expect("it fits");
    assert_eq!(cluster.allocation(pod).expect("held").devices, [1, 3]);
    for bad in [[1, 1].as_slice(), &[0], &[0, 9], &[1, 3]] {
        let refused = cluster.allocate(nodes[0], request, bad);
        assert_eq!(refused, Err(PlaceError::BadDevices), "{bad:?}");
    }
    assert!(placer.decide(&request).is_none());
    placer
        .cluster_mut()
        .set_ready(nodes[0], true)
        .expect("known");
    assert_eq!(
        placer
            .decide(&request)
            .expect("two devices are free")
            .devices,
        [0, 2]
    );
    placer.cluster().check();
}

#[test]
fn a_removed_node_takes_its_pods_with_it() {
    let (mut placer, nodes) = placer([spec("n", "A", 1)]);
    let pod = placer.place(&ask(1, GpuShare::Whole)).expect("fits");
    let cluster = placer.cluster_mut();
    assert_eq!(cluster.remove_node(nodes[0]), Ok(vec![pod]));
    assert_eq!(cluster.remove_node(nodes[0]), Err(PlaceError::UnknownNode));
    assert_eq!(cluster.release(pod), Err(PlaceError::StaleAllocation));
    let again = cluster
        .add_node(spec("n", "A", 1))
        .expect("the name is free again");
    assert_ne!(again, nodes[0]);
    assert_eq!(
        cluster.add_node(spec("n", "A", 1)),
        Err(PlaceError::DuplicateNode)
    );
    assert_eq!(refusal(&mut placer, &ask(2, GpuShare::Whole)).gpu_type, 1);
}

#[test]
fn pods_without_gpu_leave_gpu_nodes_alone() {
    let (mut placer, nodes) = placer([spec("gpu", "A", 8), spec("cpu", "A", 0)]);
    let typical = ask(1, GpuShare::Units(70_000));
    placer.expect(&typical, 100);
    placer.relearn();
    let plain = Request {
        gpu: None,
        ..typical
    };
    assert_eq!(placer.decide(&plain).expect("fits").node, nodes[1]);
    assert_eq!(
        placer.best_among(&plain, &nodes[..1]).expect("fits").node,
        nodes[0]
    );
}
