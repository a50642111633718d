//! Alarms of the core: what is looked at again at which time.
//! They must never act; `tick` pops the due ones and the verbs check whether they still matter.

use std::collections::BTreeSet;

use crate::core::model::{FuncId, PodIx};
use crate::nodes::NodeId;
use crate::queue::TicketId;

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Timer {
    Ticket(TicketId),
    Gateway(i64),
    Pod(PodIx),
    Function(FuncId),
    Node(NodeId),
    Visits(FuncId),
    Prewarm(FuncId),
    Task(FuncId, NodeId),
}

/// Alarms ordered by time, then by what they are about.
#[derive(Debug, Default)]
pub struct Timers(BTreeSet<(u64, Timer)>);

impl Timers {
    /// Sets an alarm.
    pub fn set(&mut self, at_ms: u64, timer: Timer) {
        self.0.insert((at_ms, timer));
    }

    /// Takes an alarm away.
    pub fn clear(&mut self, at_ms: u64, timer: Timer) {
        self.0.remove(&(at_ms, timer));
    }

    /// The next alarm that is due.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<Timer> {
        match self.0.first() {
            Some((at_ms, _)) if *at_ms <= now_ms => self.0.pop_first().map(|(_, timer)| timer),
            _ => None,
        }
    }

    /// When the first alarm rings.
    pub fn next_ms(&self) -> Option<u64> {
        self.0.first().map(|(at_ms, _)| *at_ms)
    }

    /// Number of alarms that are set.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when nothing will ring.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
