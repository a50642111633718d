//! The reading half of a restore on io_uring: one thread keeps the disk's queue full.
//! It must never wait for the disk while a slot is free and a read is left.

use super::plan::Part;
use super::restore::Engine;
use crate::Error;
use crate::uring::{Done, ReadQueue};
use std::time::Duration;

/// Reads under way at most: 32 MiB of parts of the usual length.
const IN_FLIGHT_MAX: usize = 8;

/// A queue for as many reads as there are slots; `None` where the kernel or the storage has no
/// place for one.
pub(super) fn open(engine: &Engine<'_>, depth: usize) -> Option<ReadQueue> {
    let reads = &engine.plan.reads;
    let all = reads.iter().all(|first| {
        let record = engine.plan.steps[*first].record;
        engine.snapshot.descriptor(record).is_some()
    });
    if !all {
        return None;
    }
    // A refusal is no failure: the other backend does the same work, and the report says so.
    ReadQueue::new(depth.min(IN_FLIGHT_MAX)).ok()
}

/// Reads, checks and copies until nothing is left or all stops. Half of the reads under way are
/// waited for at once, so that the other half keeps the disk busy while their bytes are checked.
pub(super) fn read_all(engine: &Engine<'_>, mut reads: ReadQueue, timeout: Duration) {
    let mut first = true;
    loop {
        while let Some(completion) = engine.queue.reap(Duration::ZERO) {
            engine.take_in(completion);
        }
        fill(engine, &mut reads);
        if reads.in_flight() == 0 {
            if engine.lock().in_flight == 0 || !engine.reap_one(timeout) {
                break;
            }
            continue;
        }
        // The first chunk goes to the device at once, the others in batches.
        let want = if first {
            1
        } else {
            (reads.in_flight() / 2).max(1)
        };
        first = false;
        if let Err(error) = reads.wait(want) {
            let why = Error::io("io_uring_enter", error);
            engine.stop(&mut engine.lock(), why);
            break;
        }
        while let Some(done) = reads.pop() {
            check(engine, done);
        }
    }
    engine.lock().read_calls += reads.calls();
}

/// Starts reads while there are slots.
fn fill(engine: &Engine<'_>, reads: &mut ReadQueue) {
    while reads.has_room() {
        let mut state = engine.lock();
        let Some((part, slot)) = engine.take_part(&mut state) else {
            return;
        };
        let record = engine.plan.record_of(part);
        let Part { offset, len, .. } = engine.plan.parts[part];
        let at = engine.snapshot.records()[record].seg_off + offset;
        let pushed = match engine.snapshot.descriptor(record) {
            Some(file) => reads.push(file, at, len, part as u64, slot),
            None => Err(slot),
        };
        if let Err(slot) = pushed {
            state.free.push_back(slot);
            let why = Error::Invalid("the read queue is full".into());
            return engine.stop(&mut state, why);
        }
    }
}

fn check(engine: &Engine<'_>, done: Done) {
    let (part, mut slot) = (done.tag as usize, done.buffer);
    let record = engine.plan.record_of(part);
    let Part { offset, len, .. } = engine.plan.parts[part];
    let bytes = &mut slot.bytes_mut()[..len];
    let read = match done.result {
        // A short or interrupted read goes on where it stopped.
        Ok(count) => engine.snapshot.read_part(record, offset, bytes, count),
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
            engine.snapshot.read_part(record, offset, bytes, 0)
        }
        Err(error) => Err(error.to_string()),
    };
    engine.hand_on(part, slot, read);
}
