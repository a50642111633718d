//! Node states: nodes of one shape with the same resources left are interchangeable and share one.
//! Never knows a policy; it says what is left, who has it and which states came to life since when.

use std::collections::{BTreeSet, VecDeque};

use super::hashing::FastMap;
use super::resources::{Digest, Free};

/// One state; it is alive while a ready node is in it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub free: Free,
    pub tie: u64,
    /// Changes when the slot is given to another state, so that old references show.
    pub generation: u32,
    /// How often the state lost its last node; tells the valid entry of the list of the dead.
    pub deaths: u32,
    /// Ready nodes in this state: (hash of the name, slot of the node).
    pub nodes: BTreeSet<(u64, u32)>,
}

impl State {
    /// Whether it is dead since that death: it may have come back to life, and died again.
    fn died_last(&self, deaths: u32) -> bool {
        self.nodes.is_empty() && self.deaths == deaths
    }
}

/// A state and the generation it was met in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StateRef {
    pub slot: u32,
    pub generation: u32,
}

/// All states, with a log of those that came to life.
#[derive(Clone, Debug, Default)]
pub(crate) struct States {
    slots: Vec<State>,
    digests: Vec<Digest>,
    by_free: FastMap<Free, u32>,
    /// Slots without nodes, oldest first; kept for a while because starts and stops repeat.
    dead: VecDeque<(u32, u32)>,
    live: usize,
    log: VecDeque<StateRef>,
    log_start: u64,
}

impl States {
    pub fn get(&self, slot: u32) -> &State {
        &self.slots[slot as usize]
    }

    /// The digest of the state in a slot.
    pub fn digest(&self, slot: u32) -> &Digest {
        &self.digests[slot as usize]
    }

    /// Number of slots, dead ones included.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Number of states that some ready node is in.
    pub fn live(&self) -> usize {
        self.live
    }

    /// The states that some ready node is in.
    pub fn iter_live(&self) -> impl Iterator<Item = (StateRef, &State)> {
        let live = (0..self.slots.len()).filter(|slot| self.digests[*slot].live);
        live.map(|slot| {
            let state = &self.slots[slot];
            (
                StateRef {
                    slot: slot as u32,
                    generation: state.generation,
                },
                state,
            )
        })
    }

    /// Whether the reference still means a state with nodes in it.
    pub fn is_live(&self, state: StateRef) -> bool {
        let held = &self.slots[state.slot as usize];
        held.generation == state.generation && !held.nodes.is_empty()
    }

    /// The end of the log; what comes to life later is found from here on.
    pub fn log_end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    /// States that came to life since `from`, or `None` when the log no longer reaches back.
    pub fn born_since(&self, from: u64) -> Option<impl Iterator<Item = StateRef>> {
        let skip = from.checked_sub(self.log_start)?;
        Some(self.log.iter().skip(skip as usize).copied())
    }

    /// Puts a node into the state that `free` describes and returns the slot of that state.
    pub fn enter(&mut self, free: Free, tie: impl Fn(&Free) -> u64, node: (u64, u32)) -> u32 {
        let slot = match self.by_free.get(&free) {
            Some(slot) => *slot,
            None => self.create(free, tie),
        };
        let state = &mut self.slots[slot as usize];
        if state.nodes.is_empty() {
            self.live += 1;
            self.digests[slot as usize].live = true;
            self.log.push_back(StateRef {
                slot,
                generation: state.generation,
            });
            while self.log.len() > 2 * self.live + 64 {
                self.log.pop_front();
                self.log_start += 1;
            }
        }
        state.nodes.insert(node);
        slot
    }

    /// Takes a node out of its state.
    pub fn leave(&mut self, slot: u32, node: (u64, u32)) {
        let state = &mut self.slots[slot as usize];
        state.nodes.remove(&node);
        if state.nodes.is_empty() {
            self.live -= 1;
            self.digests[slot as usize].live = false;
            state.deaths = state.deaths.wrapping_add(1);
            self.dead.push_back((slot, state.deaths));
            if self.dead.len() > 2 * self.slots.len() + 64 {
                let slots = &self.slots;
                self.dead
                    .retain(|(slot, deaths)| slots[*slot as usize].died_last(*deaths));
            }
        }
    }

    fn create(&mut self, free: Free, tie: impl Fn(&Free) -> u64) -> u32 {
        let hash = tie(&free);
        let reused = self.reusable();
        let slot = reused.unwrap_or(self.slots.len() as u32);
        self.by_free.insert(free.clone(), slot);
        self.digests
            .resize(self.digests.len().max(slot as usize + 1), Digest::default());
        self.digests[slot as usize] = Digest::new(&free);
        if reused.is_some() {
            let state = &mut self.slots[slot as usize];
            self.by_free.remove(&state.free);
            (state.free, state.tie) = (free, hash);
            state.generation = state.generation.checked_add(1).unwrap_or(1);
        } else {
            self.slots.push(State {
                free,
                tie: hash,
                generation: 1,
                deaths: 0,
                nodes: BTreeSet::new(),
            });
        }
        slot
    }

    fn reusable(&mut self) -> Option<u32> {
        while self.dead.len() > self.live + 256 {
            let (slot, deaths) = self.dead.pop_front()?;
            if self.slots[slot as usize].died_last(deaths) {
                return Some(slot);
            }
        }
        None
    }
}
