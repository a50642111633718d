//! One request to a worker and its answer back, both bodies moving at the same time.
//! Must never outlive the client: when it has left, the worker's connection closes at once.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::framing::{AnswerHead, Framer};
use crate::pump::{Fault, Pump, Step};
use crate::reply::Reject;
use crate::upstream::Line;

/// The longest silences.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub first_byte: Duration,
    pub idle: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Miss {
    /// The client has left.
    Gone,
    /// The call cannot go on, whichever worker serves it.
    Rejected(Reject),
    /// The worker did not answer in time.
    Late,
    /// The worker failed before its answer began.
    Worker(io::Error),
}

/// The request on its way: its head, then its body.
#[derive(Debug)]
pub(crate) struct Upload {
    pub pump: Pump,
    limit: u64,
    done: bool,
    broken: bool,
    progress: u64,
    moved: Instant,
}

impl Upload {
    pub(crate) fn new(pump: Pump, limit: u64) -> Self {
        Self {
            pump,
            limit,
            done: false,
            broken: false,
            progress: u64::MAX,
            moved: Instant::now(),
        }
    }

    /// Adds what the client has sent already to the first write.
    pub(crate) fn prime(&mut self, client: &mut Client) -> Result<(), Miss> {
        let primed = self.pump.prime(&mut client.wire, &mut client.body);
        primed.map(|_| ()).map_err(|fault| miss(fault, self.limit))
    }

    /// Makes ready for another connection; false when bytes of the body are gone.
    pub(crate) fn rewind(&mut self) -> bool {
        (self.done, self.broken) = (false, false);
        self.pump.rewind()
    }

    /// Whether the worker has got everything.
    pub(crate) fn is_complete(&self) -> bool {
        self.done && !self.broken
    }

    /// Moves the upload on; Ready when the call is over because of it.
    fn poll(&mut self, cx: &mut Context<'_>, client: &mut Client, line: &mut Line) -> Poll<Miss> {
        while !self.done {
            let (wire, body) = (&mut client.wire, &mut client.body);
            match self.pump.poll(cx, wire, body, &mut line.wire.socket) {
                Poll::Ready(Ok(Step::Taken)) => {}
                Poll::Ready(Ok(Step::Done)) => self.done = true,
                // The worker may have answered before it stopped to listen.
                Poll::Ready(Err(Fault::Sink)) => (self.done, self.broken) = (true, true),
                Poll::Ready(Err(fault)) => return Poll::Ready(miss(fault, self.limit)),
                Poll::Pending => break,
            }
        }
        if self.done {
            return client.poll_gone(cx).map(|()| Miss::Gone);
        }
        if self.pump.progress() != self.progress {
            self.progress = self.pump.progress();
            self.moved = Instant::now();
        }
        if self.pump.blocked {
            return client.poll_hangup(cx).map(|()| Miss::Gone);
        }
        Poll::Pending
    }

    /// Whether it is the client that has to move next.
    fn waits_for_client(&self) -> bool {
        !self.done && !self.pump.blocked
    }
}

fn miss(fault: Fault, limit: u64) -> Miss {
    match fault {
        Fault::TooLarge => Miss::Rejected(Reject::body_too_large(limit)),
        Fault::Framing(refusal) => {
            let message = format!("the request body: {}", refusal.message);
            Miss::Rejected(Reject::bad_request(message))
        }
        Fault::Source | Fault::Sink => Miss::Gone,
    }
}

/// Sends the request and waits for the head of the answer.
pub(crate) async fn ask(
    client: &mut Client,
    line: &mut Line,
    upload: &mut Upload,
    patience: Patience,
    to_head: bool,
) -> Result<AnswerHead, Miss> {
    let late = Instant::now() + patience.first_byte;
    upload.moved = Instant::now();
    let answer = poll_fn(|cx| {
        if let Poll::Ready(miss) = upload.poll(cx, client, line) {
            return Poll::Ready(Err(miss));
        }
        if let Poll::Ready(answer) = line.poll_head(cx, to_head) {
            return Poll::Ready(answer.map_err(Miss::Worker));
        }
        let stalled = upload.moved + patience.idle;
        let deadline = if upload.waits_for_client() {
            late.min(stalled)
        } else {
            late
        };
        ready!(client.timer.poll(cx, deadline));
        Poll::Ready(Err(if deadline < late {
            Miss::Rejected(Reject::bad_request("the request body stalled"))
        } else {
            Miss::Late
        }))
    })
    .await;
    client.unwatch();
    answer
}

/// How the body of an answer ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Complete,
    /// The client has left, or does not read any more.
    Gone,
    /// The worker broke off, or fell silent.
    Broken,
}

/// The body of an answer on its way.
pub(crate) struct Download {
    pub line: Line,
    pub framer: Framer,
    pub pump: Pump,
}

impl Download {
    /// Passes the body on until all of it was taken from the worker; the last bytes are not
    /// written then.
    pub(crate) async fn pass(
        &mut self,
        client: &mut Client,
        upload: &mut Upload,
        idle: Duration,
    ) -> Ended {
        if upload.done {
            upload.pump.forget();
        }
        let (mut progress, mut deadline) = (u64::MAX, Instant::now());
        let ended = poll_fn(|cx| {
            let socket = &mut client.wire.socket;
            let wire = &mut self.line.wire;
            match self.pump.poll(cx, wire, &mut self.framer, socket) {
                Poll::Ready(Ok(_)) => return Poll::Ready(Ended::Complete),
                Poll::Ready(Err(Fault::Sink)) => return Poll::Ready(Ended::Gone),
                Poll::Ready(Err(_)) => return Poll::Ready(Ended::Broken),
                Poll::Pending => {}
            }
            if upload.poll(cx, client, &mut self.line).is_ready() {
                return Poll::Ready(Ended::Gone);
            }
            if self.pump.progress() != progress {
                progress = self.pump.progress();
                let now = Instant::now();
                deadline = now + idle;
                if client.timer.is_set(now, deadline) {
                    return Poll::Pending;
                }
            }
            ready!(client.timer.poll(cx, deadline));
            Poll::Ready(if self.pump.blocked {
                Ended::Gone
            } else {
                Ended::Broken
            })
        })
        .await;
        client.unwatch();
        ended
    }
}

/// Writes the last bytes of an answer, whose worker has been let go.
pub(crate) async fn flush(client: &mut Client, pump: &mut Pump, idle: Duration) -> Ended {
    let (mut progress, mut deadline) = (pump.progress(), Instant::now() + idle);
    poll_fn(|cx| {
        match pump.poll_flush(cx, &mut client.wire.socket) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ended::Complete),
            Poll::Ready(Err(_)) => return Poll::Ready(Ended::Gone),
            Poll::Pending => {}
        }
        if pump.progress() != progress {
            progress = pump.progress();
            deadline = Instant::now() + idle;
        }
        client.timer.poll(cx, deadline).map(|()| Ended::Gone)
    })
    .await
}
