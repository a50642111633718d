//! What follows a head: its body to the last byte, or the wait for the answer to an upgrade.
//! Must never deliver a byte beyond the end of the body.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::{GuardedStream, Reading};
use crate::framing::Chunks;
use crate::link::{ORDINARY, TUNNEL};

impl GuardedStream {
    /// Reads body bytes straight into the parser's buffer and takes back what is not of this body.
    pub(super) fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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
    pub(super) fn poll_upgrade(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
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

    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [std::mem::MaybeUninit::<u8>::uninit(); 4096];
        let mut read = ReadBuf::uninit(&mut space);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read))?;
        self.buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }
}
