//! A worker's answer on its way to the client.
//! Must never keep a worker, or a slot, for longer than it takes to read the answer from it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::account::{Account, Outcome};
use crate::client::Client;
use crate::exchange::{self, Download, Ended, Upload};
use crate::framing::{AnswerHead, Framer, Known, RequestHead};
use crate::headers::{self, Served, Told};
use crate::plane::Core;
use crate::pump::{Coding, Pump};
use crate::upstream::{Line, Upstream};
use crate::usage::Tail;

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// It can bring another request.
    KeepAlive,
    /// It is closed in good order.
    Close,
    /// It is cut: the client has left, or must see that its answer is not complete.
    Cut,
}

/// The head of a worker's answer and what belongs to it.
pub(crate) struct Answered {
    pub head: AnswerHead,
    pub line: Line,
    pub upload: Upload,
    pub home: Arc<Upstream>,
    pub connect: Duration,
}

/// Whom an answer belongs to.
pub(crate) enum Whose<'a> {
    Call(Account),
    /// A request to the control server, by its id.
    Control(&'a str),
}

/// Hands an answer to the client.
pub(crate) async fn answer(
    core: &Core,
    client: &mut Client,
    request: &RequestHead,
    mut whose: Whose<'_>,
    answered: Answered,
    keep_alive: bool,
) -> After {
    let Answered {
        head,
        line,
        mut upload,
        home,
        connect,
    } = answered;
    let (coding, chunked) = match head.framer {
        Framer::Chunked(_) if request.version_11 => (Coding::Raw, true),
        Framer::Chunked(_) => (Coding::Plain, false),
        Framer::UntilClose if request.version_11 => (Coding::Chunked, true),
        Framer::UntilClose | Framer::Length(_) => (Coding::Raw, false),
    };
    let close = !keep_alive || !upload.is_complete() && !client.body.is_done();
    let begun = client.begun;
    let (coding, chunked) = begun.map_or((coding, chunked), |begun| (begun, false));
    let (text, idle) = match &mut whose {
        Whose::Call(account) => {
            let text = tell(&head, account, connect, chunked, close);
            let text = if begun.is_some() { Vec::new() } else { text };
            (text, core.config.idle_timeout)
        }
        Whose::Control(id) => {
            let told = Told::plain(id, chunked, close);
            let text = headers::write_answer(&head, &told);
            (text, core.config.control_idle_timeout)
        }
    };
    let mut download = Download {
        line,
        framer: head.framer,
        pump: Pump::new(text, coding, u64::MAX),
    };
    if let Whose::Call(account) = &whose
        && account.metered
        && head.status == 200
    {
        download.pump.tail = Some(Tail::default());
    }
    let reusable = head.keep_alive;
    drop(head);
    let at_hand = download
        .pump
        .prime(&mut download.line.wire, &mut download.framer);
    let ended = match at_hand {
        Ok(true) => Ended::Complete,
        Ok(false) => download.pass(client, &mut upload, idle).await,
        Err(_) => {
            // The client gets the head before it sees the answer break off.
            exchange::flush(client, &mut download.pump, idle).await;
            Ended::Broken
        }
    };
    let Download { line, mut pump, .. } = download;
    if matches!(ended, Ended::Complete) && reusable && upload.is_complete() {
        home.keep(line);
    } else {
        drop(line);
    }
    if let Whose::Call(mut account) = whose {
        account.bytes_in = upload.pump.bytes;
        account.bytes_out = pump.bytes;
        let tokens = pump.tail.take().and_then(|tail| tail.total_tokens());
        account.tokens = tokens.unwrap_or_default();
        account.close(match ended {
            Ended::Complete => Outcome::Complete,
            Ended::Gone => Outcome::ClientGone,
            Ended::Broken => Outcome::WorkerBroke,
        });
    }
    match ended {
        Ended::Complete => match exchange::flush(client, &mut pump, idle).await {
            Ended::Complete if close || !client.body.is_done() => After::Close,
            Ended::Complete => After::KeepAlive,
            _ => After::Cut,
        },
        Ended::Gone | Ended::Broken => After::Cut,
    }
}

/// Notes the answer in the account and renders its head.
pub(crate) fn tell(
    head: &AnswerHead,
    account: &mut Account,
    connect: Duration,
    chunked: bool,
    close: bool,
) -> Vec<u8> {
    let now = Instant::now();
    account.first_byte = Some(now);
    account.status = head.status;
    let mut told = Told::plain(&account.request_id, chunked, close);
    if let Some(slot) = &account.slot {
        told.served = Some(Served {
            pod: &slot.worker.pod_id,
            start: slot.start.name(),
            connect,
            first_byte: now - account.started,
        });
    }
    told.upgrade = head.get(Known::Upgrade).filter(|_| head.status == 101);
    headers::write_answer(head, &told)
}
