//! The index of one request class: its best state at any time without looking at all of them.
//! Never answers anything but what a scan of all ready nodes would answer.
//!
//! A heap holds the states on which the request fits. States are immutable, so an entry is right
//! for as long as its state has nodes in it; a state that comes to life is found in the log of
//! [`States`] and entered when the class is next asked for. Entries start with a bound, computed
//! from the heaviest typical requests; only what reaches the top is scored exactly.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::state::{StateRef, States};

/// A state that the request fits on.
#[derive(Clone, Copy, Debug)]
struct Entry {
    score: f32,
    /// Over how much of the tables the score was computed.
    depth: u8,
    tie: u64,
    state: StateRef,
}

impl Ord for Entry {
    /// The higher score first; a shallow one before a deep one, because it may still sink;
    /// then the smaller hash of the state.
    fn cmp(&self, other: &Entry) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.depth.cmp(&self.depth))
            .then_with(|| other.tie.cmp(&self.tie))
            .then_with(|| other.state.slot.cmp(&self.state.slot))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

/// What the index needs to know of a state.
pub(crate) trait Rating {
    /// False when the request certainly does not fit; cheap.
    fn may_fit(&self, states: &States, slot: u32) -> bool;
    /// The depth at which scores are exact; at least 1.
    fn depth_full(&self) -> u8;
    /// The score, or at less than full depth at least the score; `None` when the request does
    /// not fit.
    fn score(&mut self, state: StateRef, depth: u8) -> Option<f32>;
}

/// The index of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    heap: BinaryHeap<Entry>,
    /// Generation of each slot that was looked at; zero when not, or when it was dropped.
    seen: Vec<u32>,
    log_read: u64,
    /// The scores belong to this version of the scorer.
    version: Option<u64>,
}

impl Index {
    /// The state with the best score, ties broken by the hash of the state.
    pub fn best(
        &mut self,
        states: &States,
        version: u64,
        rating: &mut impl Rating,
    ) -> Option<StateRef> {
        self.catch_up(states, version, rating);
        let full = rating.depth_full();
        loop {
            let top = *self.heap.peek()?;
            if !states.is_live(top.state) {
                self.heap.pop();
                self.forget(top.state);
            } else if top.depth >= full {
                return Some(top.state);
            } else {
                let mut entry = self.heap.peek_mut()?;
                match rating.score(top.state, full) {
                    Some(score) => (entry.score, entry.depth) = (score, full),
                    None => {
                        PeekMut::pop(entry);
                    }
                }
            }
        }
    }

    fn forget(&mut self, state: StateRef) {
        let seen = &mut self.seen[state.slot as usize];
        if *seen == state.generation {
            *seen = 0;
        }
    }

    fn catch_up(&mut self, states: &States, version: u64, rating: &mut impl Rating) {
        self.seen.resize(states.slots(), 0);
        let missed = states.log_end() - self.log_read;
        let known = self.version == Some(version) && missed <= states.live() as u64;
        let born = if known {
            states.born_since(self.log_read)
        } else {
            None
        };
        match born {
            Some(born) => {
                for state in born {
                    if states.is_live(state) && self.mark(state) {
                        self.enter(states, state, rating);
                    }
                }
            }
            None => self.rebuild(states, rating),
        }
        self.log_read = states.log_end();
        self.version = Some(version);
        if self.heap.len() > 2 * states.live() + 64 {
            let seen = &mut self.seen;
            self.heap.retain(|entry| {
                let live = states.is_live(entry.state);
                if !live && seen[entry.state.slot as usize] == entry.state.generation {
                    seen[entry.state.slot as usize] = 0;
                }
                live
            });
        }
    }

    /// Notes that a state was looked at; false when it had been.
    fn mark(&mut self, state: StateRef) -> bool {
        let seen = &mut self.seen[state.slot as usize];
        std::mem::replace(seen, state.generation) != state.generation
    }

    fn enter(&mut self, states: &States, state: StateRef, rating: &mut impl Rating) {
        if !rating.may_fit(states, state.slot) {
            return;
        }
        if let Some(score) = rating.score(state, 1) {
            let tie = states.get(state.slot).tie;
            self.heap.push(Entry {
                score,
                depth: 1,
                tie,
                state,
            });
        }
    }

    fn rebuild(&mut self, states: &States, rating: &mut impl Rating) {
        self.seen.fill(0);
        let mut entries = std::mem::take(&mut self.heap).into_vec();
        entries.clear();
        for (state, held) in states.iter_live() {
            self.seen[state.slot as usize] = state.generation;
            if !rating.may_fit(states, state.slot) {
                continue;
            }
            if let Some(score) = rating.score(state, 1) {
                entries.push(Entry {
                    score,
                    depth: 1,
                    tie: held.tie,
                    state,
                });
            }
        }
        self.heap = BinaryHeap::from(entries);
    }
}
