//! The body of a client's request, whichever door it came through.
//! Must never hold more than the frame in hand.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::door::Readiness;

/// What a client uploads.
#[derive(Debug)]
pub(crate) enum ClientBody {
    /// Read from a client's connection.
    Wire(Incoming),
    /// Handed in frame by frame.
    Frames(Frames),
}

impl From<Incoming> for ClientBody {
    fn from(incoming: Incoming) -> Self {
        Self::Wire(incoming)
    }
}

/// Frames that somebody else reads from the client.
#[derive(Debug)]
pub(crate) struct Frames {
    frames: mpsc::Receiver<Bytes>,
    /// Told whenever there is room for another frame.
    readiness: Arc<Readiness>,
    call: u64,
    /// Bytes still to come, when the client said how many.
    left: Option<u64>,
    ended: bool,
}

impl Frames {
    pub(crate) fn new(
        frames: mpsc::Receiver<Bytes>,
        readiness: Arc<Readiness>,
        call: u64,
        length: Option<u64>,
    ) -> Self {
        Self {
            frames,
            readiness,
            call,
            left: length,
            ended: length == Some(0),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = ready!(self.frames.poll_recv(cx));
        self.readiness.tell(self.call);
        match (next, self.left) {
            (Some(data), None) => Poll::Ready(Some(Ok(Frame::data(data)))),
            (Some(data), Some(left)) if data.len() as u64 <= left => {
                self.left = Some(left - data.len() as u64);
                self.ended = self.left == Some(0);
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            (None, None | Some(0)) => {
                self.ended = true;
                Poll::Ready(None)
            }
            (Some(_) | None, Some(_)) => {
                self.ended = true;
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the upload broke off");
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Wire(incoming) => Pin::new(incoming)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(io::Error::other))),
            Self::Frames(frames) => frames.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Wire(incoming) => incoming.is_end_stream(),
            Self::Frames(frames) => frames.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Wire(incoming) => incoming.size_hint(),
            Self::Frames(frames) => frames
                .left
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
