//! A call that becomes a tunnel, such as a WebSocket: bytes go both ways until one side ends it.
//! Must never open the tunnel before the worker has agreed to it.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::client::conn::http1::handshake;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

use crate::account::{Account, Outcome};
use crate::call::{self, Answered, Call};
use crate::link::Link;
use crate::plane::Core;
use crate::relay::RequestBody;
use crate::reply::{Reject, Reply};
use std::sync::Arc;

/// Serves a routed call whose client asks for `protocol`.
pub(crate) async fn serve(
    core: &Arc<Core>,
    link: &Link,
    mut call: Call,
    client: OnUpgrade,
    protocol: HeaderValue,
) -> Result<Response<Reply>, Reject> {
    match attempt(core, link, &mut call, protocol.clone()).await {
        Ok(mut answered) if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            let worker = hyper::upgrade::on(&mut answered.response);
            let headers = std::mem::take(answered.response.headers_mut());
            let mut account = call.account;
            account.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
            account.first_byte = Some(Instant::now());
            tokio::spawn(join(core.clone(), client, worker, account));
            let mut response = Response::new(Reply::full(bytes::Bytes::new()));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = headers;
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            Ok(response)
        }
        Ok(answered) => Ok(call::answer(core, call.account, answered)),
        Err(error) => {
            call.account.status = error.status;
            call.account.close(Outcome::Refused);
            Err(error)
        }
    }
}

async fn attempt(
    core: &Core,
    link: &Link,
    call: &mut Call,
    protocol: HeaderValue,
) -> Result<Answered, Reject> {
    let deadline = call::queue_deadline(call)?;
    let slot = call::admit(call, link, deadline, false).await?;
    call.account.granted = Some(Instant::now());
    let worker = slot.worker.clone();
    call.account.slot = Some(slot);
    let mut request = call::build(core, call, &worker.upstream);
    request
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    request.headers_mut().insert(UPGRADE, protocol);
    let started = Instant::now();
    let socket = match worker.upstream.dial(core.config.connect_timeout).await {
        Ok(socket) => socket,
        Err(error) => {
            let reason = format!("worker {} cannot be reached: {error}", worker.pod_id);
            call.account.function.eject(worker.lease_id, reason.clone());
            return Err(Reject::worker_failed(reason));
        }
    };
    let connect = started.elapsed();
    let failed = |error: hyper::Error| {
        Reject::worker_failed(format!("worker {} failed: {error}", worker.pod_id))
    };
    let (mut sender, driver) = handshake(TokioIo::new(socket)).await.map_err(failed)?;
    // Ends with the tunnel, or with the answer when the worker refuses.
    tokio::spawn(driver.with_upgrades());
    let answer = send(&mut sender, request);
    let response = tokio::time::timeout(core.config.first_byte_timeout, answer)
        .await
        .map_err(|_| Reject::new(504, "worker_timeout", "the worker did not answer in time"))?
        .map_err(failed)?;
    Ok(Answered {
        response,
        line: None,
        connect,
    })
}

type Sender = hyper::client::conn::http1::SendRequest<RequestBody>;

async fn send(
    sender: &mut Sender,
    request: Request<RequestBody>,
) -> hyper::Result<Response<hyper::body::Incoming>> {
    sender.send_request(request).await
}

/// Moves bytes until both sides have ended; holds the slot as long.
async fn join(core: Arc<Core>, client: OnUpgrade, worker: OnUpgrade, mut account: Account) {
    let open = &core.stats.connections_open;
    open.fetch_add(1, Ordering::Relaxed);
    if let (Ok(client), Ok(worker)) = tokio::join!(client, worker) {
        let (mut client, mut worker) = (TokioIo::new(client), TokioIo::new(worker));
        let copied = tokio::io::copy_bidirectional(&mut client, &mut worker).await;
        // How a tunnel ends is between its two sides; only the size is known when it ends well.
        account.bytes_out = copied.map_or(0, |(_, out)| out);
    }
    account.close(Outcome::Complete);
    open.fetch_sub(1, Ordering::Relaxed);
}
