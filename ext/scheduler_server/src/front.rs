//! The listening socket: accepts callers, proves who they are, and sends each call where it goes.
//! It must never serve a call before its caller is known where certificates are in use.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::server::{Grpc, UnaryService};
use tonic_prost::ProstCodec;

use crate::calls::{Counter, LeaseWorker, ReturnWorker, Sent};
use crate::desk::Desk;
use crate::held::Held;
use crate::refused::{Refused, Statuses};
use crate::relay::Relay;
use crate::tls::{Files, Tls, names};

const LEASE: &str = "/na.SchedulerService/LeaseWorker";
const RETURN: &str = "/na.SchedulerService/ReturnWorker";
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Callers ping much more often; this finds those whose machine is gone.
const PING_EVERY: Duration = Duration::from_secs(60);
const WINDOW_BYTES: u32 = 4 << 20;
const METADATA_BYTES_MAX: u32 = 64 << 10;
/// A gateway that gives up a burst of calls is no attacker: who gets here belongs to us.
const RESETS_MAX: usize = 65_536;

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 = any free one.
    pub listen: SocketAddr,
    /// The Unix socket of the server for all other calls.
    pub behind: PathBuf,
    /// Certificates, None = in clear.
    pub tls: Option<Files>,
    /// The names in certificates of those who may lease and return.
    pub callers: Vec<String>,
    /// The gRPC status of each error code.
    pub statuses: Statuses,
    /// How long a lease lives without a heartbeat.
    pub lease_ttl_ms: u64,
}

struct Shared {
    counter: Arc<Counter>,
    relay: Relay,
    tls: Option<Tls>,
    callers: Vec<String>,
}

/// A listening server with a thread of its own.
pub struct Front {
    /// Where it listens.
    pub address: SocketAddr,
    runtime: Mutex<Option<Runtime>>,
    stop: watch::Sender<bool>,
    ended: Mutex<mpsc::Receiver<Infallible>>,
}

impl Front {
    /// Listens from now on; the error names what is in the way.
    pub fn start(desk: Arc<Desk>, options: Options) -> io::Result<Front> {
        let tls = options.tls.map(Tls::load).transpose()?;
        let listener = std::net::TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("inferx-leases")
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            counter: Arc::new(Counter {
                desk: desk.clone(),
                statuses: options.statuses,
                lease_ttl_ms: options.lease_ttl_ms,
            }),
            relay: Relay::new(options.behind),
            tls,
            callers: options.callers,
        });
        let (stop, stopping) = watch::channel(false);
        let (open, ended) = mpsc::channel(1);
        runtime.spawn(desk.keep_time());
        runtime.spawn(accept(shared, listener, stopping, open));
        Ok(Front {
            address,
            runtime: Mutex::new(Some(runtime)),
            stop,
            ended: Mutex::new(ended),
        })
    }

    /// Accepts nobody any more and lets running calls end for `grace`, then cuts them.
    pub fn stop(&self, grace: Duration) {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(runtime) = runtime.take() else {
            return;
        };
        self.stop.send_replace(true);
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether all have ended or the time has: what is left is cut.
        let _ = runtime.block_on(async { tokio::time::timeout(grace, ended.recv()).await });
        runtime.shutdown_background();
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// Accepts callers until told to stop. Every connection keeps a clone of `open`.
async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    mut stopping: watch::Receiver<bool>,
    open: mpsc::Sender<Infallible>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = told_to_stop(&mut stopping) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (shared, stopping, open) = (shared.clone(), stopping.clone(), open.clone());
                tokio::spawn(async move {
                    let _open = open;
                    greet(shared, stream, stopping).await;
                });
            }
            // One caller was gone again, or descriptors are short: let some connections end.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn told_to_stop(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server itself is gone.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn greet(shared: Arc<Shared>, stream: TcpStream, stopping: watch::Receiver<bool>) {
    // Fails only for a socket that is closed already, which the first read finds out as well.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &shared.tls else {
        return converse(shared, stream, None, stopping).await;
    };
    let (acceptor, problem) = tls.acceptor();
    if let Some(problem) = problem {
        let text = format!("the certificates were not read again: {problem}");
        shared.counter.desk.warn(text);
    }
    // A stranger is not owed an answer.
    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await {
        let names = names(&stream);
        converse(shared, stream, Some(names), stopping).await;
    }
}

/// Serves one connection until it ends, or its calls do when the server stops.
async fn converse(
    shared: Arc<Shared>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    names: Option<Vec<String>>,
    mut stopping: watch::Receiver<bool>,
) {
    let caller = Arc::new((shared, names));
    let service = service_fn(move |request| {
        let caller = caller.clone();
        async move {
            let (shared, names) = &*caller;
            Ok::<_, Infallible>(serve(shared, names.as_deref(), request).await)
        }
    });
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .max_concurrent_streams(None)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .max_header_list_size(METADATA_BYTES_MAX)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // How a caller's connection ends shows in its calls.
        _ = connection.as_mut() => {}
        () = told_to_stop(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn serve(
    shared: &Shared,
    names: Option<&[String]>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let counter = &shared.counter;
    let path = request.uri().path();
    let is_lease = path == LEASE;
    let outcome = if is_lease || path == RETURN {
        match may_call(&shared.callers, names, path) {
            Ok(()) if is_lease => Ok(unary(LeaseWorker(counter.clone()), request).await),
            Ok(()) => Ok(unary(ReturnWorker(counter.clone()), request).await),
            Err(why) => Err(why),
        }
    } else {
        let passed = shared.relay.pass(request, names).await;
        passed.map(|answer| answer.map(Reply::Relayed))
    };
    outcome.unwrap_or_else(|why| counter.statuses.render(&why).into_http().map(Reply::own))
}

/// The rule of `rpc/rights.py` for the two calls.
fn may_call(callers: &[String], names: Option<&[String]>, path: &str) -> Result<(), Refused> {
    match names {
        None => Ok(()),
        Some([name]) if callers.contains(name) => Ok(()),
        Some(names) => {
            let name = names.join(", ");
            Err(Refused::new(
                "forbidden",
                format!("{name:?} may not call {path}"),
            ))
        }
    }
}

async fn unary<S, M>(service: S, request: Request<Incoming>) -> Response<Reply>
where
    S: UnaryService<M>,
    M: prost::Message + Default + 'static,
    S::Response: prost::Message + 'static,
{
    let time = timeout(request.headers());
    let mut grpc = Grpc::new(ProstCodec::<S::Response, M>::default());
    let call = grpc.unary(service, request);
    let answer = match time {
        None => call.await,
        Some(time) => tokio::time::timeout(time, call)
            .await
            .unwrap_or_else(|_| Status::deadline_exceeded("the caller's time is over").into_http()),
    };
    let (mut parts, body) = answer.into_parts();
    let held = parts.extensions.remove::<Sent>().map(|sent| sent.0);
    Response::from_parts(parts, Reply::Own(body, held))
}

/// How long the caller waits, as `grpc-timeout` says it: at most eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The body of an answer. A lease in it counts as delivered when its first bytes are asked for,
/// which is after its caller's stream has taken the head; dropped before, the lease goes back.
pub(crate) enum Reply {
    Own(tonic::body::Body, Option<Arc<Held>>),
    Relayed(Incoming),
}

impl Reply {
    fn own(body: tonic::body::Body) -> Reply {
        Reply::Own(body, None)
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Reply::Own(body, held) => {
                if let Some(held) = held.take() {
                    held.settle();
                }
                Pin::new(body).poll_frame(cx).map_err(Into::into)
            }
            Reply::Relayed(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Reply::Own(body, _) => body.is_end_stream(),
            Reply::Relayed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Own(body, _) => body.size_hint(),
            Reply::Relayed(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a value"));
            timeout(&headers)
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(read("250000u"), Some(Duration::from_millis(250)));
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        for bad in ["", "S", "-1S", "999999999S", "5x", "5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_its_callers_may_lease() {
        let callers = ["gateway".to_owned(), "operator".to_owned()];
        assert!(may_call(&callers, None, LEASE).is_ok());
        assert!(may_call(&callers, Some(&["operator".to_owned()]), LEASE).is_ok());
        for names in [
            &["scheduler"][..],
            &["gateway", "gateway"],
            &[],
            &["node:gateway"],
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let why = may_call(&callers, Some(&names), LEASE).expect_err("refused");
            assert_eq!(why.code, "forbidden");
        }
    }
}
