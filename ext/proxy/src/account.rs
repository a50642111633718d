//! The account of one call: its slot, its times, and the one record that it leaves.
//! Must never be closed twice, nor be lost: dropping it counts as the client having left.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::dispatch::{Function, Hub, Slot};
use crate::limits::Permit;
use crate::stats::Start;

const TARGET_CHARS_MAX: usize = 300;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Complete,
    Refused,
    WorkerBroke,
    ClientGone,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Refused => "refused",
            Self::WorkerBroke => "worker_broke",
            Self::ClientGone => "client_gone",
        }
    }
}

/// One call, from its head to the last byte of its answer.
#[derive(Debug)]
pub(crate) struct Account {
    pub function: Arc<Function>,
    pub request_id: Box<str>,
    pub method: Box<str>,
    /// Name of the caller, when callers are asked.
    pub principal: Option<Arc<str>>,
    /// The call's place among those of a tenant that has limits.
    pub permit: Option<Permit>,
    /// Tokens that the answer says it took, when it is looked at.
    pub tokens: u64,
    /// Whether the answer is one of a model that may say what it took.
    pub metered: bool,
    pub started: Instant,
    /// When the call got its slot for the first time.
    pub granted: Option<Instant>,
    pub first_byte: Option<Instant>,
    pub slot: Option<Slot>,
    pub status: u16,
    pub bytes_out: u64,
    pub bytes_in: u64,
    hub: Arc<Hub>,
    closed: bool,
}

impl Account {
    pub(crate) fn open(
        function: Arc<Function>,
        request_id: Box<str>,
        method: Box<str>,
        hub: Arc<Hub>,
    ) -> Self {
        Self {
            function,
            request_id,
            method,
            principal: None,
            permit: None,
            tokens: 0,
            metered: false,
            started: Instant::now(),
            granted: None,
            first_byte: None,
            slot: None,
            status: 0,
            bytes_out: 0,
            bytes_in: 0,
            hub,
            closed: false,
        }
    }

    pub(crate) fn close(mut self, outcome: Outcome) {
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let now = Instant::now();
        let stats = &self.function.stats;
        match outcome {
            Outcome::ClientGone => stats.client_gone.fetch_add(1, Ordering::Relaxed),
            Outcome::WorkerBroke => stats.broken.fetch_add(1, Ordering::Relaxed),
            Outcome::Complete | Outcome::Refused => 0,
        };
        if self.status == 0 {
            // What nginx made the usual number for a client that left before the answer.
            self.status = 499;
        }
        stats.count_status(self.status);
        stats
            .wait
            .observe(self.granted.unwrap_or(now) - self.started);
        if let Some(first_byte) = self.first_byte {
            stats.first_byte.observe(first_byte - self.started);
        }
        if let Some(permit) = self.permit.take() {
            permit.spend(self.tokens);
        }
        let slot = self.slot.take();
        self.hub
            .outbox
            .record(|out| self.encode(out, slot.as_ref(), outcome, now));
    }

    /// One msgpack array; the order of the fields is documented in `_ext.pyi`.
    fn encode(&self, out: &mut Vec<u8>, slot: Option<&Slot>, outcome: Outcome, now: Instant) {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ms =
            |at: Option<Instant>| at.map_or(-1.0, |at| (at - self.started).as_secs_f64() * 1e3);
        let text = |out: &mut Vec<u8>, text: &str| write_text(out, text);
        let int = |out: &mut Vec<u8>, value: u64| {
            // Writing to memory cannot fail.
            let _ = rmp::encode::write_uint(out, value);
        };
        let float = |out: &mut Vec<u8>, value: f64| {
            let _ = rmp::encode::write_f64(out, value);
        };
        let _ = rmp::encode::write_array_len(out, 15);
        int(out, unix.as_millis() as u64);
        text(out, &self.request_id);
        text(out, &self.method);
        text(out, &self.function.key);
        int(out, u64::from(self.status));
        text(out, outcome.name());
        text(out, slot.map_or("", |slot| &slot.worker.pod_id));
        text(out, slot.map_or("", |slot| Start::name(slot.start)));
        float(out, ms(self.granted));
        float(out, ms(self.first_byte));
        float(out, ms(Some(now)));
        int(out, self.bytes_in);
        int(out, self.bytes_out);
        text(out, self.principal.as_deref().unwrap_or_default());
        int(out, self.tokens);
    }
}

/// Leaves the record of a request that was refused before it became a call.
pub(crate) fn refused(
    hub: &Hub,
    id: &str,
    method: &str,
    target: &str,
    principal: &str,
    status: u16,
) {
    let unix = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // What a stranger may write into the log is bounded.
    let target: String = target.chars().take(TARGET_CHARS_MAX).collect();
    hub.outbox.record(|out| {
        let _ = rmp::encode::write_array_len(out, 15);
        let _ = rmp::encode::write_uint(out, unix.as_millis() as u64);
        for text in [id, method, &target] {
            write_text(out, text);
        }
        let _ = rmp::encode::write_uint(out, u64::from(status));
        for text in [Outcome::Refused.name(), "", ""] {
            write_text(out, text);
        }
        for _ in 0..3 {
            let _ = rmp::encode::write_f64(out, -1.0);
        }
        for _ in 0..2 {
            let _ = rmp::encode::write_uint(out, 0);
        }
        write_text(out, principal);
        let _ = rmp::encode::write_uint(out, 0);
    });
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let _ = rmp::encode::write_str(out, text);
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(Outcome::ClientGone);
    }
}
