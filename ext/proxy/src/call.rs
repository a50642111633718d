//! One inference call: wait for a slot, send the request to that worker, hand its answer back.
//! Must never try a call twice unless the first worker provably did not act on it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::account::{Account, Outcome};
use crate::dispatch::{Admission, Slot};
use crate::headers::{self, X_INFERX_POD, X_INFERX_START, X_TCPCONN_LATENCY, X_TTFT_LATENCY};
use crate::link::Link;
use crate::plane::Core;
use crate::relay::{RelayBody, RequestBody, UploadFault, UploadState};
use crate::reply::{Reject, Reply, X_REQUEST_ID};
use crate::upstream::{Line, Upstream};

/// Uploads above this size are watched for the client's leaving while nobody reads them.
const WATCHED_BYTES: u64 = 64 << 10;
const ATTEMPTS_MAX: u32 = 3;

/// The body of a call as the routes found it.
pub(crate) enum Upload {
    Whole(Bytes),
    Stream {
        first: VecDeque<Bytes>,
        rest: Incoming,
    },
}

impl Upload {
    fn is_waiting(&self) -> bool {
        match self {
            Self::Whole(_) => false,
            Self::Stream { rest, .. } => !rest.is_end_stream(),
        }
    }

    fn is_large(&self) -> bool {
        match self {
            Self::Whole(_) => false,
            Self::Stream { rest, .. } => rest
                .size_hint()
                .upper()
                .is_none_or(|size| size > WATCHED_BYTES),
        }
    }

    fn into_body(self, limit: u64, state: &Arc<UploadState>) -> RequestBody {
        match self {
            Self::Whole(bytes) => RequestBody::whole(bytes),
            Self::Stream { first, rest } => {
                let taken: u64 = first.iter().map(|bytes| bytes.len() as u64).sum();
                RequestBody::stream(first, rest, limit.saturating_sub(taken), state.clone())
            }
        }
    }
}

/// A call that has been routed.
pub(crate) struct Call {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub upload: Upload,
    pub account: Account,
}

/// Serves a routed call. On an error the account is closed and the caller renders the error.
pub(crate) async fn serve(
    core: &Core,
    link: &Link,
    mut call: Call,
) -> Result<Response<Reply>, Reject> {
    let outcome = attempt(core, link, &mut call).await;
    link.set_watched(false);
    match outcome {
        Ok(answered) => Ok(answer(core, call.account, answered)),
        Err(error) => {
            call.account.status = error.status;
            call.account.close(Outcome::Refused);
            Err(error)
        }
    }
}

/// The head of a worker's answer and what belongs to it.
pub(crate) struct Answered {
    pub response: Response<Incoming>,
    /// The connection, when whoever reads the body has to drive it.
    pub line: Option<Box<Line>>,
    pub connect: Duration,
}

async fn attempt(core: &Core, link: &Link, call: &mut Call) -> Result<Answered, Reject> {
    let policy = call.account.function.definition().policy.clone();
    let wait = headers::client_timeout(&call.headers)?;
    let wait = wait.map_or(policy.queue_timeout, |client| {
        client.min(policy.queue_timeout)
    });
    let deadline = call.account.started + wait;
    core.budget.deposit();
    link.set_watched(call.upload.is_large());
    let slot = admit(call, link, deadline, false).await?;
    call.account.granted = Some(Instant::now());
    let mut worker = slot.worker.clone();
    call.account.slot = Some(slot);
    let mut request = Some(build(core, call, &worker.upstream));
    let mut written = false;
    for attempt in 1.. {
        let (mut line, connect) = match open(core, &worker.upstream).await {
            Ok(opened) => opened,
            Err(error) => {
                let reason = format!("worker {} cannot be reached: {error}", worker.pod_id);
                call.account.function.eject(worker.lease_id, reason.clone());
                call.account.slot = None;
                if attempt >= ATTEMPTS_MAX || !core.withdraw_retry() {
                    return Err(Reject::worker_failed(reason));
                }
                let slot = admit(call, link, deadline, true).await?;
                worker = slot.worker.clone();
                call.account.slot = Some(slot);
                continue;
            }
        };
        let Some(sending) = request.take() else { break };
        let reused = line.reused;
        // A worker that answered nothing on a fresh connection is given one more try, no more: the
        // request itself may be what ends it.
        let copy = repeatable(&sending).filter(|_| reused || !written);
        let first_byte =
            tokio::time::timeout(core.config.first_byte_timeout, line.exchange(sending));
        let failed = match first_byte.await {
            Ok(Ok(response)) => {
                return Ok(Answered {
                    response,
                    line: Some(line),
                    connect,
                });
            }
            Ok(Err(failed)) => failed,
            Err(_) => {
                let message = format!("worker {} did not answer in time", worker.pod_id);
                return Err(Reject::new(504, "worker_timeout", message));
            }
        };
        if let Some(error) = upload_error(core, &call.account) {
            return Err(error);
        }
        let mut failed = failed;
        let unsent = failed.take_message();
        written |= unsent.is_none() && !reused;
        request = unsent.or(copy);
        if request.is_none() || attempt >= ATTEMPTS_MAX || !core.withdraw_retry() {
            let why = failed.into_error();
            let message = format!("worker {} failed before it answered: {why}", worker.pod_id);
            return Err(Reject::worker_failed(message));
        }
        // A resting connection had died: the others are of the same age.
        worker.upstream.clear();
    }
    Err(Reject::worker_failed("no attempt was left"))
}

/// When the call gives up waiting for a slot.
pub(crate) fn queue_deadline(call: &Call) -> Result<Instant, Reject> {
    let policy = call.account.function.definition().policy.queue_timeout;
    let client = headers::client_timeout(&call.headers)?;
    Ok(call.account.started + client.map_or(policy, |client| client.min(policy)))
}

pub(crate) async fn admit(
    call: &Call,
    link: &Link,
    deadline: Instant,
    again: bool,
) -> Result<Slot, Reject> {
    match call.account.function.admit(again) {
        Admission::Slot(slot) => Ok(slot),
        Admission::Refused(error) => Err(error),
        Admission::Wait(waiter) => {
            if call.upload.is_waiting() {
                link.set_watched(true);
            }
            waiter.wait(deadline).await
        }
    }
}

/// A connection to the worker and the time that opening it took.
async fn open(core: &Core, upstream: &Upstream) -> std::io::Result<(Box<Line>, Duration)> {
    if let Some(line) = upstream.reuse() {
        return Ok((line, Duration::ZERO));
    }
    let started = Instant::now();
    let line = upstream.connect(core.config.connect_timeout).await?;
    Ok((line, started.elapsed()))
}

/// The request as the worker gets it; takes the head and the body out of the call.
pub(crate) fn build(core: &Core, call: &mut Call, upstream: &Upstream) -> Request<RequestBody> {
    let upload = std::mem::replace(&mut call.upload, Upload::Whole(Bytes::new()));
    let body = upload.into_body(core.config.body_bytes_max, &call.account.upload);
    let mut request = Request::new(body);
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = std::mem::take(&mut call.uri);
    *request.version_mut() = Version::HTTP_11;
    let mut headers = std::mem::take(&mut call.headers);
    headers::strip_hop_by_hop(&mut headers);
    headers.insert(X_REQUEST_ID.clone(), call.account.request_id.clone());
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::try_from(upstream.address.to_string())
    {
        headers.insert(HOST, host);
    }
    *request.headers_mut() = headers;
    request
}

/// A copy of a request that may be sent twice although the first was written.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(RequestBody::whole(Bytes::new()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn upload_error(core: &Core, account: &Account) -> Option<Reject> {
    match account.upload.fault()? {
        UploadFault::TooLarge => Some(Reject::body_too_large(core.config.body_bytes_max)),
        UploadFault::Malformed => Some(Reject::bad_request(
            "the request body is malformed or was cut",
        )),
    }
}

/// The worker's answer as the client gets it.
pub(crate) fn answer(core: &Core, mut account: Account, answered: Answered) -> Response<Reply> {
    let Answered {
        response,
        line,
        connect,
    } = answered;
    let now = Instant::now();
    account.first_byte = Some(now);
    account.status = response.status().as_u16();
    let (mut parts, incoming) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    let headers = &mut parts.headers;
    headers.insert(X_REQUEST_ID.clone(), account.request_id.clone());
    let ttft_ms = (now - account.started).as_millis() as u64;
    headers.insert(X_TTFT_LATENCY.clone(), HeaderValue::from(ttft_ms));
    let connect_ms = connect.as_millis() as u64;
    headers.insert(X_TCPCONN_LATENCY.clone(), HeaderValue::from(connect_ms));
    let mut upstream = None;
    if let Some(slot) = &account.slot {
        if let Ok(pod) = HeaderValue::from_str(&slot.worker.pod_id) {
            headers.insert(X_INFERX_POD.clone(), pod);
        }
        let start = HeaderValue::from_static(slot.start.name());
        headers.insert(X_INFERX_START.clone(), start);
        upstream = Some(slot.worker.upstream.clone());
    }
    let upstream = upstream.unwrap_or_else(|| core.control.clone());
    let idle_timeout = core.config.idle_timeout;
    let body = RelayBody::new(incoming, line, upstream, Some(account), idle_timeout);
    respond(parts, body)
}

fn respond(parts: http::response::Parts, body: RelayBody) -> Response<Reply> {
    let mut response = Response::new(Reply::relay(body));
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    response
}

/// Hands a request that is not an inference call to the control server, unchanged.
pub(crate) async fn control(
    core: &Core,
    parts: Parts,
    body: Incoming,
    request_id: &HeaderValue,
) -> Result<Response<Reply>, Reject> {
    let state = Arc::<UploadState>::default();
    let limit = core.config.body_bytes_max;
    let mut request = Request::new(RequestBody::stream(
        VecDeque::new(),
        body,
        limit,
        state.clone(),
    ));
    *request.method_mut() = parts.method;
    *request.uri_mut() = parts.uri;
    let mut headers = parts.headers;
    headers::strip_hop_by_hop(&mut headers);
    headers.insert(X_REQUEST_ID.clone(), request_id.clone());
    *request.headers_mut() = headers;
    let unavailable = |error: String| {
        Reject::new(
            503,
            "unavailable",
            format!("the control server does not answer: {error}"),
        )
        .retry_after(1000)
    };
    let (mut line, _) = open(core, &core.control)
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    let response = match line.exchange(request).await {
        Ok(response) => response,
        Err(_) if state.fault() == Some(UploadFault::TooLarge) => {
            return Err(Reject::body_too_large(limit));
        }
        Err(_) if state.fault().is_some() => {
            return Err(Reject::bad_request(
                "the request body is malformed or was cut",
            ));
        }
        Err(failed) => return Err(unavailable(failed.into_error().to_string())),
    };
    let (mut parts, incoming) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts
        .headers
        .insert(X_REQUEST_ID.clone(), request_id.clone());
    let idle_timeout = core.config.control_idle_timeout;
    let body = RelayBody::new(
        incoming,
        Some(line),
        core.control.clone(),
        None,
        idle_timeout,
    );
    Ok(respond(parts, body))
}

/// The declared length of a request's body.
pub(crate) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Core {
    fn withdraw_retry(&self) -> bool {
        let granted = self.budget.withdraw();
        if granted {
            self.stats.retries.fetch_add(1, Ordering::Relaxed);
        }
        granted
    }
}
