//! A client socket that lets only well-framed requests through to the HTTP parser behind it.
//! Must never deliver bytes of the next request together with those of this one.

mod body;
mod head;
mod quiet;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::framing::{BodyKind, Chunks};
use crate::link::Link;
use crate::upstream::Socket;

const LINGER: Duration = Duration::from_secs(1);

enum Reading {
    Head,
    Deliver { next: Next },
    Length(u64),
    Chunked(Chunks),
    AwaitUpgrade,
    Tunnel,
    Refused,
}

#[derive(Clone, Copy)]
enum Next {
    Body(BodyKind),
    Upgrade,
    Refused,
}

/// Times and sizes that a client must keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub head_bytes_max: usize,
    pub head_timeout: Duration,
    pub keep_alive_timeout: Duration,
    pub idle_timeout: Duration,
}

/// The socket of one client.
pub(crate) struct GuardedStream {
    stream: Socket,
    link: Arc<Link>,
    limits: Limits,
    reading: Reading,
    /// Bytes read but not yet delivered: a head in the making, or what came after one.
    buffer: Vec<u8>,
    /// How many bytes of `buffer` were delivered, and how many of them form the head.
    delivered: usize,
    head_end: usize,
    scanned: usize,
    deadline: Instant,
    /// When the client of an upload last fell silent.
    stalled_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    lingering: bool,
    /// A second registration of the socket that only looks for the client's leaving.
    hangup: Option<Pin<Box<dyn Future<Output = io::Error> + Send>>>,
}

impl GuardedStream {
    pub(crate) fn new(stream: Socket, link: Arc<Link>, limits: Limits) -> Self {
        Self {
            stream,
            link,
            limits,
            reading: Reading::Head,
            buffer: Vec::new(),
            delivered: 0,
            head_end: 0,
            scanned: 0,
            deadline: Instant::now() + limits.head_timeout,
            stalled_since: None,
            timer: None,
            lingering: false,
            hangup: None,
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.reading {
                Reading::Head => {
                    if !ready!(this.poll_head(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Reading::Deliver { next } => {
                    this.deliver_head(out, next);
                    return Poll::Ready(Ok(()));
                }
                Reading::Length(_) | Reading::Chunked(_) => return this.poll_body(cx, out),
                Reading::AwaitUpgrade => {
                    if !ready!(this.poll_upgrade(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Reading::Tunnel if !this.buffer.is_empty() => {
                    let take = this.buffer.len().min(out.remaining());
                    out.put_slice(&this.buffer[..take]);
                    this.buffer.drain(..take);
                    return Poll::Ready(Ok(()));
                }
                Reading::Tunnel => return Pin::new(&mut this.stream).poll_read(cx, out),
                // The answer closes the connection; until then nothing more is read.
                Reading::Refused => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The parser calls this whenever its task runs, also while it does not read: the place to
    /// notice that a client left whose upload waits.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.link.watched() {
            this.poll_hangup(cx)?;
        } else if this.hangup.is_some() {
            this.hangup = None;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    /// Closes our half; when input is left unread, waits for the client to have read the answer.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.lingering {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if matches!(this.reading, Reading::Head | Reading::Tunnel) && this.buffer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.lingering = true;
            this.deadline = Instant::now() + LINGER;
        }
        this.poll_linger(cx)
    }
}
