//! The restore engine: reader threads fill and check slots, the device's queue empties them.
//! It must never report success unless every chunk was checked and copied.

use super::batch;
use super::gather::Gather;
use super::options::{Backend, Options, Placement, Report};
use super::plan::{Part, Plan};
use super::ring::{Cancel, Ring};
use crate::buffer::HostBuffer;
use crate::device::{Completion, CopyQueue, Device, Work, WorkKind};
use crate::error::BadChunk;
use crate::image::{PartRead, Snapshot};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What came of reading a part, or why it could not be read.
pub(super) type Came = std::result::Result<PartRead, String>;

pub(super) struct State {
    /// Parts of the ring that nobody uses; the one that has rested longest is used next. Memory
    /// that was checked a moment ago is still in this processor's cache, and a disk, or the host
    /// of a virtual machine, that writes there has to take it from the cache first: on the
    /// measured machine reads into such memory took up to twice as long.
    pub(super) free: VecDeque<HostBuffer>,
    /// Index of the next part to read.
    next: usize,
    /// Copies given to the queue.
    pub(super) in_flight: usize,
    /// Parts that are neither copied nor found bad.
    left: usize,
    gather: Gather,
    pub(super) bad: Vec<BadChunk>,
    /// Why everything stops; the first reason wins.
    pub(super) fatal: Option<Error>,
    pub(super) read_calls: u64,
    first_copy: Option<Duration>,
}

pub(super) struct Engine<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) plan: &'a Plan,
    pub(super) queue: &'a dyn CopyQueue,
    pub(super) cancel: &'a Cancel,
    started: Instant,
    state: Mutex<State>,
    /// A slot came back, or everything stops.
    slot_free: Condvar,
    /// A copy was submitted, a read is done with, or everything stops.
    progress: Condvar,
}

impl<'a> Engine<'a> {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self, state: &mut State, why: Error) {
        state.fatal.get_or_insert(why);
        self.slot_free.notify_all();
        self.progress.notify_all();
    }

    /// A reader's life: take a slot and a part to read, fill it, check it, hand it on.
    fn read_all(&self) {
        loop {
            let none = |state: &mut State| {
                state.free.is_empty() && state.fatal.is_none() && self.is_left(state)
            };
            let waited = self.slot_free.wait_while(self.lock(), none);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner);
            let Some((part, mut slot)) = self.take_part(&mut state) else {
                return;
            };
            drop(state);
            let Part { offset, len, .. } = self.plan.parts[part];
            let bytes = &mut slot.bytes_mut()[..len];
            let record = self.plan.record_of(part);
            let read = self.snapshot.read_part(record, offset, bytes, 0);
            self.hand_on(part, slot, read);
        }
    }

    fn is_left(&self, state: &State) -> bool {
        state.next < self.plan.parts.len()
    }

    /// The next part to read and a slot for it; `None` when there is none, or everything stops.
    /// Both at once: so parts get slots in the order of the disk, and a chunk that has begun is
    /// never short of slots for ever.
    pub(super) fn take_part(&self, state: &mut State) -> Option<(usize, HostBuffer)> {
        if self.cancel.is_cancelled() {
            self.stop(state, Error::Cancelled);
        }
        if state.fatal.is_some() || !self.is_left(state) {
            return None;
        }
        let slot = state.free.pop_front()?;
        let part = state.next;
        state.next += 1;
        if !self.is_left(state) {
            // Nobody has to wait for a slot any more.
            self.slot_free.notify_all();
        }
        Some((part, slot))
    }

    /// A part was read. With the last one of a chunk, the chunk goes to the device or is bad.
    pub(super) fn hand_on(&self, part: usize, slot: HostBuffer, read: Came) {
        let mut state = self.lock();
        let state = &mut *state;
        state.read_calls += read.as_ref().map_or(0, |read| read.calls);
        let checksum = read.map(|read| read.crc);
        if !state.gather.put(self.plan, part, slot, checksum) {
            return;
        }
        let read = self.plan.parts[part].read;
        if let Err(why) = state.gather.judge(self.snapshot, self.plan, read) {
            self.report_bad(state, self.plan.reads[read], &why);
        }
        for part in self.plan.parts_of(read) {
            let Some(slot) = state.gather.take(part) else {
                continue;
            };
            if state.bad.is_empty() && state.fatal.is_none() {
                self.submit(state, self.plan.reads[read], part, slot);
            } else {
                self.finish_part(state, slot);
            }
        }
    }

    /// Every chunk that shares the bytes is bad.
    fn report_bad(&self, state: &mut State, first: usize, why: &str) {
        for step in &self.plan.steps[first..] {
            state
                .bad
                .push(self.snapshot.bad_chunk(step.record, why.to_owned()));
            if !step.more {
                return;
            }
        }
    }

    fn submit(&self, state: &mut State, step: usize, part: usize, slot: HostBuffer) {
        let (va, len) = self.plan.target(step, part);
        if len == 0 {
            return self.finish_part(state, slot);
        }
        let work = Work {
            kind: WorkKind::ToDevice,
            va,
            len,
            tag: (step as u64) << 32 | part as u64,
            buffer: Some(slot),
        };
        match self.queue.submit(work) {
            Ok(()) => state.in_flight += 1,
            Err((why, slot)) => {
                state.free.extend(slot);
                self.stop(state, why);
            }
        }
        self.progress.notify_one();
    }

    fn finish_part(&self, state: &mut State, slot: HostBuffer) {
        state.free.push_back(slot);
        state.left -= 1;
        self.slot_free.notify_one();
        self.progress.notify_one();
    }

    /// The calling thread's part: takes finished copies in until nothing is left or all stops.
    fn reap_all(&self, timeout: Duration) {
        loop {
            let idle =
                |state: &mut State| state.in_flight == 0 && state.left > 0 && state.fatal.is_none();
            let waited = self.progress.wait_while(self.lock(), idle);
            let state = waited.unwrap_or_else(PoisonError::into_inner);
            let in_flight = state.in_flight;
            drop(state);
            if in_flight == 0 || !self.reap_one(timeout) {
                return;
            }
        }
    }

    /// Waits for the oldest copy; false, and all stops, when the device hangs.
    pub(super) fn reap_one(&self, timeout: Duration) -> bool {
        let completion = self.queue.reap(timeout);
        match completion {
            Some(completion) => self.take_in(completion),
            None => {
                let why = Error::Timeout(format!("no copy finished in {timeout:?}"));
                self.stop(&mut self.lock(), why);
                return false;
            }
        }
        true
    }

    pub(super) fn take_in(&self, completion: Completion) {
        let mut state = self.lock();
        state.in_flight -= 1;
        state.first_copy.get_or_insert(self.started.elapsed());
        let (step, part) = (completion.tag >> 32, completion.tag & u64::from(u32::MAX));
        let (step, part) = (step as usize, part as usize);
        if let Err(why) = completion.result {
            state.free.extend(completion.buffer);
            return self.stop(&mut state, why);
        }
        let Some(slot) = completion.buffer else {
            let why = Error::Invalid("the queue lost a buffer".into());
            return self.stop(&mut state, why);
        };
        if self.plan.steps[step].more && state.fatal.is_none() {
            self.submit(&mut state, step + 1, part, slot);
        } else {
            self.finish_part(&mut state, slot);
        }
    }
}

/// Zeroes ranges, as many at once as the queue holds.
fn zero(queue: &dyn CopyQueue, depth: usize, plan: &Plan, timeout: Duration) -> Result<()> {
    let reap = || match queue.reap(timeout) {
        Some(completion) => completion.result,
        None => Err(Error::Timeout(format!(
            "no memory was zeroed in {timeout:?}"
        ))),
    };
    for (index, (va, len)) in plan.zeros.iter().enumerate() {
        if index >= depth {
            reap()?;
        }
        let kind = WorkKind::Zero;
        let work = Work {
            kind,
            va: *va,
            len: *len,
            tag: index as u64,
            buffer: None,
        };
        queue.submit(work).map_err(|(error, _)| error)?;
    }
    (0..plan.zeros.len().min(depth)).try_for_each(|_| reap())
}

/// Restores the placed regions. A bad chunk does not stop the reading: the error names all of
/// them, and no further bytes are copied. After any error the target memory is of no use.
pub fn restore(
    snapshot: &Snapshot,
    device: &dyn Device,
    ring: &mut Ring,
    placements: &[Placement],
    cancel: &Cancel,
    options: Options,
) -> Result<Report> {
    let started = Instant::now();
    ring.check(snapshot.slot_len())?;
    let part_len = ring.part_len(options.part_len);
    let plan = Plan::new(snapshot, placements, part_len)?;
    let depth = ring.usable() * (ring.slot_len() / part_len);
    let queue = device.open_queue(depth)?;
    zero(&*queue, depth, &plan, options.copy_timeout)?;
    let state = State {
        free: ring.lend(part_len).into(),
        next: 0,
        in_flight: 0,
        left: plan.parts.len(),
        gather: Gather::new(&plan),
        bad: Vec::new(),
        fatal: None,
        read_calls: 0,
        first_copy: None,
    };
    let engine = Engine {
        snapshot,
        plan: &plan,
        queue: &*queue,
        cancel,
        started,
        state: Mutex::new(state),
        slot_free: Condvar::new(),
        progress: Condvar::new(),
    };
    let readers = options.readers.clamp(1, depth).min(plan.parts.len());
    let reads = match options.backend {
        Backend::Uring => batch::open(&engine, readers),
        Backend::Pread => None,
    };
    let backend = reads.as_ref().map_or(Backend::Pread, |_| Backend::Uring);
    match reads {
        Some(reads) => batch::read_all(&engine, reads, options.copy_timeout),
        None => read_with_threads(&engine, readers, options.copy_timeout),
    }
    let state = engine.state.into_inner();
    let mut state = state.unwrap_or_else(PoisonError::into_inner);
    let free = std::mem::take(&mut state.free).into_iter();
    ring.take_back(free.chain(state.gather.take_rest()).collect());
    finish(snapshot, &plan, placements, state, backend, started)
}

fn read_with_threads(engine: &Engine<'_>, readers: usize, copy_timeout: Duration) {
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| engine.read_all());
        }
        engine.reap_all(copy_timeout);
    });
}

/// The outcome: what was wrong, or the figures.
fn finish(
    snapshot: &Snapshot,
    plan: &Plan,
    placements: &[Placement],
    state: State,
    backend: Backend,
    started: Instant,
) -> Result<Report> {
    let (first_copy, fatal, mut bad) = (state.first_copy, state.fatal, state.bad);
    if !bad.is_empty() {
        bad.sort_by_key(|bad| bad.index);
        return Err(Error::BadChunks(bad));
    }
    if let Some(fatal) = fatal {
        return Err(fatal);
    }
    let stored =
        |index: &usize| u64::from(snapshot.records()[plan.steps[*index].record].stored_len);
    let chunks = |id: u32| {
        snapshot
            .manifest()
            .region(id)
            .map_or(0, |region| region.chunks())
    };
    Ok(Report {
        chunks: placements
            .iter()
            .map(|placement| chunks(placement.region_id))
            .sum(),
        reads: plan.reads.len() as u64,
        read_calls: state.read_calls,
        backend,
        bytes_read: plan.reads.iter().map(stored).sum(),
        bytes_copied: plan.steps.iter().map(|step| step.len).sum(),
        bytes_zeroed: plan.zeros.iter().map(|(_, len)| len).sum(),
        direct: snapshot.direct(),
        first_copy: first_copy.unwrap_or_default(),
        elapsed: started.elapsed(),
    })
}
