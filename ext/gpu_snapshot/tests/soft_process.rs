//! The simulated driver's checkpoint states, its copy queues and its faults.
//! It must never let an order pass that the real driver refuses.

use gpu_snapshot::Error;
use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::device::{
    Access, Device, GRANULARITY, GpuPair, ProcState, ProcessControl, Work, WorkKind,
};
use gpu_snapshot::soft::{Fault, SoftConfig, SoftDevice};
use std::time::{Duration, Instant};

const PID: i32 = 7;
const WAIT: Duration = Duration::from_secs(30);

fn device(faults: &[&str]) -> SoftDevice {
    let faults = faults.iter().map(|name| name.parse().unwrap()).collect();
    let config = SoftConfig {
        capacity: 4 * GRANULARITY,
        faults,
        ..SoftConfig::default()
    };
    let device = SoftDevice::with_config(config).unwrap();
    device.process_start(PID, 3 * GRANULARITY).unwrap();
    device
}

fn code(result: gpu_snapshot::Result<()>) -> i32 {
    match result {
        Err(Error::Device { code, .. }) => code,
        other => panic!("no device error: {other:?}"),
    }
}

#[test]
fn a_process_gives_its_memory_away_and_takes_it_back() {
    let device = device(&[]);
    assert_eq!(device.used(), 3 * GRANULARITY);
    assert_eq!(code(device.proc_checkpoint(PID)), 401);
    device.proc_lock(PID, WAIT).unwrap();
    assert_eq!(code(device.proc_lock(PID, WAIT)), 401);
    device.proc_checkpoint(PID).unwrap();
    assert_eq!(
        (device.used(), device.proc_state(PID).unwrap()),
        (0, ProcState::Checkpointed)
    );
    assert_eq!(code(device.proc_unlock(PID)), 401);
    let uuid = device.info().uuid;
    let foreign = GpuPair {
        old: uuid,
        new: [9; 16],
    };
    assert_eq!(code(device.proc_restore(PID, &[foreign])), 101);
    device
        .proc_restore(
            PID,
            &[GpuPair {
                old: [9; 16],
                new: uuid,
            }],
        )
        .unwrap();
    assert_eq!(
        (device.used(), device.proc_state(PID).unwrap()),
        (3 * GRANULARITY, ProcState::Locked)
    );
    device.proc_unlock(PID).unwrap();
    assert_eq!(device.proc_state(PID).unwrap(), ProcState::Running);
    device.process_end(PID).unwrap();
    assert_eq!(device.used(), 0);
    assert!(device.process_end(PID).is_err());
    assert_eq!(code(device.proc_state(PID).map(|_| ())), 1);
}

#[test]
fn a_full_device_refuses_the_restore_and_it_can_be_tried_again() {
    let device = device(&[]);
    device.proc_lock(PID, WAIT).unwrap();
    device.proc_checkpoint(PID).unwrap();
    let other = device.create(2 * GRANULARITY, false).unwrap();
    assert_eq!(code(device.proc_restore(PID, &[])), 2);
    assert_eq!(device.proc_state(PID).unwrap(), ProcState::Checkpointed);
    device.release(other).unwrap();
    device.proc_restore(PID, &[]).unwrap();
    assert!(device.process_start(8, 2 * GRANULARITY).is_err());
    assert!(device.process_start(PID, 1).is_err());
}

#[test]
fn faults_show_as_the_driver_shows_them() {
    let stuck = device(&["stuck-after-oom"]);
    stuck.proc_lock(PID, WAIT).unwrap();
    stuck.proc_checkpoint(PID).unwrap();
    assert_eq!(code(stuck.proc_restore(PID, &[])), 2);
    assert_eq!(code(stuck.proc_restore(PID, &[])), 304);
    stuck.process_end(PID).unwrap();

    let slow = device(&["lock-timeout"]);
    assert_eq!(code(slow.proc_lock(PID, WAIT)), 600);
    assert_eq!(slow.proc_state(PID).unwrap(), ProcState::Running);

    let failed = device(&["process-failed"]);
    failed.proc_lock(PID, WAIT).unwrap();
    assert_eq!(code(failed.proc_checkpoint(PID)), 304);
    assert_eq!(failed.proc_state(PID).unwrap(), ProcState::Failed);
    assert_eq!(code(failed.proc_unlock(PID)), 401);

    assert_eq!(device(&["wrong-device"]).info().name, "WrongDevice");
    for name in ["", "hang", "hang:x", "stuck-after-oom:1", "unknown"] {
        assert!(name.parse::<Fault>().is_err(), "{name}");
    }
}

fn copy(len: u64, tag: u64, va: gpu_snapshot::device::Va) -> Work {
    let buffer = Some(HostBuffer::new(len as usize).unwrap());
    Work {
        kind: WorkKind::ToDevice,
        va,
        len,
        tag,
        buffer,
    }
}

#[test]
fn a_queue_keeps_order_depth_and_rate() {
    let rate = 10 << 20;
    let capacity = 4 * GRANULARITY;
    let config = SoftConfig {
        capacity,
        bytes_per_second: Some(rate),
        ..SoftConfig::default()
    };
    let device = SoftDevice::with_config(config).unwrap();
    let va = device.reserve(GRANULARITY, None).unwrap();
    let phys = device.create(1, false).unwrap();
    device.map(va, &phys, Access::ReadWrite).unwrap();
    let queue = device.open_queue(2).unwrap();
    assert!(queue.reap(Duration::ZERO).is_none());
    let started = Instant::now();
    queue.submit(copy(1 << 19, 1, va)).unwrap();
    queue.submit(copy(1 << 19, 2, va)).unwrap();
    let (error, buffer) = queue.submit(copy(1 << 19, 3, va)).unwrap_err();
    assert!(error.to_string().contains("2 pieces") && buffer.is_some());
    for tag in [1, 2] {
        let completion = queue.reap(WAIT).unwrap();
        completion.result.unwrap();
        assert_eq!(completion.tag, tag);
    }
    assert!(
        started.elapsed() >= Duration::from_millis(100),
        "1 MiB at 10 MiB/s"
    );
    let short = Work {
        len: 8192,
        ..copy(4096, 4, va)
    };
    assert!(queue.submit(short).is_err());
    assert!(device.open_queue(0).is_err());
}

#[test]
fn a_read_only_mapping_refuses_copies_into_it() {
    let device = SoftDevice::new(4 * GRANULARITY).unwrap();
    let va = device.reserve(GRANULARITY, None).unwrap();
    let phys = device.create(1, false).unwrap();
    device.map(va, &phys, Access::Read).unwrap();
    let queue = device.open_queue(1).unwrap();
    queue.submit(copy(4096, 1, va)).unwrap();
    let refused = queue.reap(WAIT).unwrap().result.unwrap_err();
    assert!(refused.to_string().contains("reading only"), "{refused}");
}
