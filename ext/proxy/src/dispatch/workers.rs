//! What happens to a function and its workers from outside: updates, leases, failures, rest.
//! Must never end a call in flight; a worker that goes finishes what it has.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Function, Member, State, Worker};
use crate::definition::Definition;
use crate::events::Event;
use crate::reply::Reject;

/// Pause before more workers are asked for when a request for one was refused.
const LEASE_BACKOFF: Duration = Duration::from_secs(1);
/// The control plane's requests for workers end up to a quarter of a second before the calls' own
/// time does, so that the answer still says why (`gateway/workers.py`).
const LATE_WITHIN: Duration = Duration::from_millis(500);

/// The reason of a wait is asked for at most so often, however many calls run out of time.
const WHY_EVERY: Duration = Duration::from_millis(100);

impl Function {
    /// Replaces the definition. Parked calls stay; workers of an older revision only finish.
    pub(crate) fn update(self: &Arc<Self>, definition: Definition) {
        let mut state = self.lock();
        let disabled = definition.disabled.clone();
        if definition.revision != state.definition.revision {
            state.requested = 0;
            state.backoff_until = None;
            state
                .members
                .iter_mut()
                .for_each(|member| member.retiring = true);
        }
        state.definition = Arc::new(definition);
        self.settle(&mut state);
        if let Some(reason) = disabled {
            self.answer_all(&mut state, &Reject::new(403, "disabled", reason));
        }
        self.ask(&mut state);
    }

    /// Ends the function: those who wait are told, workers finish what they have.
    pub(crate) fn remove(self: &Arc<Self>) {
        let mut state = self.lock();
        state.removed = true;
        state.requested = 0;
        state
            .members
            .iter_mut()
            .for_each(|member| member.retiring = true);
        self.settle(&mut state);
        self.answer_all(&mut state, &Reject::function_not_found(&self.key));
    }

    fn answer_all(&self, state: &mut State, error: &Reject) {
        for parked in state.waiting.drain(..) {
            self.hub.parked.fetch_sub(1, Ordering::Relaxed);
            // A call that is gone needs no answer.
            let _ = parked.grant.send(Err(error.clone()));
        }
    }

    /// Answers those whose time in line is over, or will be before another lease could be had.
    fn answer_due(&self, state: &mut State, error: &Reject) {
        let timeout = state.definition.policy.queue_timeout;
        let patience = timeout - LATE_WITHIN.min(timeout / 5);
        let (due, young) = state
            .waiting
            .drain(..)
            .partition(|parked| parked.since.elapsed() >= patience);
        state.waiting = due;
        self.answer_all(state, error);
        state.waiting = young;
    }

    /// Takes in a worker; false when it is not wanted, its revision not being the current one.
    pub(crate) fn add_worker(
        self: &Arc<Self>,
        worker: Arc<Worker>,
        slots: u32,
        revision: i64,
    ) -> bool {
        let mut state = self.lock();
        if state.removed || state.definition.revision != revision {
            return false;
        }
        state.requested = state.requested.saturating_sub(1);
        state.backoff_until = None;
        state.refusal = None;
        self.stats.count_start(worker.start);
        let idle_since = Instant::now();
        state.members.push(Member {
            worker,
            active: 0,
            slots: slots.max(1),
            trimmed: false,
            idle_since,
            retiring: false,
        });
        self.hand_out(&mut state);
        self.ask(&mut state);
        true
    }

    /// Leases may be used again: those who wait get the slots that were held back.
    pub(crate) fn resume(self: &Arc<Self>) {
        let mut state = self.lock();
        self.hand_out(&mut state);
        self.ask(&mut state);
    }

    /// Takes a worker out of rotation; its calls in flight go on. False when it was not there.
    pub(crate) fn remove_worker(self: &Arc<Self>, lease_id: u64) -> bool {
        let mut state = self.lock();
        let mut members = state.members.iter_mut();
        let Some(member) = members.find(|it| it.worker.lease_id == lease_id) else {
            return false;
        };
        member.retiring = true;
        self.settle(&mut state);
        self.ask(&mut state);
        true
    }

    /// Others wait for slots of this worker: it keeps `most` of them, and no more than its calls
    /// and those that wait can use now. Slots in use are given up as their calls end, and all of
    /// the worker when nothing is kept. False when it was not there.
    pub(crate) fn trim_worker(self: &Arc<Self>, lease_id: u64, most: u32) -> bool {
        let mut state = self.lock();
        let waiting = u32::try_from(state.waiting.len()).unwrap_or(u32::MAX);
        let mut members = state.members.iter_mut();
        let Some(member) = members.find(|it| it.worker.lease_id == lease_id && !it.retiring) else {
            return false;
        };
        let kept = most.min(member.active.saturating_add(waiting));
        if kept == 0 {
            member.retiring = true;
        } else if kept < member.slots {
            member.slots = kept;
            member.trimmed = true;
        }
        self.settle(&mut state);
        self.ask(&mut state);
        true
    }

    /// Notes how a worker did. One that fails again and again, with nothing good in between, is
    /// taken out of rotation and reported. What clients do wrong (4xx) is nobody's failure.
    pub(crate) fn judge(self: &Arc<Self>, worker: &Worker, failure: Option<&str>, most: u32) {
        let Some(failure) = failure else {
            // Read first: the counter is shared, and nearly always zero already.
            if worker.failures.load(Ordering::Relaxed) > 0 {
                worker.failures.store(0, Ordering::Relaxed);
            }
            return;
        };
        let failures = worker.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures == most {
            let reason = format!("{failures} failures in a row, the last: {failure}");
            self.eject(worker.lease_id, reason);
        }
    }

    /// Takes a worker that failed out of rotation and reports it, once.
    pub(crate) fn eject(self: &Arc<Self>, lease_id: u64, reason: String) {
        let mut state = self.lock();
        if state.remove(lease_id).is_some() {
            let function = self.key.clone();
            self.hub.outbox.push(Event::WorkerFailed {
                function,
                lease_id,
                reason,
            });
            self.ask(&mut state);
        }
    }

    /// A lease could not be had. The parked calls are answered when nobody is left to serve them;
    /// when the request for it only waited for too long (`late`), those that came after it wait on
    /// for another one. Returns the pause after which it makes sense to ask again.
    pub(crate) fn fail_lease(
        self: &Arc<Self>,
        revision: i64,
        error: &Reject,
        late: bool,
    ) -> Option<Duration> {
        let mut state = self.lock();
        if state.removed || state.definition.revision != revision {
            return None;
        }
        state.requested = state.requested.saturating_sub(1);
        state.refusal = Some(error.message.clone());
        if state.slots() == 0 {
            if late {
                self.answer_due(&mut state, error);
                self.ask(&mut state);
            } else if state.requested == 0 {
                self.answer_all(&mut state, error);
            }
            return None;
        }
        let pause = error
            .retry_after_ms
            .map_or(LEASE_BACKOFF, Duration::from_millis);
        state.backoff_until = Some(Instant::now() + pause);
        Some(pause)
    }

    /// A call will have waited in vain in a moment: asks why, for all that wait.
    pub(super) fn ask_why(&self) {
        let mut state = self.lock();
        let asked = state.why_asked.map(|at| at.elapsed());
        if asked.is_none_or(|ago| ago >= WHY_EVERY) {
            state.why_asked = Some(Instant::now());
            self.hub.outbox.push(Event::WhyWaiting {
                function: self.key.clone(),
            });
        }
    }

    /// What those who wait do so for, as of now; they wait on, and hear it if it was in vain.
    pub(crate) fn explain_wait(&self, message: String) {
        let mut state = self.lock();
        if !state.waiting.is_empty() {
            state.refusal = Some(message.into());
        }
    }

    /// Looks again whether more workers are needed, after a pause.
    pub(crate) fn ask_again(&self) {
        self.ask(&mut self.lock());
    }

    /// Offers the worker back when it has rested long enough; otherwise says when to look again,
    /// or None when it is gone.
    pub(crate) fn offer_idle(&self, lease_id: u64) -> Option<Instant> {
        let mut state = self.lock();
        let rest = state.definition.policy.scalein_timeout;
        let member = state
            .members
            .iter()
            .find(|it| it.worker.lease_id == lease_id)?;
        member.worker.upstream.sweep();
        let now = Instant::now();
        if member.active > 0 {
            // At least a little pause, so that a timeout of zero does not spin.
            return Some(now + rest.max(Duration::from_millis(10)));
        }
        let due = member.idle_since + rest;
        if now < due {
            return Some(due);
        }
        state.remove(lease_id);
        self.hub.outbox.push(Event::WorkerIdle {
            function: self.key.clone(),
            lease_id,
        });
        None
    }
}
