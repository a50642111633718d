//! Request heads: collected whole, checked, and delivered alone.
//! Must never deliver a head that was not checked.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::{GuardedStream, Next, Reading};
use crate::framing::{BodyKind, Chunks, Refusal, check_head};

/// A request head that is delivered in place of a refused one, so that the answer keeps its order.
const SUBSTITUTE: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
impl GuardedStream {
    /// Collects a head and checks it; Ready(false) means the client closed between two requests.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
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

    pub(super) fn deliver_head(&mut self, out: &mut ReadBuf<'_>, next: Next) {
        let take = (self.head_end - self.delivered).min(out.remaining());
        out.put_slice(&self.buffer[self.delivered..self.delivered + take]);
        self.delivered += take;
        if self.delivered < self.head_end {
            return;
        }
        self.buffer.drain(..self.head_end);
        self.delivered = 0;
        self.scanned = 0;
        self.link.expect_upgrade(matches!(next, Next::Upgrade));
        self.reading = match next {
            Next::Body(BodyKind::Length(0)) => self.next_head(),
            Next::Body(BodyKind::Length(length)) => Reading::Length(length),
            Next::Body(BodyKind::Chunked) => Reading::Chunked(Chunks::START),
            Next::Upgrade => Reading::AwaitUpgrade,
            Next::Refused => Reading::Refused,
        };
    }

    pub(super) fn next_head(&mut self) -> Reading {
        let rest = if self.buffer.is_empty() {
            self.buffer = Vec::new();
            self.limits.keep_alive_timeout
        } else {
            self.limits.head_timeout
        };
        self.deadline = Instant::now() + rest;
        Reading::Head
    }
}
