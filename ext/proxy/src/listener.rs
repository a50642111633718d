//! The listening socket: accepts clients, serves each in its own task, and drains them in the end.
//! Must never stop accepting because of one client, nor end a request when it is told to drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Type};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::guard::{GuardedStream, Limits};
use crate::link::Link;
use crate::plane::Core;
use crate::service::handle;
use crate::upstream::Socket;

const BACKLOG: i32 = 4096;
/// Large prompts arrive on fresh connections, whose window would otherwise grow only slowly.
const RECEIVE_BUFFER: usize = 1 << 20;
const PARSER_BUFFER_MAX: usize = 64 << 10;

/// Opens the listening socket; the error names the address.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let explain = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    };
    let open = || {
        let socket = socket2::Socket::new(
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
                    // Fails only for a socket that is closed already, as the first read finds.
                    let _ = stream.set_nodelay(true);
                    serve(core, Socket::Tcp(stream), stop).await;
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

/// Serves one connection until it ends.
pub(crate) async fn serve(core: Arc<Core>, stream: Socket, mut stop: watch::Receiver<bool>) {
    let stats = &core.stats;
    stats.connections.fetch_add(1, Ordering::Relaxed);
    stats.connections_open.fetch_add(1, Ordering::Relaxed);
    let link = Arc::new(Link::default());
    let limits = Limits {
        head_bytes_max: core.config.head_bytes_max,
        head_timeout: core.config.head_timeout,
        keep_alive_timeout: core.config.keep_alive_timeout,
        idle_timeout: core.config.idle_timeout,
    };
    let io = TokioIo::new(GuardedStream::new(stream, link.clone(), limits));
    let service = service_fn(|request: Request<Incoming>| {
        let answer = handle(core.clone(), link.clone(), request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size(PARSER_BUFFER_MAX.max(core.config.head_bytes_max + 8192))
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // How a client's connection ends is told by the accounts of its calls.
        _ = connection.as_mut() => {}
        () = told_to_stop(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.as_mut().await;
        }
    }
    stats.connections_open.fetch_sub(1, Ordering::Relaxed);
}
