//! Tickets: who waits for slots of which function, in order of arrival, each with a deadline.
//! It must never answer a ticket; it only keeps the order and the bound.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::core::model::FuncId;
use crate::keepalive::TenantIx;

/// Id of a ticket; higher means younger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TicketId(pub u64);

/// One waiting request for slots.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Ticket {
    pub func: FuncId,
    pub gateway: i64,
    pub consumer: TenantIx,
    pub request_id: String,
    /// Wanted slots, 0 = all of one pod.
    pub slots: u32,
    pub queued_ms: u64,
    pub deadline_ms: u64,
}

/// All waiting tickets, first in first out per function.
#[derive(Debug, Default)]
pub struct Tickets {
    last: u64,
    tickets: BTreeMap<TicketId, Ticket>,
    by_function: BTreeMap<FuncId, BTreeSet<TicketId>>,
    by_request: HashMap<i64, HashMap<String, TicketId>>,
}

impl Tickets {
    /// Puts a ticket at the end of its function's queue.
    pub fn push(&mut self, ticket: Ticket) -> TicketId {
        self.last += 1;
        let id = TicketId(self.last);
        if !ticket.request_id.is_empty() {
            let requests = self.by_request.entry(ticket.gateway).or_default();
            requests.insert(ticket.request_id.clone(), id);
        }
        self.by_function.entry(ticket.func).or_default().insert(id);
        self.tickets.insert(id, ticket);
        id
    }

    /// Takes a ticket out, wherever it stands.
    pub fn remove(&mut self, id: TicketId) -> Option<Ticket> {
        let ticket = self.tickets.remove(&id)?;
        if let Some(requests) = self.by_request.get_mut(&ticket.gateway) {
            requests.remove(&ticket.request_id);
            if requests.is_empty() {
                self.by_request.remove(&ticket.gateway);
            }
        }
        if let Some(queue) = self.by_function.get_mut(&ticket.func) {
            queue.remove(&id);
            if queue.is_empty() {
                self.by_function.remove(&ticket.func);
            }
        }
        Some(ticket)
    }

    /// The ticket, if it still waits.
    pub fn get(&self, id: TicketId) -> Option<&Ticket> {
        self.tickets.get(&id)
    }

    /// The ticket of a request that was sent before.
    pub fn of_request(&self, gateway: i64, request_id: &str) -> Option<TicketId> {
        if request_id.is_empty() {
            return None;
        }
        self.by_request.get(&gateway)?.get(request_id).copied()
    }

    /// The oldest ticket of a function.
    pub fn oldest(&self, func: FuncId) -> Option<TicketId> {
        self.by_function
            .get(&func)
            .and_then(|queue| queue.first().copied())
    }

    /// The tickets of a function, oldest first.
    pub fn of_function(&self, func: FuncId) -> impl Iterator<Item = (TicketId, &Ticket)> {
        let queue = self.by_function.get(&func).into_iter().flatten();
        queue.map(|id| (*id, &self.tickets[id]))
    }

    /// How many wait for a function.
    pub fn waiting(&self, func: FuncId) -> usize {
        self.by_function.get(&func).map_or(0, BTreeSet::len)
    }

    /// Every waiting ticket, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (TicketId, &Ticket)> {
        self.tickets.iter().map(|(id, ticket)| (*id, ticket))
    }

    /// How many wait in all.
    pub fn len(&self) -> usize {
        self.tickets.len()
    }

    /// True when nobody waits.
    pub fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }
}
