//! Connections to one server: opened with a timeout, kept for reuse, checked before each use.
//! Must never run a connection on its own: whoever uses it drives it, so that nothing is buffered.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::relay::RequestBody;

const POOL_MAX: usize = 512;

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
    resting: Mutex<VecDeque<(Instant, Box<Line>)>>,
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
    pub(crate) fn reuse(&self) -> Option<Box<Line>> {
        loop {
            let (since, mut line) = self.lock().pop_back()?;
            if since.elapsed() < self.idle_max && line.is_alive() {
                line.reused = true;
                return Some(line);
            }
        }
    }

    /// Opens a new connection.
    pub(crate) async fn connect(&self, timeout: Duration) -> io::Result<Box<Line>> {
        let socket = self.dial(timeout).await?;
        let (sender, driver) = Builder::new()
            .handshake(TokioIo::new(socket))
            .await
            .map_err(io::Error::other)?;
        Ok(Box::new(Line {
            sender,
            driver: Some(driver),
            reused: false,
        }))
    }

    /// A socket to the server, outside the pool.
    pub(crate) async fn dial(&self, timeout: Duration) -> io::Result<Socket> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
        tokio::time::timeout(timeout, self.open())
            .await
            .map_err(late)?
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
    pub(crate) fn keep(&self, mut line: Box<Line>) {
        if !line.is_alive() || !line.sender.is_ready() {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Box<Line>)>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection to a server, driven by whoever holds it.
#[derive(Debug)]
pub(crate) struct Line {
    sender: SendRequest<RequestBody>,
    driver: Option<Connection<TokioIo<Socket>, RequestBody>>,
    pub reused: bool,
}

impl Line {
    /// Moves bytes in both directions as far as that goes now.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && Pin::new(driver).poll(cx).is_ready()
        {
            // An error also reaches whoever waits for the answer or its body.
            self.driver = None;
        }
    }

    fn is_alive(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && !self.sender.is_closed()
    }

    /// Sends a request and waits for the head of the answer. The request comes back with the error
    /// when not a byte of it was written.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        std::future::poll_fn(|cx| {
            if let Some(running) = driver
                && Pin::new(running).poll(cx).is_ready()
            {
                *driver = None;
            }
            answer.as_mut().poll(cx)
        })
        .await
    }
}

/// A TCP or a Unix stream.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

macro_rules! on_either {
    ($socket:expr, $stream:ident => $call:expr) => {
        match $socket.get_mut() {
            Socket::Tcp($stream) => $call,
            Socket::Unix($stream) => $call,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_read(cx, out))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_either!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_either!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
