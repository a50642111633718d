//! One inference call: wait for a slot, send the request to that worker, hand its answer back.
//! Must never try a call twice unless the first worker provably did not act on it.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::account::{Account, Outcome};
use crate::client::Client;
use crate::deliver::{After, Answered, Whose, answer};
use crate::dispatch::{Admission, Slot, Waiter, Worker};
use crate::exchange::{self, Miss, Patience, Upload};
use crate::framing::{Framer, Known, RequestHead};
use crate::headers::{self, Outgoing, Sent};
use crate::plane::Core;
use crate::progress;
use crate::pump::{Coding, Pump};
use crate::reply::Reject;
use crate::stats::Start;
use crate::tunnel;
use crate::upstream::{Line, Upstream};

const ATTEMPTS_MAX: u32 = 3;
/// A call that waits in vain asks so long before its end for the reason.
const WHY_LEAD: Duration = Duration::from_millis(200);

/// The body of a call as the routes found it.
pub(crate) enum Body {
    /// Nothing of it was read.
    Unread,
    /// Its data so far; the rest is still with the client.
    Begun(Vec<u8>),
    /// Another one in place of the client's.
    Json(Vec<u8>),
}

/// A call that has been routed.
pub(crate) struct Call {
    pub head: RequestHead,
    /// Path and query for the worker.
    pub target: String,
    pub body: Body,
    /// The client's connection may bring another request afterwards.
    pub keep_alive: bool,
    pub account: Account,
}

/// Why a request has no answer yet.
pub(crate) enum Failure {
    Reject(Reject),
    /// Nobody is left to answer to.
    Gone,
}

impl From<Reject> for Failure {
    fn from(error: Reject) -> Self {
        Self::Reject(error)
    }
}

/// Serves a routed call. On an error the account is closed and the caller renders the error.
pub(crate) async fn serve(
    core: &Core,
    client: &mut Client,
    mut call: Call,
) -> Result<After, Failure> {
    match attempt(core, client, &mut call).await {
        Ok(answered) if answered.head.status == 101 => {
            // Boxed, because it is rare and would make every call's state larger.
            Ok(Box::pin(tunnel::join(client, call.account, answered)).await)
        }
        Ok(answered) => {
            if client.begun.is_some()
                && let Some(error) = progress::misfit(&answered.head)
            {
                return Err(call.refuse(error));
            }
            let (head, keep_alive) = (call.head, call.keep_alive);
            let account = call.account;
            Ok(answer(
                core,
                client,
                &head,
                Whose::Call(account),
                answered,
                keep_alive,
            )
            .await)
        }
        Err(Failure::Reject(error)) => Err(call.refuse(error)),
        Err(Failure::Gone) => Err(Failure::Gone),
    }
}

async fn attempt(core: &Core, client: &mut Client, call: &mut Call) -> Result<Answered, Failure> {
    let deadline = queue_deadline(call)?;
    core.budget.deposit();
    let mut worker = enter(client, call, deadline, false).await?;
    let mut upload = begin(core, client, call, &worker.upstream).await?;
    let repeatable = call.head.is_idempotent() && call.head.framer.is_done();
    let to_head = call.head.method() == "HEAD";
    let mut written = false;
    for attempt in 1.. {
        let (mut line, connect) = match open(core, &worker.upstream).await {
            Ok(opened) => opened,
            Err(error) => {
                let reason = format!("worker {} cannot be reached: {error}", worker.pod_id);
                call.account.function.eject(worker.lease_id, reason.clone());
                call.account.slot = None;
                if attempt >= ATTEMPTS_MAX || !core.withdraw_retry() {
                    return Err(Reject::worker_failed(reason).into());
                }
                worker = enter(client, call, deadline, true).await?;
                continue;
            }
        };
        let asked = exchange::ask(client, &mut line, &mut upload, core.patience(), to_head).await;
        call.account.bytes_in = upload.pump.bytes;
        let why = match asked {
            Ok(head) if head.status == 101 && call.upgrade().is_none() => io::Error::new(
                io::ErrorKind::InvalidData,
                "it changed the protocol unasked",
            ),
            Ok(head) => {
                let failed = head.status >= 500 && head.status != 501;
                core.judge(call, &worker, failed.then_some("a status of 5xx"));
                return Ok(Answered {
                    head,
                    line,
                    upload,
                    home: worker.upstream.clone(),
                    connect,
                });
            }
            Err(Miss::Gone) => return Err(Failure::Gone),
            Err(Miss::Rejected(error)) => return Err(error.into()),
            Err(Miss::Late) => {
                core.judge(call, &worker, Some("no answer in time"));
                let message = format!("worker {} did not answer in time", worker.pod_id);
                return Err(Reject::new(504, "worker_timeout", message).into());
            }
            Err(Miss::Worker(why)) => why,
        };
        // A worker that answered nothing on a fresh connection is given one more try, no more: the
        // request itself may be what ends it.
        let sent = upload.pump.has_written();
        if !line.reused {
            core.judge(call, &worker, Some("no answer"));
        }
        let again = !sent || (repeatable && (line.reused || !written));
        written |= sent && !line.reused;
        if !again || attempt >= ATTEMPTS_MAX || !upload.rewind() || !core.withdraw_retry() {
            let message = format!("worker {} failed before it answered: {why}", worker.pod_id);
            return Err(Reject::worker_failed(message).into());
        }
        // A resting connection had died: the others are of the same age.
        worker.upstream.clear();
    }
    Err(Reject::worker_failed("no attempt was left").into())
}

/// When the call gives up waiting for a slot.
fn queue_deadline(call: &Call) -> Result<Instant, Reject> {
    let policy = call.account.function.definition().policy.queue_timeout;
    let client = headers::client_timeout(&call.head)?;
    Ok(call.account.started + client.map_or(policy, |client| client.min(policy)))
}

/// Takes a slot, or waits for one; the account holds it.
async fn enter(
    client: &mut Client,
    call: &mut Call,
    deadline: Instant,
    again: bool,
) -> Result<Arc<Worker>, Failure> {
    let slot = match call.account.function.admit(again) {
        Admission::Slot(slot) => slot,
        Admission::Refused(error) => return Err(error.into()),
        Admission::Wait(waiter) => park(client, call, waiter, deadline).await?,
    };
    let granted = *call.account.granted.get_or_insert_with(Instant::now);
    if slot.start != Start::Warm {
        let stats = &call.account.function.stats;
        stats.note_start(granted - call.account.started);
    }
    let worker = slot.worker.clone();
    call.account.slot = Some(slot);
    Ok(worker)
}

/// Waits in line; the client may leave meanwhile.
async fn park(
    client: &mut Client,
    call: &Call,
    mut waiter: Waiter,
    deadline: Instant,
) -> Result<Slot, Failure> {
    client.wire.shrink();
    if progress::is_wanted(&call.head) {
        // Boxed, because it is rare and would make every parked call larger.
        return Box::pin(park_aloud(client, call, waiter, deadline)).await;
    }
    let last = last_moment(deadline);
    if let Some(slot) = wait(client, &mut waiter, last).await {
        return slot;
    }
    waiter.ask_why();
    wait(client, &mut waiter, deadline)
        .await
        .unwrap_or_else(|| Err(Failure::Reject(waiter.too_late())))
}

/// When a call that must have a slot by then asks why it has none: late, for it is the latest
/// reason that counts, and early enough for an answer. Calls that have the policy's whole time
/// hear of the request for their worker before that.
fn last_moment(deadline: Instant) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    deadline - WHY_LEAD.min(left / 2)
}

/// Waits in line and tells the client where it stands.
async fn park_aloud(
    client: &mut Client,
    call: &Call,
    mut waiter: Waiter,
    deadline: Instant,
) -> Result<Slot, Failure> {
    let started = Instant::now();
    let id = &call.account.request_id;
    if client.begun.is_none() && !progress::begin(client, &call.head, id, !call.keep_alive).await {
        return Err(Failure::Gone);
    }
    let last = last_moment(deadline);
    let mut asked = false;
    loop {
        if !progress::comment(client, &waiter, started.elapsed()).await {
            return Err(Failure::Gone);
        }
        let mut until = deadline.min(Instant::now() + progress::COMMENT_EVERY);
        if !asked && last <= until {
            if let Some(slot) = wait(client, &mut waiter, last).await {
                return slot;
            }
            waiter.ask_why();
            asked = true;
            until = deadline;
        }
        if let Some(slot) = wait(client, &mut waiter, until).await {
            return slot;
        }
        if until == deadline {
            return Err(Failure::Reject(waiter.too_late()));
        }
    }
}

/// Waits in line until a time; None when that has come.
async fn wait(
    client: &mut Client,
    waiter: &mut Waiter,
    until: Instant,
) -> Option<Result<Slot, Failure>> {
    let slot = poll_fn(|cx| {
        if let Poll::Ready(slot) = waiter.poll(cx) {
            return Poll::Ready(Some(slot.map_err(Failure::Reject)));
        }
        if client.poll_gone(cx).is_ready() {
            return Poll::Ready(Some(Err(Failure::Gone)));
        }
        client.timer.poll(cx, until).map(|()| None)
    })
    .await;
    client.unwatch();
    slot
}

/// A connection to the worker and the time that opening it took.
pub(crate) async fn open(core: &Core, upstream: &Upstream) -> io::Result<(Line, Duration)> {
    if let Some(line) = upstream.reuse() {
        return Ok((line, Duration::ZERO));
    }
    let started = Instant::now();
    // Boxed, because it is rare and would make every call's state larger.
    let line = Box::pin(upstream.connect(core.config.connect_timeout)).await?;
    Ok((line, started.elapsed()))
}

/// The request as the worker gets it; takes the body out of the call.
async fn begin(
    core: &Core,
    client: &mut Client,
    call: &mut Call,
    upstream: &Upstream,
) -> Result<Upload, Failure> {
    if !client.want_body().await {
        return Err(Failure::Gone);
    }
    let body = std::mem::replace(&mut call.body, Body::Unread);
    let sent = match (&body, client.body) {
        (Body::Unread, _) => Sent::AsItCame,
        (Body::Json(data), _) => Sent::Json(data.len() as u64),
        (Body::Begun(_), _) if matches!(call.head.framer, Framer::Chunked(_)) => Sent::AsItCame,
        (Body::Begun(data), Framer::Length(left)) => Sent::Length(data.len() as u64 + left),
        (Body::Begun(data), _) => Sent::Length(data.len() as u64),
    };
    let coding = match &body {
        Body::Json(_) => Coding::Raw,
        Body::Unread | Body::Begun(_) => Coding::of_upload(&call.head.framer),
    };
    let outgoing = Outgoing {
        target: &call.target,
        request_id: &call.account.request_id,
        sent,
        host: &upstream.address,
        upgrade: call.upgrade(),
    };
    let head = headers::write_request(&call.head, &outgoing);
    let mut pump = Pump::new(head, coding, core.config.body_bytes_max);
    match &body {
        Body::Begun(data) | Body::Json(data) => pump.push(data),
        Body::Unread => {}
    }
    let mut upload = Upload::new(pump, core.config.body_bytes_max);
    upload.prime(client).map_err(|miss| match miss {
        Miss::Rejected(error) => Failure::Reject(error),
        _ => Failure::Gone,
    })?;
    Ok(upload)
}

impl Call {
    /// Closes the account of a call that gets this error for an answer.
    fn refuse(mut self, error: Reject) -> Failure {
        self.account.status = error.status;
        self.account.close(Outcome::Refused);
        error.into()
    }

    /// The protocol that the client asks to change to.
    pub(crate) fn upgrade(&self) -> Option<&[u8]> {
        let wanted = self.head.get(Known::Upgrade);
        wanted.filter(|_| self.head.upgrade)
    }
}

impl Core {
    fn withdraw_retry(&self) -> bool {
        let granted = self.budget.withdraw();
        if granted {
            self.stats.retries.fetch_add(1, Ordering::Relaxed);
        }
        granted
    }

    fn judge(&self, call: &Call, worker: &Worker, failure: Option<&str>) {
        let function = &call.account.function;
        function.judge(worker, failure, self.config.eject_failures);
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience {
            first_byte: self.config.first_byte_timeout,
            idle: self.config.idle_timeout,
        }
    }
}
