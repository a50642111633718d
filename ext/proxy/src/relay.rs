//! Bodies on their way: the upload to a worker and the answer back, frame by frame.
//! Must never hold more than the frame in hand, and must end the call's account exactly once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::account::{Account, Outcome};
use crate::upstream::{Line, Upstream};

/// What went wrong with an upload, and how much of it was seen.
#[derive(Debug, Default)]
pub(crate) struct UploadState {
    fault: AtomicU8,
    pub bytes: AtomicU64,
}

/// Why an upload ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UploadFault {
    TooLarge = 1,
    Malformed = 2,
}

impl UploadState {
    pub(crate) fn fault(&self) -> Option<UploadFault> {
        match self.fault.load(Ordering::Acquire) {
            1 => Some(UploadFault::TooLarge),
            2 => Some(UploadFault::Malformed),
            _ => None,
        }
    }
}

/// The body of a request to a worker: bytes in hand, then the rest of the client's upload.
#[derive(Debug)]
pub(crate) struct RequestBody {
    first: std::collections::VecDeque<Bytes>,
    rest: Option<Incoming>,
    left: u64,
    state: Arc<UploadState>,
}

impl RequestBody {
    /// A body that ends with the bytes in hand.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        let first = if bytes.is_empty() { None } else { Some(bytes) };
        let first = first.into_iter().collect();
        Self {
            first,
            rest: None,
            left: 0,
            state: Arc::default(),
        }
    }

    /// Bytes in hand followed by what still comes, which may be at most `limit` bytes.
    pub(crate) fn stream(
        first: std::collections::VecDeque<Bytes>,
        rest: Incoming,
        limit: u64,
        state: Arc<UploadState>,
    ) -> Self {
        let rest = (!rest.is_end_stream()).then_some(rest);
        Self {
            first,
            rest,
            left: limit,
            state,
        }
    }

    fn fail(&mut self, fault: UploadFault, message: &'static str) -> io::Error {
        self.state.fault.store(fault as u8, Ordering::Release);
        self.rest = None;
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(bytes) = self.first.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        let Some(rest) = &mut self.rest else {
            return Poll::Ready(None);
        };
        match ready!(Pin::new(rest).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let size = frame.data_ref().map_or(0, |data| data.len() as u64);
                if size > self.left {
                    let error = self.fail(UploadFault::TooLarge, "the body is over the limit");
                    return Poll::Ready(Some(Err(error)));
                }
                self.left -= size;
                self.state.bytes.fetch_add(size, Ordering::Relaxed);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(_)) => {
                let error = self.fail(UploadFault::Malformed, "the upload broke off");
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.rest = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let first: u64 = self.first.iter().map(|bytes| bytes.len() as u64).sum();
        let rest = self
            .rest
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(first + rest.lower());
        if let Some(upper) = rest.upper() {
            hint.set_upper(first + upper);
        }
        hint
    }
}

/// The body of a worker's answer. It drives the worker's connection while it is read, so a slow
/// client slows the worker; dropping it closes that connection unless the answer was complete.
pub(crate) struct RelayBody {
    incoming: Incoming,
    line: Option<Box<Line>>,
    home: Arc<Upstream>,
    account: Option<Account>,
    idle_timeout: Duration,
    silent_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    failure: Option<io::Error>,
}

impl RelayBody {
    pub(crate) fn new(
        incoming: Incoming,
        line: Option<Box<Line>>,
        home: Arc<Upstream>,
        account: Option<Account>,
        idle_timeout: Duration,
    ) -> Self {
        let mut body = Self {
            incoming,
            line,
            home,
            account,
            idle_timeout,
            silent_since: None,
            timer: None,
            failure: None,
        };
        if body.incoming.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The answer is complete: the connection goes home, the slot to the next call.
    fn finish(&mut self) {
        if let Some(line) = self.line.take() {
            self.home.keep(line);
        }
        if let Some(account) = self.account.take() {
            account.close(Outcome::Complete);
        }
    }

    /// The answer broke off. The error comes one turn later, so that the frames which did arrive
    /// are written to the client before its connection is cut.
    fn broken(&mut self, message: String, cx: &Context<'_>) {
        self.line = None;
        if let Some(account) = self.account.take() {
            account.close(Outcome::WorkerBroke);
        }
        self.failure = Some(io::Error::new(io::ErrorKind::ConnectionAborted, message));
        cx.waker().wake_by_ref();
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if let Some(line) = &mut self.line {
            line.drive(cx);
        }
        Pin::new(&mut self.incoming).poll_frame(cx)
    }

    /// Ready when the worker has been silent for too long.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.silent_since.get_or_insert_with(Instant::now);
        let deadline = since + self.idle_timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // Frames came since the timer was set.
            timer.as_mut().reset(deadline);
        }
    }
}

impl Body for RelayBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if let Some(failure) = this.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        match this.poll_incoming(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silent_since = None;
                if let (Some(account), Some(data)) = (&mut this.account, frame.data_ref()) {
                    account.bytes_out += data.len() as u64;
                }
                if this.incoming.is_end_stream() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.broken(format!("the worker broke off: {error}"), cx);
                Poll::Pending
            }
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(this.poll_silence(cx));
                this.broken("the worker fell silent".to_owned(), cx);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
