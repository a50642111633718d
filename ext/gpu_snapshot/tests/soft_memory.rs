//! The memory of the simulated GPU: limits, mappings, addresses, sharing.
//! It must never need more RAM than a few pages.

use gpu_snapshot::Error;
use gpu_snapshot::buffer::HostBuffer;
use gpu_snapshot::device::{Access, Device, GRANULARITY, Va, Work, WorkKind};
use gpu_snapshot::soft::SoftDevice;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

fn device() -> SoftDevice {
    SoftDevice::new(4 * GRANULARITY).unwrap()
}

#[test]
fn memory_is_rounded_counted_and_limited() {
    let device = device();
    let small = device.create(1, false).unwrap();
    assert_eq!((small.len(), device.used()), (GRANULARITY, GRANULARITY));
    let refused = device.create(4 * GRANULARITY, false).unwrap_err();
    assert!(matches!(refused, Error::OutOfMemory { free, .. } if free == 3 * GRANULARITY));
    device.release(small).unwrap();
    assert_eq!(device.used(), 0);
    assert!(device.create(0, false).is_err());
    assert!(device.create(u64::MAX, false).is_err());
}

#[test]
fn a_mapping_keeps_released_memory_alive() {
    let device = device();
    let va = device.reserve(2 * GRANULARITY, None).unwrap();
    let phys = device.create(2 * GRANULARITY, false).unwrap();
    device.map(va, &phys, Access::ReadWrite).unwrap();
    assert!(device.map(va, &phys, Access::ReadWrite).is_err());
    device.release(phys).unwrap();
    assert_eq!(device.used(), 2 * GRANULARITY);
    assert!(device.unreserve(va, 2 * GRANULARITY).is_err());
    assert!(device.unmap(va, GRANULARITY).is_err());
    device.unmap(va, 2 * GRANULARITY).unwrap();
    device.unreserve(va, 2 * GRANULARITY).unwrap();
    assert_eq!(device.used(), 0);
}

#[test]
fn addresses_are_kept_apart_and_hints_are_honoured() {
    let device = device();
    let first = device.reserve(GRANULARITY, None).unwrap();
    let second = device.reserve(GRANULARITY, Some(first)).unwrap();
    assert_ne!(first, second);
    let hint = Va(first.0 + 64 * GRANULARITY);
    assert_eq!(device.reserve(GRANULARITY, Some(hint)).unwrap(), hint);
    let phys = device.create(2 * GRANULARITY, false).unwrap();
    assert!(device.map(first, &phys, Access::Read).is_err());
}

#[test]
fn exported_memory_comes_back_as_the_same_memory() {
    let device = device();
    let private = device.create(1, false).unwrap();
    assert!(device.export(&private).is_err());
    let shared = device.create(1, true).unwrap();
    let fd = device.export(&shared).unwrap();
    let again = device.import(fd.as_fd(), GRANULARITY).unwrap();
    assert_eq!(device.used(), 2 * GRANULARITY);
    let other = SoftDevice::new(GRANULARITY).unwrap();
    let foreign = other.import(fd.as_fd(), GRANULARITY).unwrap();
    assert_eq!((other.used(), foreign.len()), (GRANULARITY, GRANULARITY));
    device.release(shared).unwrap();
    device.release(again).unwrap();
    assert_eq!(device.used(), GRANULARITY);
}

#[test]
fn memory_that_somebody_could_cut_is_not_imported() {
    let device = device();
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    assert!(device.import(file.as_fd(), GRANULARITY).is_err());
    let shared = device.create(1, true).unwrap();
    let fd = device.export(&shared).unwrap();
    assert!(device.import(fd.as_fd(), 2 * GRANULARITY).is_err());
    let cut = std::fs::File::from(fd).set_len(0).unwrap_err();
    assert_eq!(cut.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn bytes_read_the_same_however_they_were_written() {
    let device = device();
    let va = device.reserve(2 * GRANULARITY, None).unwrap();
    let phys = device.create(2 * GRANULARITY, false).unwrap();
    device.map(va, &phys, Access::ReadWrite).unwrap();
    let queue = device.open_queue(1).unwrap();
    let run = |kind, at: u64, len: u64, fill: u8| -> Vec<u8> {
        let mut buffer = HostBuffer::new(2 * GRANULARITY as usize).unwrap();
        buffer.bytes_mut().fill(fill);
        let work = Work {
            kind,
            va: Va(va.0 + at),
            len,
            tag: 0,
            buffer: Some(buffer),
        };
        queue.submit(work).map_err(|(error, _)| error).unwrap();
        let done = queue.reap(Duration::from_secs(30)).unwrap();
        done.result.unwrap();
        done.buffer.unwrap().bytes()[..len as usize].to_vec()
    };
    let mut model = vec![0u8; 2 * GRANULARITY as usize];
    // New pages, the same pages again, zeroed pages, and an odd range over both units.
    let (all, odd) = (2 * GRANULARITY, (GRANULARITY - 4097, 9000));
    for (kind, (at, len), fill) in [
        (WorkKind::ToDevice, odd, 1),
        (WorkKind::ToDevice, (0, all), 2),
        (WorkKind::ToDevice, odd, 3),
        (WorkKind::Zero, (GRANULARITY, 4096), 0),
        (WorkKind::ToDevice, (GRANULARITY + 10, 4096), 4),
        (WorkKind::ToDevice, (0, all), 5),
        (WorkKind::ToDevice, odd, 6),
        (WorkKind::Zero, odd, 0),
    ] {
        run(kind, at, len, fill);
        model[at as usize..(at + len) as usize].fill(fill);
        assert!(
            run(WorkKind::ToHost, 0, all, 9) == model,
            "{kind:?} of {len} at {at}"
        );
    }
}
