//! The passing of time: deadlines, expiries, idle pods, retries.
//! It must never look at anything whose alarm did not ring.

use super::Core;
use super::fault::Fault;
use super::messages::{Effect, Refusal};
use super::model::{FuncId, Op, PodIx};
use super::timers::Timer;
use crate::pod::State;
use crate::queue::TicketId;

/// How often the idle pods of a node that cannot be reached are looked at.
const UNREADY_RETRY_MS: u64 = 1_000;

impl Core {
    /// Lets the clock reach `now_ms` and does what is due.
    pub fn tick(&mut self, now_ms: u64) {
        while let Some(timer) = self.timers.pop_due(now_ms) {
            match timer {
                Timer::Ticket(id) => self.ticket_due(now_ms, id),
                Timer::Gateway(id) => self.gateway_due(now_ms, id),
                Timer::Pod(ix) => self.pod_due(now_ms, ix),
                Timer::Function(func) => {
                    if self.functions.contains_key(&func) {
                        self.dirty.insert(func);
                    }
                }
                Timer::Node(_) => self.capacity_changed = true,
                Timer::Visits(func) => self.visits_due(now_ms, func),
                Timer::Prewarm(func) => self.prewarm_due(now_ms, func),
                Timer::Task(func, node) => {
                    if self.functions.contains_key(&func) {
                        self.task_due(now_ms, func, node);
                    }
                }
            }
        }
        self.settle(now_ms);
    }

    /// When `tick` has something to do next, or nothing while nothing is on the clock.
    pub fn next_wakeup_ms(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    fn ticket_due(&mut self, now_ms: u64, id: TicketId) {
        let Some(ticket) = self.tickets.get(id) else {
            return;
        };
        if self.breaks(Fault::IgnoreDeadline) {
            return;
        }
        let (func, waited_ms) = (ticket.func, now_ms.saturating_sub(ticket.queued_ms));
        let refusal = self.why_waiting(func);
        let message = format!("waited {waited_ms} ms: {}", refusal.message);
        self.refuse(now_ms, id, Refusal { message, ..refusal });
        self.dirty.insert(func);
    }

    /// Why the tickets of a function are still waiting.
    pub(super) fn why_waiting(&self, func: FuncId) -> Refusal {
        let function = &self.functions[&func];
        if let Some(refusal) = &function.waiting_for {
            return refusal.clone();
        }
        let mut pods = function.pods.iter().map(|ix| self.pod(*ix));
        let message = match pods.find(|pod| pod.state.is_starting()) {
            Some(pod) if pod.reason.is_empty() => format!("the worker is {}", pod.state),
            Some(pod) => format!("the worker is {} ({})", pod.state, pod.reason),
            None => "no worker became free".to_owned(),
        };
        Refusal::new("queue_timeout", message)
    }

    fn pod_due(&mut self, now_ms: u64, ix: PodIx) {
        let Some(pod) = self.pods.get_mut(&ix) else {
            return;
        };
        pod.timer_ms = None;
        if pod.held_until_ms.is_some_and(|until| until <= now_ms) {
            return self.release_held(now_ms, ix);
        }
        let pod = self.pod(ix);
        if let Some(until) = pod.held_until_ms {
            return self.arm_pod(ix, until);
        }
        match (pod.op, pod.retry_at_ms) {
            (Some(Op::Terminate), Some(at)) if at <= now_ms => {
                self.pod_mut(ix).retry_at_ms = None;
                let order = self.order_ref(ix);
                self.effects.push(Effect::Terminate(order));
            }
            (_, Some(at)) => self.arm_pod(ix, at),
            _ if pod.state == State::Idle => {
                self.idle_pod_due(now_ms, ix);
            }
            _ => {}
        }
    }

    /// An idle pod: from its minimum residence on it may make room; it stays until the keep-alive
    /// policy or the fixed time says otherwise.
    fn idle_pod_due(&mut self, now_ms: u64, ix: PodIx) {
        let resident_ms = self.pod(ix).ready_ms + self.config.residence_min_ms;
        if resident_ms > now_ms {
            return self.arm_pod(ix, resident_ms);
        }
        if !std::mem::replace(&mut self.pod_mut(ix).resident, true) {
            self.capacity_changed = true;
        }
        let until_ms = self.keep_until(now_ms, ix);
        if until_ms > now_ms {
            self.arm_pod(ix, until_ms);
        } else if !self.nodes[&self.pod(ix).node].ready {
            self.arm_pod(ix, now_ms + UNREADY_RETRY_MS);
        } else {
            self.retire_idle(now_ms, ix);
        }
    }
}
