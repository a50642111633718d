//! Connections to one server: opened with a timeout, kept for reuse, checked before each use.
//! Must never run a connection on its own: whoever uses it drives it, so that nothing is buffered.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::framing::{AnswerHead, head_end};
use crate::socket::{Socket, Wire};

const POOL_MAX: usize = 512;
const HEAD_BYTES_MAX: usize = 256 << 10;

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(out),
            Self::Unix(path) => path.display().fmt(out),
        }
    }
}

/// One server and the connections to it that rest.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub address: Address,
    idle_max: Duration,
    resting: Mutex<VecDeque<(Instant, Line)>>,
}

impl Upstream {
    pub(crate) fn new(address: Address, idle_max: Duration) -> Self {
        Self {
            address,
            idle_max,
            resting: Mutex::new(VecDeque::new()),
        }
    }

    /// A resting connection that is still alive as far as one can see.
    pub(crate) fn reuse(&self) -> Option<Line> {
        loop {
            let (since, mut line) = self.lock().pop_back()?;
            if since.elapsed() < self.idle_max && line.is_quiet() {
                line.reused = true;
                return Some(line);
            }
        }
    }

    /// Opens a new connection.
    pub(crate) async fn connect(&self, timeout: Duration) -> io::Result<Line> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
        let socket = tokio::time::timeout(timeout, self.open())
            .await
            .map_err(late)??;
        Ok(Line {
            wire: Wire::new(socket),
            reused: false,
            scanned: 0,
        })
    }

    async fn open(&self) -> io::Result<Socket> {
        match &self.address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Socket::Tcp(stream))
            }
            Address::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Keeps a connection whose last exchange is complete.
    pub(crate) fn keep(&self, mut line: Line) {
        if !line.is_quiet() {
            return;
        }
        let mut resting = self.lock();
        if resting.len() < POOL_MAX {
            resting.push_back((Instant::now(), line));
        }
    }

    /// Closes the connections that rested too long.
    pub(crate) fn sweep(&self) {
        let mut resting = self.lock();
        while resting
            .front()
            .is_some_and(|(since, _)| since.elapsed() >= self.idle_max)
        {
            resting.pop_front();
        }
    }

    /// Closes all connections that rest.
    pub(crate) fn clear(&self) {
        let resting = std::mem::take(&mut *self.lock());
        drop(resting);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Line)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection to a server.
#[derive(Debug)]
pub(crate) struct Line {
    pub wire: Wire,
    pub reused: bool,
    scanned: usize,
}

impl Line {
    /// Whether the server has neither closed nor said anything unasked.
    fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.wire.unread().is_empty() && self.wire.poll_fill(&mut cx, 1).is_pending()
    }

    /// The head of the next final answer; answers of the 1xx kind are passed over, except the one
    /// that ends HTTP on this connection. An error of the kind `InvalidData` names what is wrong.
    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        to_head: bool,
    ) -> Poll<io::Result<AnswerHead>> {
        let invalid = |message| Err(io::Error::new(io::ErrorKind::InvalidData, message));
        loop {
            if let Some(end) = head_end(self.wire.unread(), &mut self.scanned) {
                match AnswerHead::parse(self.wire.take(end), to_head) {
                    Ok(head) if (100..200).contains(&head.status) && head.status != 101 => continue,
                    Ok(head) => return Poll::Ready(Ok(head)),
                    Err(refusal) => return Poll::Ready(invalid(refusal.message)),
                }
            }
            if self.wire.unread().len() >= HEAD_BYTES_MAX {
                return Poll::Ready(invalid("the head of the answer is too large"));
            }
            if ready!(self.wire.poll_fill(cx, HEAD_BYTES_MAX))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}
