//! Reads through io_uring: many under way with one system call for a batch of them.
//! It must never let go of a buffer that the kernel may still write.
#![allow(
    unsafe_code,
    reason = "hands buffers to the kernel; every block says why it is sound"
)]

use crate::buffer::HostBuffer;
use io_uring::{IoUring, opcode, types};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A finished read: the bytes that came, which may be fewer than asked for.
pub(crate) struct Done {
    pub(crate) tag: u64,
    pub(crate) buffer: HostBuffer,
    pub(crate) result: io::Result<usize>,
}

/// Reads under way on behalf of one thread.
pub(crate) struct ReadQueue {
    ring: IoUring,
    /// What the kernel may write: each stays here until its completion has come.
    flying: Vec<Option<(u64, HostBuffer)>>,
    in_flight: usize,
    calls: u64,
}

impl ReadQueue {
    /// A queue for `depth` reads. Fails where the kernel has no io_uring or forbids it.
    pub(crate) fn new(depth: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth.max(1)).map_err(io::Error::other)?;
        Ok(Self {
            ring: IoUring::new(entries)?,
            flying: (0..depth.max(1)).map(|_| None).collect(),
            in_flight: 0,
            calls: 0,
        })
    }

    /// Reads under way or about to be.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Reads that have a place at once.
    pub(crate) fn depth(&self) -> usize {
        self.flying.len()
    }

    /// Whether `push` would find a place.
    pub(crate) fn has_room(&self) -> bool {
        self.in_flight < self.depth()
    }

    /// System calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls
    }

    /// Notes a read of `len` bytes; it starts with the next `enter`. The buffer comes back when it
    /// is too short or the queue is full.
    pub(crate) fn push(
        &mut self,
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        tag: u64,
        mut buffer: HostBuffer,
    ) -> Result<(), HostBuffer> {
        let place = self.flying.iter().position(Option::is_none);
        let (Some(place), Ok(bytes)) = (place, u32::try_from(len)) else {
            return Err(buffer);
        };
        if buffer.len() < len {
            return Err(buffer);
        }
        let at = buffer.bytes_mut().as_mut_ptr();
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), at, bytes)
            .offset(offset)
            .build()
            .user_data(place as u64);
        // SAFETY: the buffer has `len` bytes, never moves, and stays in `flying`, out of reach of
        // everybody, until the kernel says that the read has ended. A descriptor that is closed
        // before the read starts only makes it fail.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return Err(buffer);
        }
        self.flying[place] = Some((tag, buffer));
        self.in_flight += 1;
        Ok(())
    }

    /// Starts what was pushed and waits until `count` reads have ended; no system call where there
    /// is nothing to do.
    pub(crate) fn enter(&mut self, count: usize) -> io::Result<()> {
        if count == 0 && self.ring.submission().is_empty() {
            return Ok(());
        }
        loop {
            self.calls += 1;
            match self.ring.submit_and_wait(count.min(self.in_flight)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| ()),
            }
        }
    }

    /// A read that has ended; `None` when there is none at the moment.
    pub(crate) fn pop(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        let (tag, buffer) = self.flying[entry.user_data() as usize].take()?;
        self.in_flight -= 1;
        let result = match entry.result() {
            code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
            count => Ok(count as usize),
        };
        Some(Done {
            tag,
            buffer,
            result,
        })
    }
}

impl Drop for ReadQueue {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.enter(self.in_flight).is_err() {
                // The kernel may still write there, so that the memory must stay.
                return self.flying.drain(..).for_each(std::mem::forget);
            }
            while self.pop().is_some() {}
        }
    }
}
