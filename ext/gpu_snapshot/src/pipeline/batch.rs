//! The reading half of a restore on io_uring: one thread keeps the disk's queue full.
//! It must never wait for the disk while a slot is free and a read is left.

use super::plan::Part;
use super::restore::Engine;
use crate::Error;
use crate::uring::{Done, ReadQueue};
use std::collections::VecDeque;
use std::time::Duration;

/// A queue for `depth` reads at once; `None` where the kernel or the storage has no place for one.
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
    ReadQueue::new(depth).ok()
}

/// Reads, checks and copies until nothing is left or all stops. Half of the reads are waited for
/// at once, and as many are started again before their bytes are checked: some disks, virtual ones
/// above all, tell of reads only when nothing is left to do, and would stand still meanwhile.
pub(super) fn read_all(engine: &Engine<'_>, mut reads: ReadQueue, timeout: Duration) {
    let half = reads.depth() / 2;
    let mut unchecked = VecDeque::new();
    let mut first = true;
    loop {
        while let Some(completion) = engine.queue.reap(Duration::ZERO) {
            engine.take_in(completion);
        }
        // Where there are few slots, what is checked first brings more of them for the next batch.
        let slots = engine.lock().free.len();
        if reads.in_flight() <= half && (slots >= half || unchecked.is_empty()) {
            fill(engine, &mut reads);
        }
        let want = match (unchecked.is_empty(), first) {
            (false, _) => 0,
            // The first chunk goes to the device at once, the others in batches.
            (true, true) => 1,
            (true, false) => reads.in_flight().div_ceil(2),
        };
        if let Err(error) = reads.enter(want) {
            let why = Error::io("io_uring_enter", error);
            engine.stop(&mut engine.lock(), why);
            break;
        }
        while let Some(done) = reads.pop() {
            unchecked.push_back(done);
        }
        if let Some(done) = unchecked.pop_front() {
            first = false;
            check(engine, done);
        } else if reads.in_flight() == 0
            && (engine.lock().in_flight == 0 || !engine.reap_one(timeout))
        {
            break;
        }
    }
    let mut state = engine.lock();
    state.read_calls += reads.calls();
    state
        .free
        .extend(unchecked.into_iter().map(|done| done.buffer));
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
