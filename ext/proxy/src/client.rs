//! One client's connection: its requests, its uploads, and its leaving.
//! Must never take the silence of a client that waits for its answer for a fault.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::framing::{Framer, Refusal, RequestHead, head_end};
use crate::listener::Stop;
use crate::pump::Coding;
use crate::socket::{Hangup, Socket, Timer, Wire, with_scratch};

/// How long a refused client may take to read its answer.
const LINGER: Duration = Duration::from_secs(1);
/// How long a client may still send a request on an idle connection when the plane drains.
const DRAIN_GRACE: Duration = Duration::from_secs(1);
/// How long a client whose time is over is still listened to. A process that was frozen is told of
/// its timers before it is told of what came meanwhile; the next timer fires after that.
const LAST_LOOK: Duration = Duration::from_millis(10);
/// A body up to this size may be read while its call is parked, so that the end can be seen.
const READ_AHEAD_BYTES: u64 = 4096;

/// How long the next head is waited for.
struct Wait {
    deadline: Instant,
    /// The plane drains, and the deadline is no later than that allows.
    draining: bool,
    /// The time is over; the deadline is that of the last look.
    over: bool,
}

/// What a connection brings next.
#[derive(Debug)]
pub(crate) enum Next {
    Request(RequestHead),
    Refused(Refusal),
    Closed,
}

/// The connection of one client.
pub(crate) struct Client {
    pub wire: Wire,
    /// The rest of the body of the request in hand.
    pub body: Framer,
    /// The client waits for a `100 Continue` before it sends the body.
    pub expects_continue: bool,
    pub timer: Timer,
    /// How the rest of an answer leaves whose head was sent while the call still waited.
    pub begun: Option<Coding>,
    head_bytes_max: usize,
    head_timeout: Duration,
    keep_alive_timeout: Duration,
    idle_timeout: Duration,
    scanned: usize,
    served: bool,
    hangup: Option<Hangup>,
}

impl Client {
    pub(crate) fn new(socket: Socket, config: &Config) -> Self {
        Self {
            wire: Wire::new(socket),
            body: Framer::EMPTY,
            expects_continue: false,
            timer: Timer::default(),
            begun: None,
            head_bytes_max: config.head_bytes_max,
            head_timeout: config.head_timeout,
            keep_alive_timeout: config.keep_alive_timeout,
            idle_timeout: config.idle_timeout,
            scanned: 0,
            served: false,
            hangup: None,
        }
    }

    /// Waits for the next request head.
    pub(crate) async fn next(&mut self, stop: &mut Stop) -> Next {
        let patience = if self.served && self.wire.unread().is_empty() {
            self.keep_alive_timeout
        } else {
            self.head_timeout
        };
        let mut wait = Wait {
            deadline: Instant::now() + patience,
            draining: false,
            over: false,
        };
        poll_fn(|cx| self.poll_next(cx, stop, &mut wait)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, stop: &mut Stop, wait: &mut Wait) -> Poll<Next> {
        let refused = |status, message| Poll::Ready(Next::Refused(Refusal { status, message }));
        loop {
            while self.wire.unread().starts_with(b"\r\n") {
                self.wire.consume(2);
                self.scanned = 0;
            }
            if let Some(end) = head_end(self.wire.unread(), &mut self.scanned) {
                return Poll::Ready(self.accept(end));
            }
            if self.wire.unread().len() >= self.head_bytes_max {
                return refused(431, "the request head is too large");
            }
            let was_empty = self.wire.unread().is_empty();
            match self.wire.poll_fill(cx, self.head_bytes_max) {
                Poll::Ready(Ok(0)) if !was_empty => return refused(400, "the request head is cut"),
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Closed),
                Poll::Ready(Ok(_)) if was_empty => {
                    wait.deadline = Instant::now() + self.head_timeout;
                    wait.over = false;
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => {
                    if was_empty && !wait.draining && stop.poll(cx).is_ready() {
                        wait.draining = true;
                        wait.deadline = wait.deadline.min(Instant::now() + DRAIN_GRACE);
                    }
                    ready!(self.timer.poll(cx, wait.deadline));
                    if !wait.over {
                        wait.over = true;
                        wait.deadline = Instant::now() + LAST_LOOK;
                        continue;
                    }
                    if was_empty {
                        return Poll::Ready(Next::Closed);
                    }
                    return refused(408, "the request head did not arrive in time");
                }
            }
        }
    }

    fn accept(&mut self, end: usize) -> Next {
        self.served = true;
        self.begun = None;
        match RequestHead::parse(self.wire.take(end)) {
            Ok(head) => {
                self.body = head.framer;
                self.expects_continue = head.expects_continue;
                Next::Request(head)
            }
            Err(refusal) => Next::Refused(refusal),
        }
    }

    /// Ready when the client has left. What it sends meanwhile is kept, up to the size of a head;
    /// an upload that nobody wants yet is not read.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ahead = match self.body {
            body if body.is_done() => 0,
            Framer::Length(left) if left <= READ_AHEAD_BYTES => left as usize,
            _ => return self.poll_hangup(cx),
        };
        let limit = ahead + self.head_bytes_max;
        while self.wire.unread().len() < limit {
            match ready!(self.wire.poll_fill(cx, limit)) {
                Ok(count) if count > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
        self.poll_hangup(cx)
    }

    /// Waits for something else, unless the client leaves first; None when it has.
    pub(crate) async fn unless_gone<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        let outcome = poll_fn(|cx| match wait.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => self.poll_gone(cx).map(|()| None),
        })
        .await;
        self.unwatch();
        outcome
    }

    /// Ready when the client has left, without reading from it.
    pub(crate) fn poll_hangup(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.hangup.is_none() {
            match self.wire.socket.hangup() {
                Ok(hangup) => self.hangup = Some(hangup),
                // No descriptor is left to watch with: the next write finds it out.
                Err(_) => return Poll::Pending,
            }
        }
        match &mut self.hangup {
            Some(hangup) => hangup.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// Gives up what watching the client took.
    pub(crate) fn unwatch(&mut self) {
        self.hangup = None;
    }

    /// Writes bytes and waits until the socket has them; false when the client has left.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let mut deadline = Instant::now() + self.idle_timeout;
        let mut sent = 0;
        let done = poll_fn(|cx| -> Poll<io::Result<()>> {
            while sent < bytes.len() {
                match self.wire.socket.poll_write_from(cx, &bytes[sent..])? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(count) => {
                        sent += count;
                        deadline = Instant::now() + self.idle_timeout;
                    }
                    Poll::Pending => {
                        ready!(self.timer.poll(cx, deadline));
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                }
            }
            self.wire.socket.poll_flush_all(cx)
        });
        done.await.is_ok()
    }

    /// Tells a client that waits for it to send its body.
    pub(crate) async fn want_body(&mut self) -> bool {
        if !std::mem::take(&mut self.expects_continue) || !self.wire.unread().is_empty() {
            return true;
        }
        self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await
    }

    /// Skips the rest of a body that has arrived already; false when more of it is to come.
    pub(crate) fn skip_body(&mut self) -> bool {
        let mut framer = self.body;
        match framer.advance(self.wire.unread(), |_| {}) {
            Ok(used) if framer.is_done() => {
                self.wire.consume(used);
                self.body = framer;
                true
            }
            _ => false,
        }
    }

    /// The next data of the body; None at its end.
    pub(crate) async fn read_body(&mut self) -> Result<Option<Vec<u8>>, io::Error> {
        if self.body.is_done() {
            return Ok(None);
        }
        if !self.want_body().await {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut data = Vec::new();
        while data.is_empty() && !self.body.is_done() {
            if self.wire.unread().is_empty() {
                self.fill().await?;
            }
            let (wire, body) = (&mut self.wire, &mut self.body);
            let used = body.advance(wire.unread(), |piece| data.extend_from_slice(piece.data()));
            let used = used
                .map_err(|refusal| io::Error::new(io::ErrorKind::InvalidData, refusal.message))?;
            wire.consume(used);
        }
        Ok((!data.is_empty()).then_some(data))
    }

    async fn fill(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + self.idle_timeout;
        poll_fn(|cx| match self.wire.poll_fill(cx, usize::MAX) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(self.timer.poll(cx, deadline));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        })
        .await
    }

    /// Closes our half. When input is left unread, throws it away for a while, so that the client
    /// can read its answer before a reset reaches it.
    pub(crate) async fn close(&mut self) {
        let deadline = Instant::now() + LINGER;
        let mut closed = false;
        poll_fn(|cx| {
            if !closed {
                // Fails when the client has left; the read below finds that out as well.
                let _ = ready!(self.wire.socket.poll_close(cx));
                closed = true;
            }
            loop {
                let read = with_scratch(|space| self.wire.socket.poll_read_into(cx, space));
                match read {
                    Poll::Ready(Ok(count)) if count > 0 && Instant::now() < deadline => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return self.timer.poll(cx, deadline),
                }
            }
        })
        .await;
    }
}
