//! What a streaming client hears while its worker starts, when it has asked for it.
//! Must never begin an answer that nobody asked to begin early.

use std::time::Duration;

use crate::client::Client;
use crate::dispatch::Waiter;
use crate::framing::{AnswerHead, Known, RequestHead};
use crate::headers::{push, push_date, push_field, push_status};
use crate::pump::{Coding, push_chunk};
use crate::reply::{ErrorShape, Reject, error_body};

/// Time between two comments; proxies on the way often cut after 30 s of silence.
pub(crate) const COMMENT_EVERY: Duration = Duration::from_secs(10);

/// Whether the client asked to hear about the start of its worker.
pub(crate) fn is_wanted(head: &RequestHead) -> bool {
    let wanted = head.get(Known::Progress);
    wanted.is_some_and(|value| value.eq_ignore_ascii_case(b"sse"))
}

/// Begins the answer; how the rest of it leaves is noted in the client.
pub(crate) async fn begin(client: &mut Client, head: &RequestHead, id: &str, close: bool) -> bool {
    let mut text = Vec::with_capacity(256);
    push_status(&mut text, 200);
    push_field(&mut text, b"OK", b"");
    push_field(&mut text, b"content-type: ", b"text/event-stream");
    push_field(&mut text, b"cache-control: ", b"no-cache");
    push_field(&mut text, b"x-request-id: ", id.as_bytes());
    push_date(&mut text);
    let coding = if head.version_11 {
        push_field(&mut text, b"transfer-encoding: ", b"chunked");
        Coding::Chunked
    } else {
        Coding::Plain
    };
    if close {
        push_field(&mut text, b"connection: ", b"close");
    }
    text.extend_from_slice(b"\r\n");
    client.begun = Some(coding);
    client.send(&text).await
}

/// Tells where the call stands in the line.
pub(crate) async fn comment(client: &mut Client, waiter: &Waiter, waited: Duration) -> bool {
    let place = waiter.place();
    let mut line = Vec::new();
    let state = if place.workers == 0 {
        "starting"
    } else {
        "queued"
    };
    push(
        &mut line,
        format_args!(": state={state} position={}", place.position + 1),
    );
    if let Some(expected) = place.expected {
        let left = expected.saturating_sub(waited).as_secs_f64();
        push(&mut line, format_args!(" expected_s={left:.1}"));
    }
    line.extend_from_slice(b"\n\n");
    send(client, &line, false).await
}

/// Ends a begun answer with an error event.
pub(crate) async fn fail(client: &mut Client, error: &Reject, shape: ErrorShape, id: &str) -> bool {
    let mut event = b"event: error\ndata: ".to_vec();
    event.extend_from_slice(&error_body(error, shape, id));
    event.extend_from_slice(b"\n\n");
    send(client, &event, true).await
}

async fn send(client: &mut Client, text: &[u8], last: bool) -> bool {
    let mut out = Vec::with_capacity(text.len() + 16);
    if client.begun == Some(Coding::Chunked) {
        push_chunk(&mut out, text);
        if last {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    } else {
        out.extend_from_slice(text);
    }
    client.send(&out).await
}

/// Why this answer cannot go on where comments were sent before.
pub(crate) fn misfit(head: &AnswerHead) -> Option<Reject> {
    if !(200..300).contains(&head.status) {
        let message = format!("the worker answered with status {}", head.status);
        return Some(Reject::new(head.status, "worker_error", message));
    }
    let kind = head.get(Known::ContentType).unwrap_or_default();
    let stream = b"text/event-stream";
    if kind.len() < stream.len() || !kind[..stream.len()].eq_ignore_ascii_case(stream) {
        let message = "the worker's answer is not an event stream, which progress was asked for";
        return Some(Reject::new(502, "worker_error", message));
    }
    None
}
