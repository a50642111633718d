//! The second door: calls that another HTTP server has read, handed in and answered frame by frame.
//! Must never wait for whoever hands them in, nor hold more than a few frames for it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use rustix::event::{EventfdFlags, eventfd};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::task::AbortHandle;

use crate::framing::{BodyKind, check_head};
use crate::link::Link;
use crate::plane::Core;
use crate::service::handle;
use crate::upload::{ClientBody, Frames};

const FRAMES_MAX: usize = 4;

/// Which calls have news since they were last asked about; woken through one eventfd.
#[derive(Debug)]
pub(crate) struct Readiness {
    calls: Mutex<BTreeSet<u64>>,
    wake: OwnedFd,
}

impl Readiness {
    pub(crate) fn tell(&self, call: u64) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.insert(call) && calls.len() == 1 {
            // The counter cannot overflow: it is at most 1 while calls wait.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    fn take(&self) -> Vec<u64> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counter = [0; 8];
        // Nothing to read means that nobody was told, which an empty set says as well.
        let _ = rustix::io::read(&self.wake, &mut counter);
        std::mem::take(&mut *calls).into_iter().collect()
    }
}

/// The next part of an answer.
#[derive(Debug)]
pub enum Part {
    /// Status and header fields.
    Head(StatusCode, HeaderMap),
    /// A piece of the body.
    Data(Bytes),
    /// The answer is complete.
    End,
    /// The answer broke off.
    Broken(String),
}

/// Hands calls to the plane.
pub struct Door {
    core: Arc<Core>,
    runtime: Handle,
    readiness: Arc<Readiness>,
    next_call: AtomicU64,
}

impl Door {
    pub(crate) fn new(core: Arc<Core>, runtime: Handle) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let readiness = Arc::new(Readiness {
            calls: Mutex::default(),
            wake,
        });
        Ok(Self {
            core,
            runtime,
            readiness,
            next_call: AtomicU64::new(1),
        })
    }

    /// A descriptor that is readable while calls have news.
    pub fn ready_fd(&self) -> RawFd {
        self.readiness.wake.as_fd().as_raw_fd()
    }

    /// The calls that have room for a frame or a part of their answer since the last call.
    pub fn ready(&self) -> Vec<u64> {
        self.readiness.take()
    }

    /// Begins a call. `head` is the request's head as it would stand in HTTP/1: it is read as
    /// strictly as that of a client's own connection.
    ///
    /// # Errors
    /// When the head cannot be put into a request at all.
    pub fn open(&self, head: &[u8]) -> Result<DoorCall, String> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let checked = check_head(head);
        let (upload, frames) = mpsc::channel(FRAMES_MAX);
        let length = match checked.as_ref().map(|head| head.body) {
            Ok(BodyKind::Length(length)) => Some(length),
            Ok(BodyKind::Chunked) => None,
            Err(_) => Some(0),
        };
        let body = Frames::new(frames, self.readiness.clone(), id, length);
        let request = match &checked {
            Ok(_) => read_head(head)?.map(|()| ClientBody::Frames(body)),
            Err(_) => Request::new(ClientBody::Frames(body)),
        };
        let (parts, answer) = mpsc::channel(FRAMES_MAX);
        let link = Arc::new(Link::default());
        link.expect_upgrade(false);
        if let Err(refusal) = checked {
            link.refuse(refusal);
        }
        let open = Open::new(self.core.clone(), self.readiness.clone(), id);
        let task = self.runtime.spawn(async move {
            let open = open;
            // Inside: it goes before `open` does, which tells that nothing more will come.
            let parts = parts;
            relay(&open, link, request, &parts).await;
        });
        Ok(DoorCall {
            id,
            upload: Mutex::new(Some(upload)),
            answer: Mutex::new(answer),
            task: task.abort_handle(),
        })
    }
}

/// Counts a call as a connection while it lasts, so that draining waits for it.
struct Open {
    core: Arc<Core>,
    readiness: Arc<Readiness>,
    call: u64,
}

impl Open {
    fn new(core: Arc<Core>, readiness: Arc<Readiness>, call: u64) -> Self {
        core.stats.connections.fetch_add(1, Ordering::Relaxed);
        core.stats.connections_open.fetch_add(1, Ordering::Relaxed);
        Self {
            core,
            readiness,
            call,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let open = &self.core.stats.connections_open;
        open.fetch_sub(1, Ordering::Relaxed);
        self.readiness.tell(self.call);
    }
}

async fn relay(
    open: &Open,
    link: Arc<Link>,
    request: Request<ClientBody>,
    parts: &mpsc::Sender<Part>,
) {
    let (head, mut body) = handle(open.core.clone(), link, request).await.into_parts();
    let mut next = Part::Head(head.status, head.headers);
    loop {
        let last = matches!(next, Part::End | Part::Broken(_));
        let sent = parts.send(next).await;
        open.readiness.tell(open.call);
        if last || sent.is_err() {
            return;
        }
        next = loop {
            match body.frame().await {
                None => break Part::End,
                Some(Err(error)) => break Part::Broken(error.to_string()),
                Some(Ok(frame)) => {
                    // Trailers: the interface behind this door has no place for them.
                    if let Ok(data) = frame.into_data() {
                        break Part::Data(data);
                    }
                }
            }
        };
    }
}

/// Reads a head that was checked.
fn read_head(head: &[u8]) -> Result<Request<()>, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines = head
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii_end);
    let mut start = lines
        .next()
        .unwrap_or_default()
        .splitn(3, |&byte| byte == b' ');
    let (method, target) = (start.next(), start.next());
    let mut request = Request::builder()
        .method(method.unwrap_or_default())
        .uri(target.unwrap_or_default());
    for line in lines.filter(|line| !line.is_empty()) {
        let at = line.iter().position(|&byte| byte == b':').unwrap_or(0);
        request = request.header(&line[..at], line[at + 1..].trim_ascii());
    }
    request
        .body(())
        .map_err(|error| format!("{}: {error}", text(target.unwrap_or_default())))
}

/// One call that was handed in. Dropping it means that its client has left.
pub struct DoorCall {
    id: u64,
    upload: Mutex<Option<mpsc::Sender<Bytes>>>,
    answer: Mutex<mpsc::Receiver<Part>>,
    task: AbortHandle,
}

impl DoorCall {
    /// The number by which `Door::ready` names this call.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Hands in a frame of the upload; false when there is no room for it now.
    pub fn push(&self, frame: Bytes) -> bool {
        let upload = self.upload.lock().unwrap_or_else(PoisonError::into_inner);
        match upload.as_ref().map(|upload| upload.try_send(frame)) {
            Some(Err(TrySendError::Full(_))) => false,
            // Whoever answers without having read the upload does not want the rest of it.
            Some(Ok(()) | Err(TrySendError::Closed(_))) | None => true,
        }
    }

    /// The upload is complete.
    pub fn finish(&self) {
        drop(
            self.upload
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// The next part of the answer; None when there is none yet.
    pub fn take(&self) -> Option<Part> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        match answer.try_recv() {
            Ok(part) => Some(part),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Part::Broken("the call was cut".to_owned())),
        }
    }

    /// The client has left: ends the call now.
    pub fn leave(&self) {
        self.task.abort();
    }
}

impl Drop for DoorCall {
    fn drop(&mut self) {
        self.leave();
    }
}
