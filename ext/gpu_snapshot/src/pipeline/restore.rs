//! The restore engine: reader threads fill and check slots, the device's queue empties them.
//! It must never report success unless every chunk was checked and copied.

use super::batch;
use super::plan::Plan;
use super::ring::{Cancel, Ring};
use crate::buffer::HostBuffer;
use crate::device::{Completion, CopyQueue, Device, Va, Work, WorkKind};
use crate::error::BadChunk;
use crate::image::Snapshot;
use crate::{Error, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where a region goes: device memory that is mapped there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The region.
    pub region_id: u32,
    /// Its first byte's address.
    pub va: Va,
}

/// Who asks the kernel for a snapshot's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Threads that call `pread`: works everywhere.
    #[default]
    Pread,
    /// One thread with io_uring: deeper queues, fewer system calls. Where the kernel refuses it,
    /// or a segment has no descriptor, `Pread` does the work; the report tells.
    Uring,
}

/// How a job runs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that read and check; each has at most one read under way. For `Pread`.
    pub readers: usize,
    /// Who reads.
    pub backend: Backend,
    /// How long a single copy may take before the device counts as hung.
    pub copy_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            readers: 5,
            backend: Backend::default(),
            copy_timeout: Duration::from_secs(10),
        }
    }
}

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Chunks restored, zero and repeated ones included.
    pub chunks: u64,
    /// Reads from the disk.
    pub reads: u64,
    /// System calls for them.
    pub read_calls: u64,
    /// Who made them.
    pub backend: Backend,
    /// Bytes read from the disk.
    pub bytes_read: u64,
    /// Bytes copied to the device.
    pub bytes_copied: u64,
    /// Bytes zeroed on the device.
    pub bytes_zeroed: u64,
    /// Whether the reads went past the page cache.
    pub direct: bool,
    /// From the call to the first finished copy.
    pub first_copy: Duration,
    /// From the call to its end.
    pub elapsed: Duration,
}

/// The system calls that a sound chunk took, or why it is bad.
pub(super) type Checked = std::result::Result<u64, String>;

pub(super) struct State<'a> {
    pub(super) free: &'a mut Vec<HostBuffer>,
    /// Copies given to the queue.
    pub(super) in_flight: usize,
    /// Reads whose chunks are neither copied nor found bad.
    left: usize,
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
    /// Index of the next read in the plan.
    pub(super) next: AtomicUsize,
    state: Mutex<State<'a>>,
    /// A slot came back, or everything stops.
    slot_free: Condvar,
    /// A copy was submitted, a read is done with, or everything stops.
    progress: Condvar,
}

impl<'a> Engine<'a> {
    pub(super) fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stop(&self, state: &mut State<'_>, why: Error) {
        state.fatal.get_or_insert(why);
        self.slot_free.notify_all();
        self.progress.notify_all();
    }

    /// A reader's life: take a read, take a slot, fill it, check it, hand it to the device.
    fn read_all(&self) {
        while let Some(first) = self
            .plan
            .reads
            .get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            if self.cancel.is_cancelled() {
                self.stop(&mut self.lock(), Error::Cancelled);
            }
            let Some(mut slot) = self.take_slot() else {
                return;
            };
            let record = self.plan.steps[*first].record;
            let read = self.snapshot.read_chunk(record, slot.bytes_mut());
            self.hand_on(*first, slot, read);
        }
    }

    /// A read has ended: its chunk goes to the device, or is noted as bad.
    pub(super) fn hand_on(&self, first: usize, slot: HostBuffer, read: Checked) {
        let mut state = self.lock();
        match read {
            Ok(calls) => state.read_calls += calls,
            Err(why) => self.report_bad(&mut state, first, &why),
        }
        if state.bad.is_empty() && state.fatal.is_none() {
            self.submit(&mut state, first, slot);
        } else {
            self.finish_read(&mut state, slot);
        }
    }

    /// `None` when everything stops.
    fn take_slot(&self) -> Option<HostBuffer> {
        let none = |state: &mut State<'_>| state.free.is_empty() && state.fatal.is_none();
        let waited = self.slot_free.wait_while(self.lock(), none);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.fatal.is_some() {
            None
        } else {
            state.free.pop()
        }
    }

    /// Every chunk that shares the bytes is bad.
    fn report_bad(&self, state: &mut State<'_>, first: usize, why: &str) {
        for step in &self.plan.steps[first..] {
            state
                .bad
                .push(self.snapshot.bad_chunk(step.record, why.to_owned()));
            if !step.more {
                return;
            }
        }
    }

    fn submit(&self, state: &mut State<'_>, index: usize, slot: HostBuffer) {
        let step = &self.plan.steps[index];
        let (kind, tag) = (WorkKind::ToDevice, index as u64);
        let work = Work {
            kind,
            va: step.va,
            len: step.len,
            tag,
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

    fn finish_read(&self, state: &mut State<'_>, slot: HostBuffer) {
        state.free.push(slot);
        state.left -= 1;
        self.slot_free.notify_one();
        self.progress.notify_one();
    }

    /// The calling thread's part: takes finished copies in until nothing is left or all stops.
    fn reap_all(&self, timeout: Duration) {
        loop {
            let idle = |state: &mut State<'_>| {
                state.in_flight == 0 && state.left > 0 && state.fatal.is_none()
            };
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
        let index = completion.tag as usize;
        if let Err(why) = completion.result {
            state.free.extend(completion.buffer);
            return self.stop(&mut state, why);
        }
        let Some(slot) = completion.buffer else {
            let why = Error::Invalid("the queue lost a buffer".into());
            return self.stop(&mut state, why);
        };
        if self.plan.steps[index].more && state.fatal.is_none() {
            self.submit(&mut state, index + 1, slot);
        } else {
            self.finish_read(&mut state, slot);
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
    let plan = Plan::new(snapshot, placements)?;
    let depth = ring.usable();
    let queue = device.open_queue(depth)?;
    zero(&*queue, depth, &plan, options.copy_timeout)?;
    let state = State {
        free: &mut ring.free,
        in_flight: 0,
        left: plan.reads.len(),
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
        next: AtomicUsize::new(0),
        state: Mutex::new(state),
        slot_free: Condvar::new(),
        progress: Condvar::new(),
    };
    let reads = match options.backend {
        Backend::Uring => batch::open(&engine, depth),
        Backend::Pread => None,
    };
    let backend = reads.as_ref().map_or(Backend::Pread, |_| Backend::Uring);
    match reads {
        Some(reads) => batch::read_all(&engine, reads, options.copy_timeout),
        None => read_with_threads(&engine, depth, options),
    }
    let state = engine
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    finish(snapshot, &plan, placements, state, backend, started)
}

fn read_with_threads(engine: &Engine<'_>, depth: usize, options: Options) {
    std::thread::scope(|scope| {
        let readers = options.readers.clamp(1, depth).min(engine.plan.reads.len());
        for _ in 0..readers {
            scope.spawn(|| engine.read_all());
        }
        engine.reap_all(options.copy_timeout);
    });
}

/// The outcome: what was wrong, or the figures.
fn finish(
    snapshot: &Snapshot,
    plan: &Plan,
    placements: &[Placement],
    state: State<'_>,
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
