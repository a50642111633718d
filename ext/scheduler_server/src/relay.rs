//! The way to grpc.aio for every call that is not answered here: a private Unix socket.
//! It must never let a caller say by itself who it is.

use std::path::PathBuf;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::header::{HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::refused::Refused;

/// As `PEER_METADATA` in `rpc/server.py`: one entry for each common name of the caller.
const PEER_METADATA: HeaderName = HeaderName::from_static("inferx-peer-name");
const WINDOW_BYTES: u32 = 4 << 20;
const METADATA_BYTES_MAX: u32 = 64 << 10;

/// One connection for the calls of all callers, made again when it breaks.
pub(crate) struct Relay {
    path: PathBuf,
    sender: Mutex<Option<SendRequest<Incoming>>>,
}

impl Relay {
    /// To who listens at `path`.
    pub(crate) fn new(path: PathBuf) -> Relay {
        let sender = Mutex::new(None);
        Relay { path, sender }
    }

    /// The answer, whose body and trailers come as they are sent. When the caller goes away, the
    /// call behind is reset as well.
    pub(crate) async fn pass(
        &self,
        mut request: Request<Incoming>,
        names: Option<&[String]>,
    ) -> Result<Response<Incoming>, Refused> {
        request.headers_mut().remove(PEER_METADATA);
        for name in names.unwrap_or_default() {
            // A name that no header can carry belongs to none of the services.
            let value = HeaderValue::from_str(name);
            let value = value.unwrap_or(HeaderValue::from_static("?"));
            request.headers_mut().append(PEER_METADATA, value);
        }
        *request.uri_mut() = target(request.uri());
        let answer = self.sender().await?.send_request(request).await;
        answer.map_err(|error| unreachable(&error))
    }

    async fn sender(&self) -> Result<SendRequest<Incoming>, Refused> {
        let mut current = self.sender.lock().await;
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = UnixStream::connect(&self.path).await;
        let stream = stream.map_err(|error| unreachable(&error))?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(METADATA_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unreachable(&error))?;
        // Its end shows in the calls that it carried.
        tokio::spawn(connection);
        *current = Some(sender.clone());
        Ok(sender)
    }
}

fn unreachable(error: &dyn std::fmt::Display) -> Refused {
    Refused::for_now(&format!("this scheduler cannot be reached: {error}"))
}

/// The same method at the server behind.
fn target(uri: &Uri) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::from_static("scheduler"));
    let path = parts.path_and_query.take();
    parts.path_and_query = path.or(Some(PathAndQuery::from_static("/")));
    Uri::from_parts(parts).unwrap_or_default()
}
