//! The listening socket: accepts clients, serves each in its own task, and drains them in the end.
//! Must never stop accepting because of one client, nor end a request when it is told to drain.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::client::{Client, Next};
use crate::deliver::After;
use crate::plane::Core;
use crate::service;
use crate::socket::Socket;

const BACKLOG: i32 = 4096;
/// Large prompts arrive on fresh connections, whose window would otherwise grow only slowly.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Opens the listening socket; the error names the address.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    };
    let open = || {
        let socket = RawSocket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(explain)
}

/// Accepts clients until told to stop.
pub(crate) async fn accept(
    core: Arc<Core>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(core.config.connections_max));
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            next = next => next,
            () = told_to_stop(&mut stop) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (core, stop) = (core.clone(), stop.clone());
                tokio::spawn(async move {
                    let _place = place;
                    serve(core, stream, stop).await;
                });
            }
            Err(error) if is_of_one_client(&error) => {}
            // Out of descriptors or memory: let some connections end first.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
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
    pub(crate) fn new(flag: watch::Receiver<bool>) -> Self {
        Self { flag, told: None }
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

async fn serve(core: Arc<Core>, stream: TcpStream, stop: watch::Receiver<bool>) {
    core.stats.connections.fetch_add(1, Ordering::Relaxed);
    core.stats.connections_open.fetch_add(1, Ordering::Relaxed);
    // Fails only for a socket that is closed already, which the first read finds out as well.
    let _ = stream.set_nodelay(true);
    converse(&core, Socket::Tcp(stream), Stop::new(stop)).await;
    core.stats.connections_open.fetch_sub(1, Ordering::Relaxed);
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
