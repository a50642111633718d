//! The byte streams that the data plane speaks over, and what has been read of them too early.
//! Must never buffer on its own: what a socket does not take stays with whoever writes.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_rustls::server::TlsStream;

/// Bytes that one read takes at most.
pub(crate) const SCRATCH_BYTES: usize = 64 << 10;
/// Buffers up to this size are kept for the next message of their connection.
const KEPT_BYTES: usize = 2048;

thread_local! {
    /// One buffer per thread, so that a connection at rest or a slow stream holds none.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Lends this thread's buffer; must not be called again from within `use_it`.
pub(crate) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| use_it(scratch))
}

/// A stream to a client or to a worker.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! on_each {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
            Socket::Tls($stream) => $call,
        }
    };
}

impl Socket {
    pub(crate) fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        space: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(space);
        ready!(Pin::new(self).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    }

    pub(crate) fn poll_write_from(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    pub(crate) fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_flush(cx)
    }

    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }

    /// Ends when the other side has closed, whatever it sent before and nobody has read yet. It is
    /// a second registration of the socket, so reading the first is not disturbed.
    pub(crate) fn hangup(&self) -> io::Result<Hangup> {
        let copy = match self {
            Self::Tcp(stream) => stream.as_fd().try_clone_to_owned()?,
            Self::Unix(stream) => stream.as_fd().try_clone_to_owned()?,
            Self::Tls(stream) => stream.get_ref().0.as_fd().try_clone_to_owned()?,
        };
        let copy = TcpStream::from_std(copy.into())?;
        Ok(Box::pin(hung_up(copy)))
    }
}

pub(crate) type Hangup = Pin<Box<dyn Future<Output = ()> + Send>>;

async fn hung_up(copy: TcpStream) {
    loop {
        match copy.ready(Interest::READABLE).await {
            // Forget the readiness, which is about unread bytes, and wait for the next event.
            Ok(ready) if !ready.is_read_closed() => {
                let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = copy.try_io(Interest::READABLE, nothing);
            }
            _ => return,
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, out))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_each!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A socket and the bytes read from it that nobody has taken yet.
#[derive(Debug)]
pub(crate) struct Wire {
    pub socket: Socket,
    rest: Vec<u8>,
    taken: usize,
}

impl Wire {
    pub(crate) fn new(socket: Socket) -> Self {
        Self {
            socket,
            rest: Vec::new(),
            taken: 0,
        }
    }

    pub(crate) fn unread(&self) -> &[u8] {
        &self.rest[self.taken..]
    }

    /// Takes bytes off the front; buffers that grew are given up when they are empty.
    pub(crate) fn consume(&mut self, count: usize) {
        self.taken += count;
        if self.taken == self.rest.len() {
            self.taken = 0;
            self.rest.clear();
            if self.rest.capacity() > KEPT_BYTES {
                self.rest = Vec::new();
            }
        }
    }

    /// Takes bytes off the front as a buffer of their own.
    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.unread()[..count].to_vec();
        self.consume(count);
        bytes
    }

    /// Puts bytes that were read but are not wanted yet behind those that wait.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Gives up the buffer when nothing is in it.
    pub(crate) fn shrink(&mut self) {
        if self.unread().is_empty() {
            self.rest = Vec::new();
            self.taken = 0;
        }
    }

    /// Reads once, until at most `limit` bytes wait; returns how many came, 0 at the end.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        limit: usize,
    ) -> Poll<io::Result<usize>> {
        let space = limit.saturating_sub(self.unread().len());
        with_scratch(|scratch| {
            let space = space.clamp(1, scratch.len());
            let count = ready!(self.socket.poll_read_into(cx, &mut scratch[..space]))?;
            self.rest.extend_from_slice(&scratch[..count]);
            Poll::Ready(Ok(count))
        })
    }

    /// The socket and the bytes that wait, for a tunnel.
    pub(crate) fn into_parts(self) -> (Socket, Vec<u8>) {
        let rest = self.unread().to_vec();
        (self.socket, rest)
    }
}

/// One timer of a connection for deadlines that mostly do not come: it is registered once and only
/// moved when it fires too early, or when a deadline is earlier than it.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Whether it will fire between `now` and the deadline anyway: then a poll changes nothing, and
    /// polling it for each small piece of a stream costs about as much as taking it apart.
    pub(crate) fn is_set(&self, now: Instant, deadline: Instant) -> bool {
        let fires = self.0.as_ref().map(|timer| timer.deadline());
        fires.is_some_and(|at| now < at && at <= deadline)
    }

    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}
