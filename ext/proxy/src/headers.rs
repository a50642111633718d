//! Heads as they leave: without the fields that end at this hop, with those the data plane adds.
//! Must never change a field that belongs to the client and the worker.

use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::framing::{AnswerHead, Framer, Known, RequestHead};
use crate::reply::Reject;

/// How the body of a request is framed on its way to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// As the client framed it.
    AsItCame,
    /// With another length, as JSON.
    Json(u64),
    /// With another length.
    Length(u64),
}

/// A request's head as a worker gets it.
pub(crate) struct Outgoing<'a> {
    pub target: &'a str,
    pub request_id: &'a str,
    pub sent: Sent,
    /// What stands for `Host` when the client named none.
    pub host: &'a (dyn std::fmt::Display + Sync),
    /// The protocol that the client asks to change to.
    pub upgrade: Option<&'a [u8]>,
}

/// Renders the head of a request to a worker.
pub(crate) fn write_request(head: &RequestHead, out: &Outgoing<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(head.raw.len() + out.target.len() + 128);
    for part in [head.method(), " ", out.target, " HTTP/1.1\r\n"] {
        text.extend_from_slice(part.as_bytes());
    }
    let mut has_host = false;
    for field in &head.fields {
        let value = field.value.of(&head.raw);
        match field.known {
            Known::Connection | Known::HopByHop | Known::Upgrade | Known::Expect => {}
            Known::RequestId | Known::TransferEncoding => {}
            Known::ContentLength if out.sent == Sent::AsItCame => {
                push_field(&mut text, b"content-length: ", value);
            }
            Known::ContentLength => {}
            Known::ContentType if matches!(out.sent, Sent::Json(_)) => {}
            Known::Te if accepts_trailers(value) => text.extend_from_slice(b"te: trailers\r\n"),
            Known::Te => {}
            Known::TraceParent => push_trace(&mut text, value),
            _ if head.ends_here(field) => {}
            known => {
                has_host |= known == Known::Host;
                text.extend_from_slice(field.line.of(&head.raw));
            }
        }
    }
    if !has_host {
        push(&mut text, format_args!("host: {}\r\n", out.host));
    }
    push_field(&mut text, b"x-request-id: ", out.request_id.as_bytes());
    match out.sent {
        Sent::AsItCame if matches!(head.framer, Framer::Chunked(_)) => {
            text.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        Sent::AsItCame => {}
        Sent::Length(length) => push(&mut text, format_args!("content-length: {length}\r\n")),
        Sent::Json(length) => push(
            &mut text,
            format_args!("content-length: {length}\r\ncontent-type: application/json\r\n"),
        ),
    }
    if let Some(protocol) = out.upgrade {
        text.extend_from_slice(b"connection: upgrade\r\n");
        push_field(&mut text, b"upgrade: ", protocol);
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// What the data plane says about an answer.
pub(crate) struct Told<'a> {
    request_id: &'a str,
    /// The answer leaves in chunks.
    chunked: bool,
    /// No request is taken after this one.
    close: bool,
    /// Who served it, when it is a call.
    pub served: Option<Served<'a>>,
    /// The protocol that this answer changes to.
    pub upgrade: Option<&'a [u8]>,
}

/// Who served a call, and how long that took.
pub(crate) struct Served<'a> {
    pub pod: &'a str,
    pub start: &'static str,
    pub connect: Duration,
    pub first_byte: Duration,
}

impl<'a> Told<'a> {
    pub(crate) fn plain(request_id: &'a str, chunked: bool, close: bool) -> Self {
        Self {
            request_id,
            chunked,
            close,
            served: None,
            upgrade: None,
        }
    }
}

/// Renders the head of a worker's answer to the client.
pub(crate) fn write_answer(head: &AnswerHead, told: &Told<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(head.raw.len() + 1536);
    push_status(&mut text, head.status);
    text.extend_from_slice(head.reason());
    text.extend_from_slice(b"\r\n");
    let (mut has_date, mut has_length) = (false, false);
    for field in &head.fields {
        match field.known {
            Known::Connection | Known::HopByHop | Known::Upgrade | Known::Te => {}
            Known::RequestId | Known::TransferEncoding => {}
            Known::ContentLength if head.status == 204 || has_length => {}
            Known::ContentLength => {
                has_length = true;
                push_field(&mut text, b"content-length: ", field.value.of(&head.raw));
            }
            _ if head.ends_here(field) => {}
            known => {
                has_date |= known == Known::Date;
                text.extend_from_slice(field.line.of(&head.raw));
            }
        }
    }
    if !has_date {
        push_date(&mut text);
    }
    push_field(&mut text, b"x-request-id: ", told.request_id.as_bytes());
    if let Some(served) = &told.served {
        push_number(
            &mut text,
            b"x-ttft-latency: ",
            served.first_byte.as_millis(),
        );
        push_number(
            &mut text,
            b"x-tcpconn-latency: ",
            served.connect.as_millis(),
        );
        push_field(&mut text, b"x-inferx-pod: ", served.pod.as_bytes());
        push_field(&mut text, b"x-inferx-start: ", served.start.as_bytes());
    }
    if told.chunked {
        text.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if let Some(protocol) = told.upgrade {
        text.extend_from_slice(b"connection: upgrade\r\n");
        push_field(&mut text, b"upgrade: ", protocol);
    } else if told.close {
        text.extend_from_slice(b"connection: close\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text
}

pub(crate) fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = out.write_fmt(text);
}

pub(crate) fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn push_number(out: &mut Vec<u8>, name: &[u8], value: u128) {
    if value < 10 {
        push_field(out, name, &[b'0' + value as u8]);
    } else {
        out.extend_from_slice(name);
        push(out, format_args!("{value}\r\n"));
    }
}

pub(crate) fn push_status(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let digits = [status / 100, status / 10 % 10, status % 10];
    out.extend(digits.map(|digit| b'0' + digit as u8));
    out.push(b' ');
}

/// Appends the date, which is formatted once a second and thread.
pub(crate) fn push_date(out: &mut Vec<u8>) {
    thread_local! {
        static DATE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(of, line)| {
        if *of != second || line.is_empty() {
            *of = second;
            line.clear();
            push(
                line,
                format_args!("date: {}\r\n", httpdate::fmt_http_date(now)),
            );
        }
        out.extend_from_slice(line);
    });
}

fn accepts_trailers(value: &[u8]) -> bool {
    let value = value.to_ascii_lowercase();
    value.windows(8).any(|at| at == b"trailers")
}

/// Continues a trace: the same trace and flags, with this hop as the parent of what follows.
fn push_trace(out: &mut Vec<u8>, value: &[u8]) {
    // version "-" trace id "-" parent id "-" flags
    let hex = |part: &[u8]| {
        part.iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let valid = value.len() == 55
        && (value[2], value[35], value[52]) == (b'-', b'-', b'-')
        && hex(&value[..2])
        && hex(&value[3..35])
        && hex(&value[36..52])
        && hex(&value[53..])
        && &value[..2] != b"ff"
        && value[3..35].iter().any(|&byte| byte != b'0');
    if !valid {
        return;
    }
    out.extend_from_slice(b"traceparent: ");
    out.extend_from_slice(&value[..36]);
    push(out, format_args!("{:016x}", span_id()));
    out.extend_from_slice(&value[52..]);
    out.extend_from_slice(b"\r\n");
}

static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u8));
static COUNTER: AtomicU64 = AtomicU64::new(1);

fn span_id() -> u64 {
    // An odd factor keeps distinct counts distinct; zero is not a legal id.
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    (*PROCESS ^ count.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1)
}

/// The client's request id when it is a sensible one, otherwise a new one.
pub(crate) fn request_id(head: &RequestHead) -> Box<str> {
    match head.get(Known::RequestId) {
        Some(id) if is_request_id(id) => String::from_utf8_lossy(id).into(),
        _ => new_request_id(),
    }
}

fn is_request_id(id: &[u8]) -> bool {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(valid)
}

/// Unique among all gateways: 64 random bits of this process and a counter.
pub(crate) fn new_request_id() -> Box<str> {
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut text = String::with_capacity(32);
    for half in [*PROCESS, count] {
        for shift in (0..16).rev() {
            let nibble = (half >> (4 * shift)) & 15;
            text.push(b"0123456789abcdef"[nibble as usize] as char);
        }
    }
    text.into()
}

/// The longest wait that the client accepts (`X-Inferx-Timeout`, in seconds).
pub(crate) fn client_timeout(head: &RequestHead) -> Result<Option<Duration>, Reject> {
    let Some(value) = head.get(Known::Timeout) else {
        return Ok(None);
    };
    let seconds = std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse::<f64>().ok());
    match seconds {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            Ok(Some(Duration::from_secs_f64(seconds.min(1e6))))
        }
        _ => Err(Reject::bad_request(
            "X-Inferx-Timeout: expected seconds as a number >= 0",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(fields: &str) -> String {
        let raw = format!("GET /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let head = RequestHead::parse(raw.into_bytes()).unwrap();
        let outgoing = Outgoing {
            target: "/b",
            request_id: "id",
            sent: Sent::AsItCame,
            host: &"worker",
            upgrade: None,
        };
        String::from_utf8(write_request(&head, &outgoing)).unwrap()
    }

    #[test]
    fn what_ends_at_this_hop_is_left_out_and_the_rest_kept() {
        assert_eq!(
            sent(
                "X-Kept: A  b\r\nConnection: x-gone, close\r\nX-Gone: 1\r\nProxy-Connection: x\r\n\
                  TE: gzip, Trailers\r\nUpgrade: h2c\r\nX-Request-Id: other\r\n"
            ),
            "GET /b HTTP/1.1\r\nhost: h\r\nx-kept: A  b\r\nte: trailers\r\nx-request-id: id\r\n\r\n"
        );
    }

    #[test]
    fn a_trace_is_continued_under_a_new_parent() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let text = sent(&format!("traceparent: {parent}\r\ntracestate: a=b\r\n"));
        let line = text
            .lines()
            .find(|line| line.starts_with("traceparent"))
            .unwrap();
        let (old, new) = (parent, &line["traceparent: ".len()..]);
        assert_eq!((&new[..36], &new[52..]), (&old[..36], &old[52..]));
        assert_ne!(new[36..52], old[36..52]);
        assert!(text.contains("tracestate: a=b"));
        for bad in [
            "x",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert!(!sent(&format!("traceparent: {bad}\r\n")).contains("traceparent"));
        }
    }
}
