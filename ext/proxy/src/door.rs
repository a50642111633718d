//! The second door: calls that another HTTP server has read, handed in and answered frame by frame.
//! Each goes through a socket pair to where the listener's connections go: one dispatch, two doors.
//! Must never wait for whoever hands them in, nor hold more than a few frames for it.

mod answer;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use rustix::event::{EventfdFlags, eventfd};
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::listener;
use crate::plane::Core;
use crate::socket::Socket;
use answer::Answer;

const FRAMES_MAX: usize = 4;
const SOCKET_BYTES: usize = 64 << 10;

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
    /// All of an answer that came at once: it is the only part.
    Whole(StatusCode, HeaderMap, Bytes),
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
    stop: watch::Receiver<bool>,
    readiness: Arc<Readiness>,
    next_call: AtomicU64,
}

impl Door {
    pub(crate) fn new(
        core: Arc<Core>,
        runtime: Handle,
        stop: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let readiness = Arc::new(Readiness {
            calls: Mutex::default(),
            wake,
        });
        Ok(Self {
            core,
            runtime,
            stop,
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
    /// strictly as that of a client's own connection. `chunked` says that its fields promise a
    /// body in chunks.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn open(&self, head: &[u8], chunked: bool) -> io::Result<DoorCall> {
        let id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let _inside = self.runtime.enter();
        let (near, far) = UnixStream::pair()?;
        for end in [&near, &far] {
            SockRef::from(end).set_send_buffer_size(SOCKET_BYTES)?;
        }
        let (core, stop) = (self.core.clone(), self.stop.clone());
        tokio::spawn(listener::serve(core, Socket::Unix(far), stop));
        let (upload, frames) = mpsc::channel(FRAMES_MAX);
        let (parts, answer) = mpsc::channel(FRAMES_MAX);
        let news = News {
            readiness: self.readiness.clone(),
            call: id,
        };
        let head = head.to_vec();
        let task = tokio::spawn(async move {
            let news = news;
            // Inside: it goes before `news` does, which tells that nothing more will come.
            let parts = parts;
            let method = head.split(|&byte| byte == b' ').next().unwrap_or_default();
            let method = Method::from_bytes(method).unwrap_or(Method::GET);
            let (source, sink) = split(near);
            tokio::select! {
                () = relay(source, &method, &parts, &news) => {}
                () = send(sink, head, chunked, frames, &news) => {}
            }
        });
        Ok(DoorCall {
            id,
            upload: Mutex::new(Some(upload)),
            answer: Mutex::new(answer),
            task: task.abort_handle(),
        })
    }
}

/// Tells of one call; telling a last time when it goes.
struct News {
    readiness: Arc<Readiness>,
    call: u64,
}

impl News {
    fn tell(&self) {
        self.readiness.tell(self.call);
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.tell();
    }
}

/// Sends the request; never ends, because a client that closes its half counts as gone.
async fn send(
    mut sink: WriteHalf<UnixStream>,
    head: Vec<u8>,
    chunked: bool,
    mut frames: mpsc::Receiver<Bytes>,
    news: &News,
) {
    // A failure means that the plane has closed its end, whose answer says why.
    let mut sent = sink.write_all(&head).await;
    drop(head);
    while let Some(frame) = frames.recv().await {
        news.tell();
        if chunked && sent.is_ok() {
            let size = format!("{:x}\r\n", frame.len());
            sent = sink.write_all(size.as_bytes()).await;
        }
        if sent.is_ok() {
            sent = sink.write_all(&frame).await;
        }
        if chunked && sent.is_ok() {
            sent = sink.write_all(b"\r\n").await;
        }
    }
    if chunked && sent.is_ok() {
        let _ = sink.write_all(b"0\r\n\r\n").await;
    }
    std::future::pending().await
}

/// Hands the answer on, part by part.
async fn relay(
    source: ReadHalf<UnixStream>,
    method: &Method,
    parts: &mpsc::Sender<Part>,
    news: &News,
) {
    let mut answer = Answer::new(source);
    let mut next = match answer.head(method).await {
        // In one part, because whoever sees a head without its end must take it for a stream's.
        Ok((status, fields)) => match answer.rest() {
            Some(body) => Part::Whole(status, fields, body),
            None => Part::Head(status, fields),
        },
        Err(error) => Part::Broken(error.to_string()),
    };
    loop {
        let last = matches!(next, Part::Whole(..) | Part::End | Part::Broken(_));
        let sent = parts.send(next).await;
        news.tell();
        if last || sent.is_err() {
            return;
        }
        next = match answer.data().await {
            Ok(Some(piece)) => Part::Data(piece),
            Ok(None) => Part::End,
            Err(error) => Part::Broken(error.to_string()),
        };
    }
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
