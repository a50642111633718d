//! The header fields that end at this hop, and those that the data plane adds.
//! Must never change a field that belongs to the client and the worker.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, TE};

use crate::reply::{Reject, X_REQUEST_ID};

pub(crate) static X_INFERX_POD: HeaderName = HeaderName::from_static("x-inferx-pod");
pub(crate) static X_INFERX_START: HeaderName = HeaderName::from_static("x-inferx-start");
pub(crate) static X_TCPCONN_LATENCY: HeaderName = HeaderName::from_static("x-tcpconn-latency");
pub(crate) static X_TTFT_LATENCY: HeaderName = HeaderName::from_static("x-ttft-latency");
static X_INFERX_TIMEOUT: HeaderName = HeaderName::from_static("x-inferx-timeout");
static TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Removes what concerns only the connection on which the message came.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let accepts_trailers = headers.get(TE).is_some_and(|te| {
        te.as_bytes()
            .to_ascii_lowercase()
            .windows(8)
            .any(|at| at == b"trailers")
    });
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        for option in value.as_bytes().split(|&byte| byte == b',') {
            if let Ok(name) = HeaderName::from_bytes(option.trim_ascii()) {
                named.push(name);
            }
        }
    }
    named.extend(
        headers
            .keys()
            .filter(|name| ends_here(name.as_str()))
            .cloned(),
    );
    for name in named {
        headers.remove(name);
    }
    if accepts_trailers {
        headers.insert(TE, TRAILERS.clone());
    }
}

fn ends_here(name: &str) -> bool {
    matches!(
        name,
        "connection" | "keep-alive" | "te" | "transfer-encoding" | "upgrade" | "expect"
    ) || name.starts_with("proxy-")
}

/// The client's request id when it is a sensible one, otherwise a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(&X_REQUEST_ID) {
        Some(id) if is_request_id(id.as_bytes()) => id.clone(),
        _ => new_request_id(),
    }
}

fn is_request_id(id: &[u8]) -> bool {
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(valid)
}

/// Unique among all gateways: 64 random bits of this process and a counter.
fn new_request_id() -> HeaderValue {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0_u8));
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut text = [0_u8; 32];
    for (at, digit) in text.iter_mut().enumerate() {
        let half = if at < 16 { *PROCESS } else { count };
        let nibble = (half >> (60 - 4 * (at % 16))) & 15;
        *digit = b"0123456789abcdef"[nibble as usize];
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from(count))
}

/// The longest wait that the client accepts (`X-Inferx-Timeout`, in seconds).
pub(crate) fn client_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Reject> {
    let Some(value) = headers.get(&X_INFERX_TIMEOUT) else {
        return Ok(None);
    };
    let seconds = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<f64>().ok());
    match seconds {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            Ok(Some(Duration::from_secs_f64(seconds.min(1e6))))
        }
        _ => Err(Reject::bad_request(
            "X-Inferx-Timeout: expected seconds as a number >= 0",
        )),
    }
}
