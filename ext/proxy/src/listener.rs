//! The listening socket: accepts clients, serves each in its own task, and drains them in the end.
//! Must never stop accepting because of one client, nor end a request when it is told to drain.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::client::{Client, Next};
use crate::config::Config;
use crate::deliver::After;
use crate::http2;
use crate::plane::Core;
use crate::service;
use crate::socket::Socket;
use crate::tls::Tls;

const BACKLOG: i32 = 4096;
/// Large prompts arrive on fresh connections, whose window would otherwise grow only slowly.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Pause when the system is out of descriptors or memory.
const SHORT_OF: Duration = Duration::from_millis(50);

/// How long a plane that is not ready leaves new connections to whoever shares its port.
const HOLD_MAX: Duration = Duration::from_secs(10);

/// A bound socket, and whether others listen on its port: then nobody is accepted before this
/// plane is ready.
#[derive(Debug)]
pub(crate) struct Port {
    socket: RawSocket,
    held: bool,
}

impl Port {
    /// Binds the port, or takes over the socket that was handed in; the error names the address.
    /// Any socket may be joined by a later one that shares the port; this one joins another only
    /// when the configuration says so.
    pub(crate) fn open(config: &Config) -> io::Result<Self> {
        let address = config.listen;
        let handed_in = config.listening.lock();
        let handed_in = handed_in.unwrap_or_else(PoisonError::into_inner).take();
        let opened = match handed_in {
            Some(socket) => inherit(socket, address),
            None => bind(address, config.share_port),
        };
        let explain = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        };
        opened.map_err(explain)
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        let unusable = || io::Error::other("not a socket of the internet protocols");
        self.socket.local_addr()?.as_socket().ok_or_else(unusable)
    }
}

fn inherit(socket: OwnedFd, address: SocketAddr) -> io::Result<Port> {
    let socket = RawSocket::from(socket);
    let port = Port { socket, held: true };
    if port.address()?.port() != address.port() {
        return Err(io::Error::other("the socket handed in is of another port"));
    }
    port.socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    port.socket.set_nonblocking(true)?;
    Ok(port)
}

fn bind(address: SocketAddr, share: bool) -> io::Result<Port> {
    let open = |share: bool| -> io::Result<RawSocket> {
        let domain = Domain::for_address(address);
        let socket = RawSocket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(share)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    if !share && address.port() != 0 {
        // Fails when anybody listens there.
        drop(open(false)?);
    }
    let port = Port {
        socket: open(true)?,
        held: share,
    };
    if !port.held {
        port.socket.listen(BACKLOG)?;
    }
    Ok(port)
}

/// Accepts clients from the moment that they can be served until told to stop.
pub(crate) async fn accept(
    core: Arc<Core>,
    port: Port,
    mut ready: watch::Receiver<bool>,
    mut stop: watch::Receiver<bool>,
) {
    if port.held {
        let hold = tokio::time::timeout(HOLD_MAX, ready.wait_for(|ready| *ready));
        tokio::select! {
            _ = hold => {}
            () = told_to_stop(&mut stop) => return,
        }
    }
    let listener = loop {
        let socket = port.socket.try_clone();
        let listening = socket.and_then(|socket| {
            socket.listen(BACKLOG)?;
            TcpListener::from_std(socket.into())
        });
        match listening {
            Ok(listener) => break listener,
            // Out of descriptors or memory, or told to stop.
            Err(_) if !*stop.borrow() => tokio::time::sleep(SHORT_OF).await,
            Err(_) => return,
        }
    };
    drop(port);
    accept_from(core, listener, stop).await;
}

async fn accept_from(core: Arc<Core>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(core.config.connections_max));
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = told_to_stop(&mut stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (core, stop) = (core.clone(), stop.clone());
                tokio::spawn(async move {
                    let _place = place;
                    admit(core, stream, stop).await;
                });
            }
            Err(error) if is_of_one_client(&error) => {}
            // Out of descriptors or memory: let some connections end first.
            Err(_) => tokio::time::sleep(SHORT_OF).await,
        }
    }
    // Who connected before the port is given up is still served: closing would reset them.
    while let Some(Ok((stream, _))) = accept_waiting(&listener).await {
        tokio::spawn(admit(core.clone(), stream, stop.clone()));
    }
}

/// A client that waits to be accepted, if there is one now.
async fn accept_waiting(listener: &TcpListener) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    poll_fn(|cx| match listener.poll_accept(cx) {
        Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

fn is_of_one_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that the plane itself is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Tells one connection that the plane drains.
pub(crate) struct Stop {
    flag: watch::Receiver<bool>,
    told: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Stop {
    fn new(flag: watch::Receiver<bool>) -> Self {
        Self { flag, told: None }
    }

    /// The same for another connection.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.flag.clone())
    }

    fn is_set(&self) -> bool {
        *self.flag.borrow()
    }

    /// Ready when the plane drains.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let told = self.told.get_or_insert_with(|| {
            let mut flag = self.flag.clone();
            Box::pin(async move { told_to_stop(&mut flag).await })
        });
        ready!(told.as_mut().poll(cx));
        self.told = None;
        Poll::Ready(())
    }
}

/// Serves one client that was accepted.
async fn admit(core: Arc<Core>, stream: TcpStream, stop: watch::Receiver<bool>) {
    // Fails only for a socket that is closed already, which the first read finds out as well.
    let _ = stream.set_nodelay(true);
    if core.tls.is_some() {
        // Boxed, because a plain connection should not bear the size of it.
        Box::pin(greet(core, stream, stop)).await;
    } else {
        serve(core, Socket::Tcp(stream), stop).await;
    }
}

/// Serves one connection until it ends.
pub(crate) async fn serve(core: Arc<Core>, socket: Socket, stop: watch::Receiver<bool>) {
    core.stats.connections.fetch_add(1, Ordering::Relaxed);
    core.stats.connections_open.fetch_add(1, Ordering::Relaxed);
    converse(&core, socket, Stop::new(stop)).await;
    core.stats.connections_open.fetch_sub(1, Ordering::Relaxed);
}

/// Agrees on TLS and the protocol, and serves the connection.
async fn greet(core: Arc<Core>, stream: TcpStream, stop: watch::Receiver<bool>) {
    let Some(acceptor) = core.tls.as_ref().map(Tls::acceptor) else {
        return;
    };
    let greeting = tokio::time::timeout(core.config.head_timeout, acceptor.accept(stream));
    // A client that speaks something else, or nothing, is not owed an answer.
    let Ok(Ok(stream)) = greeting.await else {
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        core.stats.connections.fetch_add(1, Ordering::Relaxed);
        core.stats.connections_open.fetch_add(1, Ordering::Relaxed);
        http2::serve(core.clone(), stream, Stop::new(stop)).await;
        core.stats.connections_open.fetch_sub(1, Ordering::Relaxed);
    } else {
        serve(core, Socket::Tls(Box::new(stream)), stop).await;
    }
}

/// Serves the requests of one connection, one after the other.
pub(crate) async fn converse(core: &Core, socket: Socket, mut stop: Stop) {
    let mut client = Client::new(socket, &core.config);
    loop {
        match client.next(&mut stop).await {
            Next::Request(head) => {
                match service::handle(core, &mut client, head, !stop.is_set()).await {
                    After::KeepAlive => {}
                    After::Close => break,
                    After::Cut => return,
                }
            }
            Next::Refused(refusal) => {
                service::refuse(core, &mut client, refusal).await;
                break;
            }
            Next::Closed => return,
        }
    }
    client.close().await;
}
