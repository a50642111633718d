//! Times in which nothing is read: deadlines, a client that leaves, and the end of a connection.
//! Must never take the silence of a client that waits for its answer for a fault.

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::{GuardedStream, Reading};

impl GuardedStream {
    /// Ready when the deadline has passed. The timer is only moved when it fires too early.
    pub(super) fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
            timer.as_mut().reset(self.deadline);
        }
    }

    /// Fails when the client has left while its upload is not being read.
    pub(super) fn poll_hangup(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
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
    pub(super) fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
