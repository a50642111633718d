//! HTTP/2 towards clients: each stream becomes a connection of its own to the HTTP/1 side.
//! Must never let a stream around a rule that holds for HTTP/1.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, HOST, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::listener::{Stop, converse};
use crate::plane::Core;
use crate::socket::Socket;

const STREAMS_MAX: u32 = 256;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client may go on with an upload that nobody reads any more.
const LINGER: Duration = Duration::from_secs(1);

/// Serves one connection until it ends, or until its streams have when the plane drains.
pub(crate) async fn serve(core: Arc<Core>, stream: TlsStream<TcpStream>, mut stop: Stop) {
    let shared = core.clone();
    let streams = stop.fresh();
    let service = service_fn(move |request| pass(shared.clone(), streams.fresh(), request));
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(core.config.head_bytes_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_EVERY)
            .serve_connection(TokioIo::new(stream), service)
    );
    let stopping = std::future::poll_fn(|cx| stop.poll(cx));
    tokio::select! {
        // How a client's connection ends is told by the accounts of its calls.
        _ = connection.as_mut() => {}
        () = stopping => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Sends one request through a socket pair to where the listener's connections go. When the
/// client resets its stream, the pair closes, and with it the worker's connection.
async fn pass(
    core: Arc<Core>,
    stop: Stop,
    request: Request<Incoming>,
) -> io::Result<Response<Incoming>> {
    let (near, far) = UnixStream::pair()?;
    tokio::spawn(async move { converse(&core, Socket::Unix(far), stop).await });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near))
        .await
        .map_err(io::Error::other)?;
    // Ends with the answer, whose body tells when it breaks off.
    tokio::spawn(connection);
    let request = translate(request)?.map(|body| Upload(Some(body)));
    let response = sender.send_request(request).await;
    response.map_err(io::Error::other)
}

/// The request as HTTP/1 writes it.
fn translate(mut request: Request<Incoming>) -> io::Result<Request<Incoming>> {
    let uri = std::mem::take(request.uri_mut());
    if !request.headers().contains_key(HOST)
        && let Some(authority) = uri.authority()
    {
        let host = HeaderValue::from_str(authority.as_str()).map_err(io::Error::other)?;
        request.headers_mut().insert(HOST, host);
    }
    let target = match uri.path_and_query() {
        Some(target) if request.method() != Method::CONNECT => target.as_str(),
        _ => "*", // refused behind, as any target that is not a path
    };
    *request.uri_mut() = Uri::try_from(target).map_err(io::Error::other)?;
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().remove(CONNECTION);
    Ok(request)
}

/// A client's upload, which whoever takes it in may leave before its end. That would reset the
/// stream as soon as it is answered. The reset is no failure (RFC 9113, 8.1), but some clients take
/// it for one, and all that they still owe is often the mark of the end: they send it in a frame of
/// its own behind the last byte, which a fast worker outruns. So the end is waited for.
struct Upload(Option<Incoming>);

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.0.as_mut() {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut body) = self.0.take()
            && !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            let end = async move { while let Some(Ok(_)) = body.frame().await {} };
            runtime.spawn(timeout(LINGER, end));
        }
    }
}
