//! CudaDevice against a fake libcuda that a C compiler makes: layouts, order, every error path.
//! It must never need a GPU; without a C compiler it says so and fails.

mod common;

use common::fake::Fake;
use common::sample;
use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::cuda::{CudaDevice, RestoreLayout};
use gpu_snapshot::device::{
    Access, CopyQueue, Device, GRANULARITY, GpuPair, ProcState, ProcessControl, Va, Work, WorkKind,
};
use gpu_snapshot::image::{Region, RegionClass, Store};
use gpu_snapshot::measure;
use gpu_snapshot::pipeline::{Cancel, Options, Ring, check_device, load};
use gpu_snapshot::storage::OsStorage;
use gpu_snapshot::{Error, Result};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PID: i32 = 77;
const WAIT: Duration = Duration::from_secs(30);

fn code<T: std::fmt::Debug>(result: Result<T>) -> i32 {
    match result {
        Err(Error::Device { code, .. }) => code,
        other => panic!("no device error: {other:?}"),
    }
}

#[test]
fn without_a_driver_opening_is_an_error_that_says_so() {
    let error = CudaDevice::open_with(Path::new("/nowhere/libcuda.so.1"), 0).unwrap_err();
    assert!(
        matches!(&error, Error::Device { code: 100, why, .. } if why.contains("no CUDA driver"))
    );
}

#[test]
fn a_device_says_what_it_is_and_lets_go_of_everything() {
    let fake = Fake::new("");
    let device = fake.open();
    let info = device.info();
    assert_eq!(
        (info.name.as_str(), info.cuda.as_str()),
        ("Fake GPU 1", "13.0")
    );
    assert_eq!(
        (info.uuid, info.compute_capability.as_str()),
        ([0x41; 16], "9.0")
    );
    assert_eq!(
        (info.memory_total, info.granularity),
        (64 * GRANULARITY, GRANULARITY)
    );
    assert_eq!(fake.state("contexts"), 1);
    drop(device);
    assert_eq!(fake.state("contexts"), 0);
    let error = CudaDevice::open_with(fake.path(), 2).unwrap_err();
    assert!(error.to_string().contains("2 GPUs"), "{error}");
}

#[test]
fn memory_is_mapped_shared_and_given_back() {
    let fake = Fake::new("");
    let device = fake.open();
    let va = device.reserve(2 * GRANULARITY, None).unwrap();
    let phys = device.create(GRANULARITY + 1, true).unwrap();
    assert_eq!(phys.len(), 2 * GRANULARITY);
    assert_eq!(device.mem_free().unwrap(), 62 * GRANULARITY);
    device.map(va, &phys, Access::ReadWrite).unwrap();
    assert!(device.map(va, &phys, Access::ReadWrite).is_err());
    let fd = device.export(&phys).unwrap();
    let again = device.import(fd.as_fd(), phys.len()).unwrap();
    device.release(again).unwrap();
    assert!(device.unreserve(va, 2 * GRANULARITY).is_err());
    device.unmap(va, 2 * GRANULARITY).unwrap();
    device.unreserve(va, 2 * GRANULARITY).unwrap();
    device.release(phys).unwrap();
    for what in ["reservations", "mappings", "allocations"] {
        assert_eq!(fake.state(what), 0, "{what}");
    }
    let Err(Error::OutOfMemory { asked, free }) = device.create(65 * GRANULARITY, false) else {
        panic!("there is not that much memory");
    };
    assert_eq!((asked, free), (65 * GRANULARITY, 64 * GRANULARITY));
}

#[test]
fn host_addresses_never_reach_the_driver() {
    let fake = Fake::new("");
    let device = fake.open();
    let victim = HostBuffer::new(4096).unwrap();
    let at = Va(victim.bytes().as_ptr() as u64);
    let phys = device.create(1, false).unwrap();
    let queue = device.open_queue(1).unwrap();
    assert!(
        device
            .map(Va(at.0 / GRANULARITY * GRANULARITY), &phys, Access::Read)
            .is_err()
    );
    assert!(device.unmap(at, 4096).is_err());
    let (kind, tag) = (WorkKind::Zero, 0);
    let refused = queue
        .submit(Work {
            kind,
            va: at,
            len: 4096,
            tag,
            buffer: None,
        })
        .unwrap_err();
    assert!(
        refused.0.to_string().contains("not reserved"),
        "{}",
        refused.0
    );
    let va = device.reserve(GRANULARITY, None).unwrap();
    let over = Work {
        kind,
        va,
        len: GRANULARITY + 1,
        tag,
        buffer: None,
    };
    assert!(queue.submit(over).is_err());
    let wrap = Work {
        kind,
        va,
        len: u64::MAX,
        tag,
        buffer: None,
    };
    assert!(queue.submit(wrap).is_err());
}

#[test]
fn a_snapshot_goes_through_the_same_engine() {
    let fake = Fake::new("");
    let device = fake.open();
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(Arc::new(OsStorage), &directory.path().join("store")).unwrap();
    let region = Region::new(1, "weights", RegionClass::Gpu, 500_000);
    let regions = vec![Region {
        chunk_len: 65536,
        align: 4096,
        ..region
    }];
    let contents = sample::contents(&regions, &[1, 0, 2, 1]);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let snapshot = store.snapshot("a").unwrap();
    let mut ring = Ring::new(&device, 3, 65536).unwrap();
    assert_eq!(fake.state("pins"), 3);
    let (cancel, options) = (Cancel::default(), Options::default());
    let loaded = load(&snapshot, &device, &mut ring, &cancel, options).unwrap();
    let placements = loaded.placements();
    check_device(&snapshot, &device, &mut ring, &placements, &cancel, options).unwrap();
    drop(loaded);
    drop(ring);
    for what in [
        "pins",
        "streams",
        "events",
        "reservations",
        "mappings",
        "allocations",
    ] {
        assert_eq!(fake.state(what), 0, "{what}");
    }
}

/// One error in any call of a restore: it fails with that code and nothing is kept.
#[test]
fn every_call_of_a_restore_may_fail() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(Arc::new(OsStorage), &directory.path().join("store")).unwrap();
    let region = Region::new(1, "weights", RegionClass::Gpu, 200_000);
    let regions = vec![Region {
        chunk_len: 65536,
        align: 4096,
        ..region
    }];
    let contents = sample::contents(&regions, &[1, 0, 2]);
    sample::save(&store, sample::draft("a", regions), &contents).unwrap();
    let snapshot = store.snapshot("a").unwrap();
    // The call, and which one of them: one of the middle where there are several.
    let calls = [
        ("cuMemHostRegister", 2),
        ("cuMemGetInfo", 1),
        ("cuMemCreate", 1),
        ("cuMemAddressReserve", 1),
        ("cuMemMap", 1),
        ("cuMemSetAccess", 1),
        ("cuStreamCreate", 1),
        ("cuEventCreate", 2),
        ("cuMemsetD8Async", 1),
        ("cuMemcpyHtoDAsync", 1),
        ("cuEventRecord", 2),
        ("cuEventQuery", 2),
        ("cuCtxSetCurrent", 12),
    ];
    for (call, nth) in calls {
        let fake = Fake::new(&format!("{call} 719 {nth}\n"));
        let device = fake.open();
        let result = Ring::new(&device, 2, 65536).and_then(|mut ring| {
            load(
                &snapshot,
                &device,
                &mut ring,
                &Cancel::default(),
                Options::default(),
            )
            .map(|_| ())
        });
        assert_eq!(code(result), 719, "{call}");
        for what in [
            "streams",
            "events",
            "reservations",
            "mappings",
            "allocations",
        ] {
            assert_eq!(fake.state(what), 0, "{call}: {what}");
        }
        drop(device);
        // A buffer that the device may still write to is given up, and with it its pin.
        if !call.starts_with("cuEvent") {
            assert_eq!(
                (fake.state("pins"), fake.state("contexts")),
                (0, 0),
                "{call}"
            );
        }
    }
}

#[test]
fn an_opening_that_fails_half_way_keeps_no_context() {
    let calls = [
        "cuInit",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuDeviceGetName",
        "cuDeviceGetUuid",
        "cuDeviceTotalMem",
        "cuDeviceGetAttribute",
        "cuMemGetAllocationGranularity",
    ];
    for call in calls {
        let fake = Fake::new(&format!("{call} 100 1\n"));
        assert_eq!(code(CudaDevice::open_with(fake.path(), 1)), 100, "{call}");
        assert_eq!(fake.state("contexts"), 0, "{call}");
    }
    let fake = Fake::new("missing-cuMemCreate 1 0\n");
    let error = CudaDevice::open_with(fake.path(), 0).unwrap_err();
    assert!(error.to_string().contains("has no cuMemCreate"), "{error}");
}

fn submit(queue: &dyn CopyQueue, kind: WorkKind, va: Va, tag: u64) {
    let buffer = Some(HostBuffer::new(4096).unwrap());
    queue
        .submit(Work {
            kind,
            va,
            len: 4096,
            tag,
            buffer,
        })
        .map_err(|(error, _)| error)
        .unwrap();
}

#[test]
fn a_copy_that_never_ends_times_out_and_its_buffer_stays() {
    let fake = Fake::new("cuEventQuery 600 0\n");
    let device = fake.open();
    let va = device.reserve(GRANULARITY, None).unwrap();
    let phys = device.create(1, false).unwrap();
    device.map(va, &phys, Access::ReadWrite).unwrap();
    let queue = device.open_queue(1).unwrap();
    assert!(queue.reap(Duration::ZERO).is_none());
    submit(&*queue, WorkKind::ToHost, va, 7);
    let full = Work {
        kind: WorkKind::Zero,
        va,
        len: 4096,
        tag: 8,
        buffer: None,
    };
    assert!(
        queue
            .submit(full)
            .unwrap_err()
            .0
            .to_string()
            .contains("1 pieces")
    );
    assert!(queue.reap(Duration::from_millis(5)).is_none());
    fake.set_faults("");
    let completion = queue.reap(WAIT).unwrap();
    assert!(completion.result.is_ok() && completion.buffer.is_some() && completion.tag == 7);
    submit(&*queue, WorkKind::ToDevice, va, 8);
    drop(queue);
    assert_eq!((fake.state("streams"), fake.state("events")), (0, 0));
}

#[test]
fn a_process_goes_through_the_drivers_states() {
    let fake = Fake::new("");
    let device = fake.open();
    assert_eq!(device.restore_layout(), RestoreLayout::Pairs);
    assert_eq!(device.proc_state(PID).unwrap(), ProcState::Running);
    assert_eq!(code(device.proc_checkpoint(PID)), 401);
    device.proc_lock(PID, Duration::from_micros(1)).unwrap();
    assert_eq!(fake.state("lock_timeout"), 1, "0 would wait for ever");
    device.proc_checkpoint(PID).unwrap();
    assert_eq!(device.proc_state(PID).unwrap(), ProcState::Checkpointed);
    let pair = |new| GpuPair {
        old: [1; 16],
        new: [new; 16],
    };
    device.proc_restore(PID, &[pair(2), pair(3)]).unwrap();
    assert_eq!((fake.state("pairs"), fake.state("pair_new")), (2, 3));
    device.proc_unlock(PID).unwrap();
    assert_eq!(device.proc_state(PID).unwrap(), ProcState::Running);
    assert_eq!(code(device.proc_state(1)), 1);
}

#[test]
fn the_drivers_refusals_keep_their_codes() {
    let fake = Fake::new(
        "cuCheckpointProcessLock 600 1\ncuCheckpointProcessRestore 2 1\n\
         cuCheckpointProcessRestore 304 2\n",
    );
    let device = fake.open();
    assert_eq!(code(device.proc_lock(PID, WAIT)), 600);
    device.proc_lock(PID, WAIT).unwrap();
    device.proc_checkpoint(PID).unwrap();
    assert_eq!(code(device.proc_restore(PID, &[])), 2);
    assert_eq!(code(device.proc_restore(PID, &[])), 304);
    fake.set_faults("state 3 0\n");
    assert_eq!(device.proc_state(PID).unwrap(), ProcState::Failed);
    fake.set_faults("state 5 0\n");
    assert_eq!(code(device.proc_state(PID)), 600);
}

#[test]
fn older_and_newer_drivers_get_the_arguments_they_know() {
    let pair = GpuPair {
        old: [1; 16],
        new: [2; 16],
    };
    let cycle = |device: &CudaDevice, pairs: &[GpuPair]| {
        device.proc_lock(PID, WAIT).unwrap();
        device.proc_checkpoint(PID).unwrap();
        device.proc_restore(PID, pairs)
    };
    let old = Fake::new("version 12080 0\n");
    let device = old.open();
    assert_eq!(device.restore_layout(), RestoreLayout::Reserved);
    assert_eq!(code(cycle(&device, &[pair])), 801);
    device.proc_restore(PID, &[]).unwrap();
    let new = Fake::new("version 13040 0\n");
    let device = new.open();
    assert_eq!(device.restore_layout(), RestoreLayout::Storage);
    cycle(&device, &[pair]).unwrap();
    assert_eq!(new.state("pairs"), 1);
    let hidden = Fake::new("version 13040 0\nmissing-cuCheckpointOperationComplete 1 0\n");
    assert_eq!(hidden.open().restore_layout(), RestoreLayout::Pairs);
    let ancient = Fake::new("version 12040 0\n");
    let device = ancient.open();
    assert_eq!(code(device.proc_state(PID)), 801);
    assert_eq!(code(device.proc_lock(PID, WAIT)), 801);
    assert_eq!(code(device.proc_checkpoint(PID)), 801);
    assert_eq!(code(device.proc_restore(PID, &[])), 801);
    assert_eq!(code(device.proc_unlock(PID)), 801);
}

#[test]
fn what_a_device_costs_can_be_measured_and_leaves_nothing() {
    let fake = Fake::new("");
    let device = fake.open();
    let unit = GRANULARITY as usize;
    measure::pin(&device, 4 * unit, unit).unwrap();
    let copies = measure::copies(&device, 3, unit).unwrap();
    assert!(copies.to_device > Duration::ZERO && copies.to_host > Duration::ZERO);
    measure::mapping(&device, 4 * GRANULARITY).unwrap();
    for fault in [
        "cuMemMap 2 0",
        "cuMemAddressReserve 2 0",
        "cuMemHostRegister 2 0",
    ] {
        fake.set_faults(fault);
        let failed = measure::mapping(&device, GRANULARITY).is_err()
            || measure::pin(&device, 2 * unit, unit).is_err();
        assert!(failed, "{fault}");
    }
    fake.set_faults("cuMemcpyHtoDAsync 700 0");
    assert!(measure::copies(&device, 2, unit).is_err());
    fake.set_faults("");
    for what in [
        "reservations",
        "mappings",
        "allocations",
        "pins",
        "streams",
        "events",
    ] {
        assert_eq!(fake.state(what), 0, "{what}");
    }
}
