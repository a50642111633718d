//! Answers that the data plane gives itself: the one place where an error becomes a response.
//! Must never answer a call that a worker has begun to answer.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use serde::Serialize;

use crate::link::Link;
use crate::relay::RelayBody;

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

pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Renders an error; `request_id` is in the body and in the header.
pub(crate) fn reject(
    error: &Reject,
    shape: ErrorShape,
    request_id: &HeaderValue,
) -> Response<Reply> {
    let id = request_id.to_str().unwrap_or_default();
    let body = match shape {
        ErrorShape::Platform => serde_json::to_vec(&Envelope {
            error: PlatformError {
                code: &error.code,
                message: &error.message,
                retry_after_ms: error.retry_after_ms,
                request_id: id,
            },
        }),
        ErrorShape::OpenAi => serde_json::to_vec(&Envelope {
            error: OpenAiError {
                message: &error.message,
                kind: openai_kind(error.status),
                param: (error.code == "model_not_found").then_some("model"),
                code: &error.code,
                retry_after_ms: error.retry_after_ms,
                request_id: id,
            },
        }),
    };
    let body = body.unwrap_or_default();
    let mut response = Response::new(Reply::full(Bytes::from(body)));
    *response.status_mut() =
        StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON.clone());
    headers.insert(X_REQUEST_ID.clone(), request_id.clone());
    if let Some(retry_after_ms) = error.retry_after_ms {
        headers.insert(
            RETRY_AFTER,
            HeaderValue::from(retry_after_ms.div_ceil(1000).max(1)),
        );
    }
    response
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
pub(crate) fn text(status: StatusCode, body: &'static str) -> Response<Reply> {
    let mut response = Response::new(Reply::full(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Asks that the connection be closed after this answer.
pub(crate) fn closing(mut response: Response<Reply>) -> Response<Reply> {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The body of every answer.
pub(crate) struct Reply {
    content: Content,
    link: Option<Arc<Link>>,
}

enum Content {
    Full(Option<Bytes>),
    Relay(Box<RelayBody>),
}

impl Reply {
    pub(crate) fn full(bytes: Bytes) -> Self {
        let bytes = (!bytes.is_empty()).then_some(bytes);
        Self {
            content: Content::Full(bytes),
            link: None,
        }
    }

    pub(crate) fn relay(body: RelayBody) -> Self {
        Self {
            content: Content::Relay(Box::new(body)),
            link: None,
        }
    }

    /// Keeps the connection marked as busy until this body has been sent or given up.
    pub(crate) fn holding(mut self, link: Arc<Link>) -> Self {
        self.link = Some(link);
        self
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(link) = &self.link {
            link.set_busy(false);
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.content {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Relay(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Full(bytes) => bytes.is_none(),
            Content::Relay(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Relay(body) => body.size_hint(),
        }
    }
}
