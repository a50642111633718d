//! Who waits at the desk, and what lies ready for Python: orders to agents and other news.
//! It must never drop an order; what it may drop is counted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use scheduler_core::messages::{Effect, Grant};
use scheduler_core::model::FuncKey;
use scheduler_core::queue::TicketId;
use tokio::sync::oneshot;

use crate::desk::Desk;
use crate::held::{Answer, Held};
use crate::refused::Refused;

const REFUSALS_MAX: usize = 1024;

/// A function that the core has not heard of: Python reads it from the store and tells the core.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Learn {
    pub number: u64,
    pub key: FuncKey,
}

pub(crate) type Learned = Result<(), Refused>;

/// Something for Python besides orders.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum News {
    Learn(Learn),
    Refused {
        request_id: String,
        key: FuncKey,
        why: Refused,
    },
    /// So many refusals were not told because too many were waiting.
    Untold(u64),
    Warning(String),
}

#[derive(Default)]
pub(crate) struct Hall {
    waiters: BTreeMap<TicketId, Vec<(u64, oneshot::Sender<Answer>)>>,
    numbers: u64,
    /// The last answer that carries a lease, of those on their way.
    answers: HashMap<u64, u64>,
    learners: HashMap<u64, Vec<oneshot::Sender<Learned>>>,
    /// Functions that Python has not begun to read yet.
    unread: BTreeMap<FuncKey, u64>,
    orders: Vec<Effect>,
    news: VecDeque<News>,
    untold: u64,
    /// Something happened that people may want to see.
    pub(crate) changed: bool,
    pub(crate) closed: bool,
}

impl Hall {
    /// One more who waits for the answer to a ticket.
    pub(crate) fn wait(&mut self, ticket: TicketId) -> (u64, oneshot::Receiver<Answer>) {
        self.numbers += 1;
        let (sender, receiver) = oneshot::channel();
        let group = self.waiters.entry(ticket).or_default();
        group.push((self.numbers, sender));
        (self.numbers, receiver)
    }

    /// One who waited is gone; true when it was the last one of the ticket.
    pub(crate) fn leave(&mut self, ticket: TicketId, number: u64) -> bool {
        let Some(group) = self.waiters.get_mut(&ticket) else {
            return false;
        };
        group.retain(|(other, _)| *other != number);
        let alone = group.is_empty();
        if alone {
            self.waiters.remove(&ticket);
        }
        alone
    }

    /// An answer with that lease is on its way from now on.
    pub(crate) fn hold(&mut self, desk: &Arc<Desk>, grant: Grant) -> Arc<Held> {
        self.numbers += 1;
        self.answers.insert(grant.lease.0, self.numbers);
        Held::new(desk.clone(), grant, self.numbers)
    }

    /// It is no longer; whether it was the last one with that lease.
    pub(crate) fn arrived(&mut self, lease_id: u64, number: u64) -> bool {
        let last = self.answers.get(&lease_id) == Some(&number);
        if last {
            self.answers.remove(&lease_id);
        }
        last
    }

    /// Answers go to those who wait, orders are laid down. What comes back are leases that may
    /// have no taker: to be dropped when no lock is held.
    pub(crate) fn sort(&mut self, effects: Vec<Effect>, desk: &Arc<Desk>) -> Vec<Arc<Held>> {
        let mut granted = Vec::new();
        for effect in effects {
            match effect {
                Effect::Grant { ticket, grant } => {
                    let held = self.hold(desk, grant);
                    for (_, waiter) in self.waiters.remove(&ticket).unwrap_or_default() {
                        // Who left meanwhile holds nothing, so the lease drops with the last one.
                        let _ = waiter.send(Ok(held.clone()));
                    }
                    granted.push(held);
                }
                Effect::Refuse { ticket, refusal } => {
                    let why = Refused::from(refusal);
                    for (_, waiter) in self.waiters.remove(&ticket).unwrap_or_default() {
                        let _ = waiter.send(Err(why.clone()));
                    }
                }
                order => self.orders.push(order),
            }
        }
        granted
    }

    /// Asks Python to read a function. Callers share a reading that has not begun; one that has
    /// may be older than what they know of.
    pub(crate) fn learn(&mut self, key: FuncKey) -> oneshot::Receiver<Learned> {
        let (sender, receiver) = oneshot::channel();
        if self.closed {
            // Nobody will read it; the receiver is still at hand.
            let _ = sender.send(Err(Refused::stopping()));
            return receiver;
        }
        let number = match self.unread.get(&key) {
            Some(number) => *number,
            None => {
                self.numbers += 1;
                let number = self.numbers;
                self.unread.insert(key.clone(), number);
                self.news.push_back(News::Learn(Learn { number, key }));
                number
            }
        };
        self.learners.entry(number).or_default().push(sender);
        receiver
    }

    /// Python has read it, or could not.
    pub(crate) fn learned(&mut self, number: u64, outcome: &Learned) {
        for learner in self.learners.remove(&number).unwrap_or_default() {
            // Whoever asked may have gone.
            let _ = learner.send(outcome.clone());
        }
    }

    pub(crate) fn warn(&mut self, text: String) {
        self.news.push_back(News::Warning(text));
    }

    pub(crate) fn refused(&mut self, request_id: String, key: FuncKey, why: Refused) {
        if self.news.len() >= REFUSALS_MAX {
            self.untold += 1;
            return;
        }
        let news = News::Refused {
            request_id,
            key,
            why,
        };
        self.news.push_back(news);
    }

    /// Whether Python has something to do.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.orders.is_empty() || !self.news.is_empty()
    }

    /// Everything that was laid down, in order.
    pub(crate) fn take_orders(&mut self) -> Vec<Effect> {
        self.changed = false;
        std::mem::take(&mut self.orders)
    }

    pub(crate) fn take_news(&mut self) -> Vec<News> {
        self.unread.clear();
        let mut news: Vec<News> = std::mem::take(&mut self.news).into();
        if self.untold > 0 {
            news.push(News::Untold(std::mem::take(&mut self.untold)));
        }
        news
    }

    /// Everybody is sent away.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        let waiters = std::mem::take(&mut self.waiters);
        for (_, waiter) in waiters.into_values().flatten() {
            let _ = waiter.send(Err(Refused::stopping()));
        }
        for learner in self.learners.drain().flat_map(|(_, group)| group) {
            let _ = learner.send(Err(Refused::stopping()));
        }
    }
}
