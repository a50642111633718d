//! Moves one body from the wire it comes on to the socket it goes to, as far as both allow.
//! Must never hold more than one read, and never pass a byte that is not of this body.

use std::io;
use std::task::{Context, Poll, ready};

use crate::framing::{Framer, Piece, Refusal};
use crate::socket::{Socket, Wire, with_scratch};
use crate::usage::Tail;

/// How the body leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// Byte for byte as it came.
    Raw,
    /// Without the framing it came in.
    Plain,
    /// In chunks of its own without extensions, with the trailers that came.
    Chunked,
}

impl Coding {
    /// How an upload leaves: a client's chunk extensions are not a worker's business.
    pub(crate) fn of_upload(framer: &Framer) -> Self {
        match framer {
            Framer::Chunked(_) => Self::Chunked,
            Framer::Length(_) | Framer::UntilClose => Self::Raw,
        }
    }
}

/// Why a body did not arrive. Whose side failed decides what follows, how it failed does not.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The sender closed or failed.
    Source,
    /// The sender's framing is wrong.
    Framing(Refusal),
    /// The receiver failed.
    Sink,
    TooLarge,
}

/// How far a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// All of it was taken from the sender; said once, before the last bytes are written.
    Taken,
    /// All of it was written.
    Done,
}

/// One body on its way.
#[derive(Debug)]
pub(crate) struct Pump {
    coding: Coding,
    /// Bytes to be written next, of which `sent` were.
    pending: Vec<u8>,
    sent: usize,
    /// Nothing that was pending at first has been overwritten.
    intact: bool,
    taken: bool,
    /// The chunk of size zero was written, trailers follow.
    last_chunk: bool,
    limit: u64,
    /// Data bytes taken so far.
    pub bytes: u64,
    /// The end of the body, when somebody wants to look at it.
    pub tail: Option<Tail>,
    /// The last poll ended because the receiver takes nothing at the moment.
    pub blocked: bool,
}

impl Pump {
    /// A pump that first writes `before`, a head.
    pub(crate) fn new(before: Vec<u8>, coding: Coding, limit: u64) -> Self {
        Self {
            coding,
            pending: before,
            sent: 0,
            intact: true,
            taken: false,
            last_chunk: false,
            limit,
            bytes: 0,
            tail: None,
            blocked: false,
        }
    }

    /// Whether bytes were handed to the receiver's socket.
    pub(crate) fn has_written(&self) -> bool {
        self.sent > 0 || !self.intact
    }

    /// Makes ready to write all again to another socket; false when that is not possible.
    pub(crate) fn rewind(&mut self) -> bool {
        self.sent = 0;
        self.intact
    }

    /// Gives up the buffer of what was written.
    pub(crate) fn forget(&mut self) {
        self.refill(&[]);
    }

    /// Adds bytes of the body that were read before.
    pub(crate) fn push(&mut self, data: &[u8]) {
        match self.coding {
            Coding::Chunked => push_chunk(&mut self.pending, data),
            Coding::Raw | Coding::Plain => self.pending.extend_from_slice(data),
        }
        self.bytes += data.len() as u64;
    }

    /// A number that changes whenever something moved.
    pub(crate) fn progress(&self) -> u64 {
        self.bytes.wrapping_mul(31) + self.sent as u64
    }

    /// Adds what the wire holds already to the first write. True when that is all of the body.
    pub(crate) fn prime(&mut self, from: &mut Wire, framer: &mut Framer) -> Result<bool, Fault> {
        if !from.unread().is_empty() && !framer.is_done() {
            let used = self.take(framer, from.unread())?;
            from.consume(used);
        }
        Ok(self.end(framer))
    }

    /// Moves what can be moved now.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire,
        framer: &mut Framer,
        to: &mut Socket,
    ) -> Poll<Result<Step, Fault>> {
        loop {
            ready!(self.poll_flush(cx, to)).map_err(|_| Fault::Sink)?;
            if self.taken {
                return Poll::Ready(Ok(Step::Done));
            }
            if framer.is_done() {
                self.end(framer);
                return Poll::Ready(Ok(Step::Taken));
            }
            if from.unread().is_empty() {
                ready!(self.poll_pass(cx, from, framer, to))?;
            } else {
                let used = self.take(framer, from.unread())?;
                from.consume(used);
            }
        }
    }

    /// Writes what is pending, however much of the body is still to come.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut Socket,
    ) -> Poll<io::Result<()>> {
        self.blocked = true;
        while self.sent < self.pending.len() {
            match ready!(to.poll_write_from(cx, &self.pending[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        ready!(to.poll_flush_all(cx))?;
        self.blocked = false;
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what came at once; what the receiver does not take becomes pending.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Wire,
        framer: &mut Framer,
        to: &mut Socket,
    ) -> Poll<Result<(), Fault>> {
        with_scratch(|scratch| {
            let read = ready!(from.socket.poll_read_into(cx, scratch));
            let count = read.map_err(|_| Fault::Source)?;
            if count == 0 {
                if *framer != Framer::UntilClose {
                    return Poll::Ready(Err(Fault::Source));
                }
                *framer = Framer::EMPTY;
                return Poll::Ready(Ok(()));
            }
            let bytes = &scratch[..count];
            if self.coding != Coding::Raw {
                let used = self.take(framer, bytes)?;
                from.put_back(&bytes[used..]);
                return Poll::Ready(Ok(()));
            }
            let used = self.count(framer, bytes)?;
            from.put_back(&bytes[used..]);
            let mut written = 0;
            // The last bytes stay pending, so that the sender is let go before they are written.
            if !framer.is_done() {
                match to.poll_write_from(cx, &bytes[..used]) {
                    Poll::Ready(Ok(count)) => written = count,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Sink)),
                    Poll::Pending => {}
                }
            }
            self.refill(&bytes[written..used]);
            Poll::Ready(Ok(()))
        })
    }

    fn refill(&mut self, bytes: &[u8]) {
        self.intact = false;
        self.sent = 0;
        self.pending.clear();
        // A stream that flows freely needs no buffer, one that stalls for long gets a fitting one.
        if bytes.is_empty() || self.pending.capacity() > 4 * bytes.len() {
            self.pending = Vec::new();
        }
        self.pending.extend_from_slice(bytes);
    }

    fn count(&mut self, framer: &mut Framer, bytes: &[u8]) -> Result<usize, Fault> {
        let mut data = 0;
        let tail = &mut self.tail;
        let used = framer.advance(bytes, |piece| {
            data += piece.data().len() as u64;
            if let Some(tail) = tail {
                tail.push(piece.data());
            }
        });
        let used = used.map_err(Fault::Framing)?;
        self.bytes += data;
        if self.bytes > self.limit {
            return Err(Fault::TooLarge);
        }
        Ok(used)
    }

    /// Makes bytes of the body pending behind what is, in the pump's coding.
    fn take(&mut self, framer: &mut Framer, bytes: &[u8]) -> Result<usize, Fault> {
        if self.sent > 0 && self.sent == self.pending.len() {
            self.refill(&[]);
        }
        let start = self.pending.len();
        if self.coding == Coding::Raw {
            let used = self.count(framer, bytes)?;
            self.pending.extend_from_slice(&bytes[..used]);
            return Ok(used);
        }
        let chunked = self.coding == Coding::Chunked;
        let (pending, last_chunk) = (&mut self.pending, &mut self.last_chunk);
        let tail = &mut self.tail;
        let mut data = 0;
        let used = framer.advance(bytes, |piece| {
            data += piece.data().len() as u64;
            if let Some(tail) = tail {
                tail.push(piece.data());
            }
            match piece {
                Piece::Data(piece) if chunked => push_chunk(pending, piece),
                Piece::Data(piece) => pending.extend_from_slice(piece),
                Piece::Trailer(bytes) if chunked => {
                    if !std::mem::replace(last_chunk, true) {
                        pending.extend_from_slice(b"0\r\n");
                    }
                    pending.extend_from_slice(bytes);
                }
                Piece::Trailer(_) => {}
            }
        });
        let used = used.map_err(Fault::Framing)?;
        self.bytes += data;
        if self.bytes > self.limit {
            self.pending.truncate(start);
            return Err(Fault::TooLarge);
        }
        Ok(used)
    }

    /// Closes the body when all of it was taken.
    fn end(&mut self, framer: &Framer) -> bool {
        if framer.is_done() && !self.taken {
            self.taken = true;
            if self.coding == Coding::Chunked {
                if self.sent > 0 && self.sent == self.pending.len() {
                    self.refill(&[]);
                }
                let end = if self.last_chunk { "\r\n" } else { "0\r\n\r\n" };
                self.pending.extend_from_slice(end.as_bytes());
            }
        }
        self.taken
    }
}

/// Appends data as one chunk; nothing for no data, which would end the body.
pub(crate) fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    // Writing to memory cannot fail.
    let _ = io::Write::write_fmt(out, format_args!("{:x}\r\n", data.len()));
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}
