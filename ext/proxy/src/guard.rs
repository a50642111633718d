//! A client socket that lets only well-framed requests through to the HTTP parser behind it.
//! Must never deliver bytes of the next request together with those of this one.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::framing::{BodyKind, Chunks, Refusal, check_head};

/// A request head that is delivered in place of a refused one, so that the answer keeps its order.
const SUBSTITUTE: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
const LINGER: Duration = Duration::from_secs(1);

/// What the request handler and the socket of one connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Link {
    refusal: Mutex<Option<Refusal>>,
    busy: AtomicBool,
    watched: AtomicBool,
    upgrade: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

const UNDECIDED: u8 = 0;
const TUNNEL: u8 = 1;
const ORDINARY: u8 = 2;

impl Link {
    /// The refusal that the request being handled stands for, if it is a substitute.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether an upgrade request was accepted: what follows is a tunnel, or one more request.
    pub(crate) fn decide_upgrade(&self, accepted: bool) {
        self.upgrade
            .store(if accepted { TUNNEL } else { ORDINARY }, Ordering::Release);
        let waker = self
            .waker
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Marks that a request is being answered, or that its answer has ended.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Release);
    }

    /// Asks to look for the end of the connection although nobody reads from it, or not any more.
    pub(crate) fn set_watched(&self, watched: bool) {
        self.watched.store(watched, Ordering::Release);
    }

    fn busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    fn refuse(&self, refusal: Refusal) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
    }

    fn upgrade_state(&self, waker: &Waker) -> u8 {
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        self.upgrade.load(Ordering::Acquire)
    }
}

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
    stream: TcpStream,
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
    pub(crate) fn new(stream: TcpStream, link: Arc<Link>, limits: Limits) -> Self {
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

    /// Collects a head and checks it; Ready(false) means the client closed between two requests.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            self.skip_blank_lines();
            if let Some(end) = self.find_head_end() {
                self.accept_head(end);
                return Poll::Ready(Ok(true));
            }
            if self.buffer.len() >= self.limits.head_bytes_max {
                self.refuse(Refusal {
                    status: 431,
                    message: "the request head is too large",
                });
                return Poll::Ready(Ok(true));
            }
            let was_empty = self.buffer.is_empty();
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    if was_empty {
                        return Poll::Ready(Ok(false));
                    }
                    self.refuse(Refusal {
                        status: 400,
                        message: "the request head is cut",
                    });
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Ok(_)) if was_empty => {
                    self.deadline = Instant::now() + self.limits.head_timeout;
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(self.poll_timer(cx));
                    if self.buffer.is_empty() {
                        return Poll::Ready(Ok(false));
                    }
                    self.refuse(Refusal {
                        status: 408,
                        message: "the request head did not arrive in time",
                    });
                    return Poll::Ready(Ok(true));
                }
            }
        }
    }

    fn skip_blank_lines(&mut self) {
        while self.buffer.starts_with(b"\r\n") {
            self.buffer.drain(..2);
            self.scanned = 0;
        }
    }

    /// Finds the end of the head; a bare LF also ends it, so that it can be refused at once.
    fn find_head_end(&mut self) -> Option<usize> {
        let mut from = self.scanned.saturating_sub(3);
        while let Some(offset) = memchr::memchr(b'\n', &self.buffer[from..]) {
            let at = from + offset;
            let bare = at == 0 || self.buffer[at - 1] != b'\r';
            if bare || self.buffer[..=at].ends_with(b"\r\n\r\n") {
                return Some(at + 1);
            }
            from = at + 1;
        }
        self.scanned = self.buffer.len();
        None
    }

    fn accept_head(&mut self, end: usize) {
        match check_head(&self.buffer[..end]) {
            Ok(head) => {
                self.head_end = end;
                let next = if head.upgrade {
                    Next::Upgrade
                } else {
                    Next::Body(head.body)
                };
                self.reading = Reading::Deliver { next };
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.link.refuse(refusal);
        self.buffer.clear();
        self.buffer.extend_from_slice(SUBSTITUTE);
        self.head_end = SUBSTITUTE.len();
        self.delivered = 0;
        self.reading = Reading::Deliver {
            next: Next::Refused,
        };
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        self.buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Ready when the deadline has passed. The timer is only moved when it fires too early.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let deadline = self.deadline;
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.link.busy() && !self.lingering && matches!(self.reading, Reading::Head) {
                // The client waits for an answer: this silence is ours, not its own.
                self.deadline = now + self.limits.keep_alive_timeout;
            } else if now >= deadline {
                return Poll::Ready(());
            }
        }
    }

    fn deliver_head(&mut self, out: &mut ReadBuf<'_>, next: Next) {
        let take = (self.head_end - self.delivered).min(out.remaining());
        out.put_slice(&self.buffer[self.delivered..self.delivered + take]);
        self.delivered += take;
        if self.delivered < self.head_end {
            return;
        }
        self.buffer.drain(..self.head_end);
        self.delivered = 0;
        self.scanned = 0;
        self.reading = match next {
            Next::Body(BodyKind::Length(0)) => self.next_head(),
            Next::Body(BodyKind::Length(length)) => Reading::Length(length),
            Next::Body(BodyKind::Chunked) => Reading::Chunked(Chunks::START),
            Next::Upgrade => {
                self.link.upgrade.store(UNDECIDED, Ordering::Release);
                Reading::AwaitUpgrade
            }
            Next::Refused => Reading::Refused,
        };
    }

    fn next_head(&mut self) -> Reading {
        let rest = if self.buffer.is_empty() {
            self.buffer = Vec::new();
            self.limits.keep_alive_timeout
        } else {
            self.limits.head_timeout
        };
        self.deadline = Instant::now() + rest;
        Reading::Head
    }

    /// Reads body bytes straight into the parser's buffer and takes back what is not of this body.
    fn poll_body(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        if self.buffer.is_empty() {
            match Pin::new(&mut self.stream).poll_read(cx, out) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    let since = *self.stalled_since.get_or_insert_with(Instant::now);
                    self.deadline = since + self.limits.idle_timeout;
                    ready!(self.poll_timer(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            self.stalled_since = None;
        } else {
            let take = self.buffer.len().min(out.remaining());
            out.put_slice(&self.buffer[..take]);
            self.buffer.drain(..take);
        }
        let fresh = &out.filled()[before..];
        let (mine, done) = match &mut self.reading {
            Reading::Length(left) => {
                let mine = (*left).min(fresh.len() as u64);
                *left -= mine;
                (mine as usize, *left == 0)
            }
            Reading::Chunked(chunks) => match chunks.advance(fresh) {
                Ok(mine) => (mine, *chunks == Chunks::Done),
                Err(refusal) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        refusal.message,
                    )));
                }
            },
            _ => (fresh.len(), false),
        };
        if mine < fresh.len() {
            let mut rest = fresh[mine..].to_vec();
            rest.append(&mut self.buffer);
            self.buffer = rest;
            out.set_filled(before + mine);
        }
        if done {
            self.reading = self.next_head();
        }
        Poll::Ready(Ok(()))
    }

    /// Until an upgrade is decided only the end of the connection is of interest.
    fn poll_upgrade(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match self.link.upgrade_state(cx.waker()) {
                TUNNEL => {
                    self.reading = Reading::Tunnel;
                    return Poll::Ready(Ok(true));
                }
                ORDINARY => {
                    self.reading = self.next_head();
                    return Poll::Ready(Ok(true));
                }
                _ if self.buffer.len() >= self.limits.head_bytes_max => return Poll::Pending,
                _ => {
                    if ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(Ok(false));
                    }
                }
            }
        }
    }

    /// Fails when the client has left while its upload is not being read.
    fn poll_hangup(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let hangup = match &mut self.hangup {
            Some(hangup) => hangup,
            None => {
                let copy = self.stream.as_fd().try_clone_to_owned()?;
                let copy = TcpStream::from_std(copy.into())?;
                self.hangup.insert(Box::pin(hung_up(copy)))
            }
        };
        match hangup.as_mut().poll(cx) {
            Poll::Ready(error) => Err(error),
            Poll::Pending => Ok(()),
        }
    }

    /// Throws away what a refused client still sends, so that it can read the answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
        loop {
            let mut read = ReadBuf::uninit(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    if Instant::now() >= self.deadline {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return self.poll_timer(cx).map(Ok),
            }
        }
    }
}

/// Ends when the peer has closed its side, whatever it sent before and nobody has read yet.
async fn hung_up(copy: TcpStream) -> io::Error {
    loop {
        match copy.ready(Interest::READABLE).await {
            Ok(ready) if ready.is_read_closed() => return io::ErrorKind::ConnectionReset.into(),
            // Forget the readiness, which is about unread bytes, and wait for the next event.
            Ok(_) => {
                let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                let _ = copy.try_io(Interest::READABLE, nothing);
            }
            Err(error) => return error,
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
        if this.link.watched.load(Ordering::Acquire) {
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
