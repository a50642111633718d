//! A copy queue of SoftDevice: threads, as many as copy engines, that move bytes at its rate.
//! It must never allocate for a piece of work, and never outlive its owner.

use super::Inner;
use super::fault::Fault;
use crate::buffer::HostBuffer;
use crate::device::{Completion, CopyQueue, Work, WorkKind};
use crate::error::code;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    /// Work that no engine has begun, with its number.
    waiting: VecDeque<(u64, Work)>,
    /// Where the engines work: address and length.
    running: Vec<(u64, u64)>,
    /// Work taken in and not yet reaped, in order; `None` while it is not finished.
    finished: VecDeque<Option<Completion>>,
    /// Number of the front of `finished`.
    first: u64,
    stop: bool,
}

impl State {
    /// Whether the next work may begin: not beside one on the same bytes, which would lose order.
    fn ready(&self) -> bool {
        let Some((_, next)) = self.waiting.front() else {
            return false;
        };
        let apart = |(at, len): &(u64, u64)| {
            next.va.0 >= at.saturating_add(*len) || *at >= next.va.0.saturating_add(next.len)
        };
        self.running.iter().all(apart)
    }

    fn finish(&mut self, number: u64, range: (u64, u64), completion: Completion) {
        self.running.retain(|running| *running != range);
        let place = (number - self.first) as usize;
        self.finished[place] = Some(completion);
    }
}

struct Shared {
    state: Mutex<State>,
    depth: usize,
    /// Something to do, or stop.
    work: Condvar,
    /// Something to reap.
    done: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct SoftQueue {
    shared: Arc<Shared>,
    engines: Vec<JoinHandle<()>>,
}

impl SoftQueue {
    pub(super) fn start(device: Arc<Inner>, depth: usize) -> Result<Self> {
        if depth == 0 {
            return Err(Error::Invalid("a queue needs a depth".into()));
        }
        let count = device.config.copy_engines.max(1);
        let state = State {
            waiting: VecDeque::with_capacity(depth),
            running: Vec::with_capacity(count),
            finished: VecDeque::with_capacity(depth),
            ..State::default()
        };
        let shared = Shared {
            state: Mutex::new(state),
            depth,
            work: Condvar::new(),
            done: Condvar::new(),
        };
        // Made before the threads, so that those that run are stopped when one cannot start.
        let mut queue = Self {
            shared: Arc::new(shared),
            engines: Vec::with_capacity(count),
        };
        for _ in 0..count {
            let (device, ours) = (Arc::clone(&device), Arc::clone(&queue.shared));
            let engine = std::thread::Builder::new()
                .name("soft-copy".to_owned())
                .spawn(move || run(&device, &ours))
                .map_err(|error| Error::io("start of a copy thread", error))?;
            queue.engines.push(engine);
        }
        Ok(queue)
    }
}

impl CopyQueue for SoftQueue {
    fn submit(&self, work: Work) -> std::result::Result<(), (Error, Option<HostBuffer>)> {
        let room = work.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        if work.kind != WorkKind::Zero && room < work.len {
            let why = format!("a copy of {} bytes with a buffer of {room}", work.len);
            return Err((Error::Invalid(why), work.buffer));
        }
        let mut state = self.shared.lock();
        if state.finished.len() == self.shared.depth {
            let why = format!("the queue holds {} pieces of work", self.shared.depth);
            return Err((Error::Invalid(why), work.buffer));
        }
        let number = state.first + state.finished.len() as u64;
        state.finished.push_back(None);
        state.waiting.push_back((number, work));
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn reap(&self, timeout: Duration) -> Option<Completion> {
        let pending = |state: &mut State| matches!(state.finished.front(), Some(None));
        let waited = self
            .shared
            .done
            .wait_timeout_while(self.shared.lock(), timeout, pending);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let completion = state.finished.front_mut()?.take()?;
        state.finished.pop_front();
        state.first += 1;
        Some(completion)
    }
}

impl Drop for SoftQueue {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for engine in self.engines.drain(..) {
            if let Err(panic) = engine.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn run(device: &Inner, shared: &Shared) {
    loop {
        let idle = |state: &mut State| !state.ready() && !state.stop;
        let waited = shared.work.wait_while(shared.lock(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.stop {
            return;
        }
        let Some((number, mut work)) = state.waiting.pop_front() else {
            continue;
        };
        let range = (work.va.0, work.len);
        state.running.push(range);
        // Under the lock, so that faults and the device's rate meet the work in order.
        let fault = if work.kind == WorkKind::Zero {
            None
        } else {
            device.faults.copy_fault()
        };
        let until = device.take_copy_time(work.len);
        drop(state);
        if matches!(fault, Some(Fault::Hang(_))) {
            wait_for_stop(shared, None);
            return;
        }
        let result = perform(device, &mut work, fault);
        if wait_for_stop(shared, until) {
            return;
        }
        let Work { tag, buffer, .. } = work;
        let completion = Completion {
            tag,
            buffer,
            result,
        };
        shared.lock().finish(number, range, completion);
        shared.done.notify_all();
        shared.work.notify_all();
    }
}

/// Waits until the time has come (`None`: for ever); true when the queue was stopped meanwhile.
fn wait_for_stop(shared: &Shared, until: Option<Instant>) -> bool {
    let mut state = shared.lock();
    while !state.stop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        state = match left {
            Some(Duration::ZERO) => return false,
            Some(left) => {
                shared
                    .work
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
        };
    }
    true
}

fn perform(device: &Inner, work: &mut Work, fault: Option<Fault>) -> Result<()> {
    let len = if matches!(fault, Some(Fault::ShortCopy(_))) {
        work.len / 2
    } else {
        work.len
    };
    let mut done = 0;
    while done < len {
        let at = work.va.0 + done;
        let write = work.kind != WorkKind::ToHost;
        let (block, offset, left) = device.lock().resolve(at, write)?;
        let count = left.min(len - done);
        let range = done as usize..(done + count) as usize;
        match (work.kind, &mut work.buffer) {
            (WorkKind::ToDevice, Some(buffer)) => block.write(&buffer.bytes()[range], offset)?,
            (WorkKind::ToHost, Some(buffer)) => {
                block.read(&mut buffer.bytes_mut()[range], offset)?
            }
            _ => block.zero(offset, count)?,
        }
        done += count;
    }
    match fault {
        Some(Fault::ShortCopy(_)) => {
            let why = format!("{len} of {} bytes were copied", work.len);
            Err(Error::device("copy", code::INVALID_VALUE, why))
        }
        Some(Fault::FlipBit(_)) => flip_bit(device, work),
        _ => Ok(()),
    }
}

/// Flips the lowest bit of the middle byte where the copy went.
fn flip_bit(device: &Inner, work: &mut Work) -> Result<()> {
    let middle = work.len / 2;
    if let (WorkKind::ToHost, Some(buffer)) = (work.kind, &mut work.buffer) {
        buffer.bytes_mut()[middle as usize] ^= 1;
        return Ok(());
    }
    let (block, offset, _) = device.lock().resolve(work.va.0 + middle, true)?;
    let mut byte = [0];
    block.read(&mut byte, offset)?;
    block.write(&[byte[0] ^ 1], offset)
}
