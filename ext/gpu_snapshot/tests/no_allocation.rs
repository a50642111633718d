//! The restore path allocates nothing for a chunk: ten times the chunks, the same allocations.
//! It must never share its process with another test, because it counts all of them.
#![allow(
    unsafe_code,
    reason = "a counting allocator can only be written with unsafe code"
)]

mod common;

use common::rig::{CHUNK, fixture, options, soft};
use gpu_snapshot::pipeline::{Cancel, DeviceRange, Placement, Ring, restore};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of one restore of so many distinct chunks.
fn allocations(chunks: u64) -> usize {
    let kinds: Vec<u8> = (1..=u8::try_from(chunks).unwrap()).collect();
    let fixture = fixture(&[chunks * u64::from(CHUNK)], &kinds);
    let device = soft(&[]);
    let range = DeviceRange::allocate(&device, chunks * u64::from(CHUNK), None).unwrap();
    let placements = [Placement {
        region_id: 1,
        va: range.va(),
    }];
    let mut ring = Ring::new(&device, 4, CHUNK as usize).unwrap();
    let cancel = Cancel::default();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let report = restore(
        &fixture.snapshot,
        &device,
        &mut ring,
        &placements,
        &cancel,
        options(),
    )
    .unwrap();
    let count = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(report.reads, chunks);
    count
}

#[test]
fn more_chunks_need_no_more_allocations() {
    allocations(1);
    let (few, many) = (allocations(20), allocations(200));
    // The plan's two vectors grow by doubling, a few times more for ten times the chunks.
    assert!(
        many <= few + 12,
        "{few} allocations for 20 chunks, {many} for 200"
    );
}
