//! Who may call which worker now: each function's queue of parked calls and slots of workers.
//! Must never touch a socket, and never hand out a slot that is not given back exactly once.

mod fence;
mod slot;
mod workers;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

pub(crate) use self::fence::Fence;
pub(crate) use self::slot::{Admission, Place, Slot, Waiter};
use crate::definition::Definition;
use crate::events::{Event, Outbox};
use crate::reply::Reject;
use crate::stats::{FunctionStats, Gauges, Start};
use crate::upstream::Upstream;

/// What all functions share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub outbox: Outbox,
    pub parked: AtomicUsize,
    pub parked_max: usize,
    pub fence: Fence,
}

/// One worker under one lease.
#[derive(Debug)]
pub(crate) struct Worker {
    pub lease_id: u64,
    pub pod_id: Box<str>,
    pub start: Start,
    pub added: Instant,
    pub upstream: Arc<Upstream>,
    /// Failures since it last did well.
    pub failures: AtomicU32,
}

/// One function: its queue and its workers.
#[derive(Debug)]
pub(crate) struct Function {
    pub key: Arc<str>,
    pub stats: FunctionStats,
    hub: Arc<Hub>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    definition: Arc<Definition>,
    removed: bool,
    /// Ordered by last use: the most recently used worker is last.
    members: Vec<Member>,
    waiting: VecDeque<Parked>,
    ticket_next: u64,
    /// Leases asked for and not answered yet.
    requested: u32,
    backoff_until: Option<Instant>,
    /// Why the last lease that was asked for could not be had, or is not there yet, until one is.
    refusal: Option<Cow<'static, str>>,
    /// When the reason was asked for last.
    why_asked: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    worker: Arc<Worker>,
    active: u32,
    slots: u32,
    /// Its slots have become fewer, and whoever they belong to now is not told yet.
    trimmed: bool,
    idle_since: Instant,
    /// Belongs to an older revision: serves what it has and takes nothing new.
    retiring: bool,
}

#[derive(Debug)]
struct Parked {
    ticket: u64,
    since: Instant,
    grant: oneshot::Sender<Result<Slot, Reject>>,
}

impl Member {
    fn has_room(&self) -> bool {
        !self.retiring && self.active < self.slots
    }
}

impl State {
    fn parallel(&self) -> f64 {
        f64::from(self.definition.policy.parallel.max(1))
    }

    fn slots(&self) -> u64 {
        let usable = self.members.iter().filter(|member| !member.retiring);
        usable.map(|member| u64::from(member.slots)).sum()
    }

    fn active(&self) -> u64 {
        let usable = self.members.iter().filter(|member| !member.retiring);
        usable.map(|member| u64::from(member.active)).sum()
    }

    fn remove(&mut self, lease_id: u64) -> Option<Member> {
        let at = self
            .members
            .iter()
            .position(|member| member.worker.lease_id == lease_id)?;
        Some(self.members.remove(at))
    }
}

impl Function {
    pub(crate) fn new(key: Arc<str>, definition: Definition, hub: Arc<Hub>) -> Self {
        Self {
            key,
            stats: FunctionStats::default(),
            hub,
            state: Mutex::new(State {
                definition: Arc::new(definition),
                removed: false,
                members: Vec::new(),
                waiting: VecDeque::new(),
                ticket_next: 0,
                requested: 0,
                backoff_until: None,
                refusal: None,
                why_asked: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn definition(&self) -> Arc<Definition> {
        self.lock().definition.clone()
    }

    pub(crate) fn gauges(&self) -> Gauges {
        let state = self.lock();
        Gauges {
            workers: state.members.len(),
            slots: state.slots(),
            active: state
                .members
                .iter()
                .map(|member| u64::from(member.active))
                .sum(),
            parked: state.waiting.len(),
            requested: state.requested,
        }
    }

    /// Lets a call in. In this order:
    /// (1) a function that is gone or disabled refuses, (2) a free slot is taken, of the worker
    /// used last, unless others wait, (3) a full queue refuses, (4) the call waits in line, at the
    /// front when it was let in before, and (5) more workers are asked for when they are too few.
    pub(crate) fn admit(self: &Arc<Self>, again: bool) -> Admission {
        let mut state = self.lock();
        // (1)
        if state.removed {
            return Admission::Refused(Reject::function_not_found(&self.key));
        }
        if let Some(reason) = &state.definition.disabled {
            return Admission::Refused(Reject::new(403, "disabled", reason.clone()));
        }
        // (2)
        if (state.waiting.is_empty() || again)
            && let Some(slot) = self.take_slot(&mut state, None)
        {
            self.ask(&mut state);
            return Admission::Slot(slot);
        }
        // (3)
        let limit = state.definition.policy.queue_len.max(1);
        let parked = self.hub.parked.load(Ordering::Relaxed);
        if (state.waiting.len() >= limit || parked >= self.hub.parked_max) && !again {
            let message = format!(
                "{} calls wait for {} already",
                state.waiting.len(),
                self.key
            );
            return Admission::Refused(Reject::new(429, "queue_full", message).retry_after(1000));
        }
        // (4)
        let (grant, granted) = oneshot::channel();
        let ticket = state.ticket_next;
        state.ticket_next += 1;
        let parked = Parked {
            ticket,
            since: Instant::now(),
            grant,
        };
        if again {
            state.waiting.push_front(parked);
        } else {
            state.waiting.push_back(parked);
        }
        self.hub.parked.fetch_add(1, Ordering::Relaxed);
        // (5)
        self.ask(&mut state);
        Admission::Wait(Waiter {
            function: self.clone(),
            ticket,
            granted,
            in_line: true,
        })
    }

    fn take_slot(
        self: &Arc<Self>,
        state: &mut State,
        parked_since: Option<Instant>,
    ) -> Option<Slot> {
        if self.hub.fence.passed() {
            return None; // the workers may be in other hands by now
        }
        let at = state.members.iter().rposition(Member::has_room)?;
        let mut member = state.members.remove(at);
        member.active += 1;
        let worker = member.worker.clone();
        state.members.push(member);
        let waited_for_it = parked_since.is_some_and(|since| since <= worker.added);
        let start = if waited_for_it {
            worker.start
        } else {
            Start::Warm
        };
        Some(Slot {
            function: self.clone(),
            worker,
            start,
            armed: true,
        })
    }

    /// Gives free slots to those who wait longest.
    fn hand_out(self: &Arc<Self>, state: &mut State) {
        while let Some(since) = state.waiting.front().map(|parked| parked.since) {
            let Some(slot) = self.take_slot(state, Some(since)) else {
                return;
            };
            let Some(parked) = state.waiting.pop_front() else {
                return;
            };
            self.hub.parked.fetch_sub(1, Ordering::Relaxed);
            if let Err(Ok(slot)) = parked.grant.send(Ok(slot)) {
                // The call is gone; its slot goes back by hand because the lock is held here.
                Self::put_back(state, slot.worker.lease_id);
                slot.disarm();
            }
        }
    }

    fn put_back(state: &mut State, lease_id: u64) {
        let found = state
            .members
            .iter_mut()
            .rev()
            .find(|it| it.worker.lease_id == lease_id);
        if let Some(member) = found {
            member.active -= 1;
            if member.active == 0 {
                member.idle_since = Instant::now();
            }
        }
    }

    /// Asks for as many workers as the calls in hand need beyond those there and on their way.
    fn ask(&self, state: &mut State) {
        let demand = state.active() + state.waiting.len() as u64;
        let with_waiting = 1.0 + state.definition.policy.wait_ratio.max(0.0);
        let over = demand as f64 - with_waiting * state.slots() as f64;
        if over <= 0.0 || state.waiting.is_empty() {
            return;
        }
        let paused = state
            .backoff_until
            .is_some_and(|until| Instant::now() < until);
        if paused && state.slots() > 0 {
            return;
        }
        let wanted = (over / (with_waiting * state.parallel())).ceil().max(1.0) as u32;
        let count = wanted.saturating_sub(state.requested);
        if count == 0 {
            return;
        }
        state.requested += count;
        self.hub.outbox.push(Event::NeedWorker {
            function: self.key.clone(),
            revision: state.definition.revision,
            count,
        });
    }

    /// Ends what is not in use any more after a member lost a call: slots, or all of the member.
    fn settle(&self, state: &mut State) {
        let hub = &self.hub;
        for member in &mut state.members {
            if member.trimmed && !member.retiring && member.active <= member.slots {
                member.trimmed = false;
                hub.outbox.push(Event::WorkerTrimmed {
                    function: self.key.clone(),
                    lease_id: member.worker.lease_id,
                    slots: member.slots,
                });
            }
        }
        state.members.retain(|member| {
            let over = member.retiring && member.active == 0;
            if over {
                let lease_id = member.worker.lease_id;
                hub.outbox.push(Event::WorkerIdle {
                    function: self.key.clone(),
                    lease_id,
                });
            }
            !over
        });
    }

    fn release(self: &Arc<Self>, lease_id: u64) {
        let mut state = self.lock();
        Self::put_back(&mut state, lease_id);
        self.settle(&mut state);
        self.hand_out(&mut state);
        self.ask(&mut state);
    }

    fn place(&self, ticket: u64) -> Place {
        let state = self.lock();
        let waiting = state.waiting.iter();
        let ahead = waiting.take_while(|parked| parked.ticket != ticket);
        Place {
            position: ahead.count(),
            workers: state.members.len(),
            expected: self.stats.usual_start(),
        }
    }

    /// Why the calls in line wait still, as far as the last answer to a request for a worker said.
    fn why_waiting(&self) -> Option<Cow<'static, str>> {
        self.lock().refusal.clone()
    }

    fn leave(&self, ticket: u64) {
        let mut state = self.lock();
        if let Some(at) = state
            .waiting
            .iter()
            .position(|parked| parked.ticket == ticket)
        {
            state.waiting.remove(at);
            self.hub.parked.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
