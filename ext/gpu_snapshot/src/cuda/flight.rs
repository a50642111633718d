//! Copies under way: a stream, its events, and the buffers that the device may still touch.
//! It must never give a buffer back, nor free it, before the device is done with it.

use super::driver::{Driver, Raw};
use crate::buffer::HostBuffer;
use crate::device::{Completion, CopyQueue, Work, WorkKind};
use crate::error::code;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a waiting thread pauses between two looks: a fraction of one chunk's copy.
const POLL: Duration = Duration::from_micros(20);

/// One piece of work that the device was given.
struct Flight {
    tag: u64,
    event: Raw,
    buffer: Option<HostBuffer>,
}

#[derive(Default)]
struct State {
    flying: VecDeque<Flight>,
    /// Events to be used again.
    events: Vec<Raw>,
}

/// A copy queue: one stream, one event for each piece of work.
pub(super) struct CudaQueue {
    driver: Arc<Driver>,
    stream: Raw,
    depth: usize,
    state: Mutex<State>,
}

impl CudaQueue {
    pub(super) fn open(driver: Arc<Driver>, depth: usize) -> Result<Self> {
        if depth == 0 {
            return Err(Error::Invalid("a queue needs a depth".into()));
        }
        let stream = driver.stream()?;
        let state = State {
            flying: VecDeque::with_capacity(depth),
            events: Vec::with_capacity(depth),
        };
        // Made before the events, so that they are destroyed when one of them fails.
        let queue = Self {
            driver,
            stream,
            depth,
            state: Mutex::new(state),
        };
        for _ in 0..depth {
            let event = queue.driver.event()?;
            queue.lock().events.push(event);
        }
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the work and marks its end by the event.
    fn launch(&self, work: &mut Work, event: Raw) -> std::result::Result<(), Launch> {
        self.driver.enter().map_err(Launch::NotStarted)?;
        let (library, calls) = (&self.driver.library, &self.driver.library.calls);
        let (stream, len) = (self.stream as *mut c_void, work.len as usize);
        let (name, result) = match (work.kind, &mut work.buffer) {
            // SAFETY: the device reads `len` bytes of a buffer that has them (checked by
            // `submit`) and that stays with this queue until its event has come.
            (WorkKind::ToDevice, Some(buffer)) => ("cuMemcpyHtoDAsync", unsafe {
                (calls.copy_to_device)(work.va.0, buffer.bytes().as_ptr().cast(), len, stream)
            }),
            // SAFETY: as above, and nobody reads or writes the buffer meanwhile.
            (WorkKind::ToHost, Some(buffer)) => ("cuMemcpyDtoHAsync", unsafe {
                (calls.copy_to_host)(
                    buffer.bytes_mut().as_mut_ptr().cast(),
                    work.va.0,
                    len,
                    stream,
                )
            }),
            // SAFETY: device memory inside an own reservation only.
            _ => ("cuMemsetD8Async", unsafe {
                (calls.fill)(work.va.0, 0, len, stream)
            }),
        };
        library.check(name, result).map_err(Launch::NotStarted)?;
        // SAFETY: an event and a stream of this queue.
        let result = unsafe { (calls.event_record)(event as *mut c_void, stream) };
        library
            .check("cuEventRecord", result)
            .map_err(Launch::Started)
    }

    /// Whether the device is done; an error is the work's own or an earlier one of the device.
    fn arrived(&self, event: Raw) -> Result<bool> {
        self.driver.enter()?;
        // SAFETY: an event of this queue that was recorded.
        let result = unsafe { (self.driver.library.calls.event_query)(event as *mut c_void) };
        match self.driver.library.check("cuEventQuery", result) {
            Err(Error::Device {
                code: code::NOT_READY,
                ..
            }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The oldest flight, when it is done.
    fn try_reap(&self) -> Option<Option<Completion>> {
        let mut state = self.lock();
        let event = state.flying.front().map(|flight| flight.event);
        let arrived = match event {
            None => return Some(None),
            Some(event) => self.arrived(event),
        };
        if matches!(arrived, Ok(false)) {
            return None;
        }
        let Flight { tag, event, buffer } = state.flying.pop_front()?;
        state.events.push(event);
        Some(Some(match arrived {
            Ok(_) => Completion {
                tag,
                buffer,
                result: Ok(()),
            },
            // A broken device may still write: the buffer is given up, not freed.
            Err(error) => {
                std::mem::forget(buffer);
                Completion {
                    tag,
                    buffer: None,
                    result: Err(error),
                }
            }
        }))
    }
}

/// Why a launch failed, and whether the device may touch the buffer nevertheless.
enum Launch {
    NotStarted(Error),
    Started(Error),
}

impl CopyQueue for CudaQueue {
    fn submit(&self, mut work: Work) -> std::result::Result<(), (Error, Option<HostBuffer>)> {
        let room = work.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        if work.kind != WorkKind::Zero && room < work.len {
            let why = format!("a copy of {} bytes with a buffer of {room}", work.len);
            return Err((Error::Invalid(why), work.buffer));
        }
        if let Err(error) = self.driver.check_range(work.va, work.len) {
            return Err((error, work.buffer));
        }
        let mut state = self.lock();
        let Some(event) = state.events.pop() else {
            let why = format!("the queue holds {} pieces of work", self.depth);
            return Err((Error::Invalid(why), work.buffer));
        };
        match self.launch(&mut work, event) {
            Ok(()) => {
                let Work { tag, buffer, .. } = work;
                state.flying.push_back(Flight { tag, event, buffer });
                Ok(())
            }
            Err(Launch::NotStarted(error)) => {
                state.events.push(event);
                Err((error, work.buffer))
            }
            Err(Launch::Started(error)) => {
                state.events.push(event);
                // Nothing tells when the device is done with it.
                std::mem::forget(work.buffer);
                Err((error, None))
            }
        }
    }

    fn reap(&self, timeout: Duration) -> Option<Completion> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(reaped) = self.try_reap() {
                return reaped;
            }
            if Instant::now() >= until {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        let calls = &self.driver.library.calls;
        let mut state = self.lock();
        while let Some(flight) = state.flying.pop_front() {
            if !matches!(self.arrived(flight.event), Ok(true)) {
                // Still under way, perhaps for ever: the memory must stay.
                std::mem::forget(flight.buffer);
            }
            state.events.push(flight.event);
        }
        for event in state.events.drain(..) {
            // SAFETY: own events, each destroyed once; the driver waits with the rest itself.
            unsafe { (calls.event_destroy)(event as *mut c_void) };
        }
        // SAFETY: the own stream, destroyed once; work under way is finished by the driver.
        unsafe { (calls.stream_destroy)(self.stream as *mut c_void) };
    }
}
