//! Answers that the data plane gives itself: the one place where an error becomes a response.
//! Must never answer a call that a worker has begun to answer.

use std::borrow::Cow;

use http::StatusCode;
use serde::Serialize;

use crate::headers::{push, push_date, push_field, push_status};

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// HTTP status.
    pub status: u16,
    /// Machine-readable, stable code.
    pub code: Cow<'static, str>,
    /// What is wrong, for a person.
    pub message: Cow<'static, str>,
    /// When another attempt makes sense, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl Reject {
    /// An error without a hint for a retry.
    pub fn new(
        status: u16,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            retry_after_ms: None,
        }
    }

    pub(crate) fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "bad_request", message)
    }

    pub(crate) fn function_not_found(key: &str) -> Self {
        Self::new(
            404,
            "function_not_found",
            format!("function {key} does not exist"),
        )
    }

    pub(crate) fn body_too_large(limit: u64) -> Self {
        let message = format!("the request body is over the limit of {limit} bytes");
        Self::new(413, "body_too_large", message)
    }

    pub(crate) fn worker_failed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(502, "worker_failed", message)
    }

    pub(crate) fn retry_after(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }
}

/// The shape of error bodies on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorShape {
    Platform,
    OpenAi,
}

#[derive(Serialize)]
struct PlatformError<'a> {
    code: &'a str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct Envelope<T> {
    error: T,
}

/// What an answer that the data plane gives itself looks like around its body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub request_id: &'a str,
    /// No request is taken after this one.
    pub close: bool,
    /// It answers a HEAD request: the body is left out.
    pub to_head: bool,
}

/// Renders an error; the request id is in the body and in the header.
pub(crate) fn reject(error: &Reject, shape: ErrorShape, frame: Frame<'_>) -> Vec<u8> {
    let body = error_body(error, shape, frame.request_id);
    let retry_after = error.retry_after_ms.map(|ms| {
        let seconds = ms.div_ceil(1000).max(1);
        format!("retry-after: {seconds}\r\n")
    });
    let more = retry_after.unwrap_or_default();
    render(error.status, "application/json", &body, &more, frame)
}

/// The JSON that tells an error.
pub(crate) fn error_body(error: &Reject, shape: ErrorShape, request_id: &str) -> Vec<u8> {
    let body = match shape {
        ErrorShape::Platform => serde_json::to_vec(&Envelope {
            error: PlatformError {
                code: &error.code,
                message: &error.message,
                retry_after_ms: error.retry_after_ms,
                request_id,
            },
        }),
        ErrorShape::OpenAi => serde_json::to_vec(&Envelope {
            error: OpenAiError {
                message: &error.message,
                kind: openai_kind(error.status),
                param: (error.code == "model_not_found").then_some("model"),
                code: &error.code,
                retry_after_ms: error.retry_after_ms,
                request_id,
            },
        }),
    };
    // Strings and numbers always have a JSON form.
    body.unwrap_or_default()
}

fn openai_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        _ => "server_error",
    }
}

/// A short text answer such as that of the health routes.
pub(crate) fn text(body: &str, frame: Frame<'_>) -> Vec<u8> {
    // Two gateways may share a port: whose answer it is must be told.
    let whose = format!("x-inferx-process: {}\r\n", std::process::id());
    let kind = "text/plain; charset=utf-8";
    render(200, kind, body.as_bytes(), &whose, frame)
}

fn render(status: u16, kind: &str, body: &[u8], more_fields: &str, frame: Frame<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + body.len());
    push_status(&mut out, status);
    let reason = StatusCode::from_u16(status).ok();
    let reason = reason.and_then(|status| status.canonical_reason());
    push_field(&mut out, reason.unwrap_or("Error").as_bytes(), b"");
    push_field(&mut out, b"content-type: ", kind.as_bytes());
    push(&mut out, format_args!("content-length: {}\r\n", body.len()));
    push_field(&mut out, b"x-request-id: ", frame.request_id.as_bytes());
    out.extend_from_slice(more_fields.as_bytes());
    push_date(&mut out);
    if frame.close {
        push_field(&mut out, b"connection: ", b"close");
    }
    out.extend_from_slice(b"\r\n");
    if !frame.to_head {
        out.extend_from_slice(body);
    }
    out
}
