//! Scores of states, with what they are worth kept between requests.
//! Never decides: it gives numbers to the index, and the same numbers to a scan.

use super::cluster::Cluster;
use super::index::Rating;
use super::policies::{Scored, Scorer};
use super::potential::{Depth, Worth};
use super::resources::{Ask, Free};
use super::state::{StateRef, States};

/// What one state is worth under one version of the tables.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    generation: u32,
    version: u64,
    worth: Worth,
}

/// A scorer and what it remembers.
#[derive(Clone, Debug)]
pub(crate) struct Rater {
    pub scorer: Scorer,
    /// Counts changes of the scorer; scores of different versions are never compared.
    pub version: u64,
    kept: Vec<Kept>,
    /// Devices that could serve the request scored last.
    pub candidates: Vec<u8>,
}

impl Rater {
    pub fn new(scorer: Scorer) -> Rater {
        Rater {
            scorer,
            version: 1,
            kept: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// The exact score of what is left, computed from nothing else.
    pub fn fresh(&mut self, cluster: &Cluster, free: &Free, ask: &Ask) -> Option<Scored> {
        let weighed = self.scorer.policy.weights().is_some();
        let worth = weighed.then(|| self.scorer.potential.worth(free));
        let subject = (free, &cluster.shapes[free.shape as usize]);
        self.scorer.score(
            subject,
            worth.as_ref(),
            ask,
            Depth::Exact,
            &mut self.candidates,
        )
    }

    /// The score of a listed state.
    fn listed(
        &mut self,
        cluster: &Cluster,
        state: StateRef,
        ask: &Ask,
        depth: Depth,
    ) -> Option<f32> {
        let free = &cluster.states.get(state.slot).free;
        let worth = if self.scorer.policy.weights().is_some() {
            let slot = state.slot as usize;
            if self.kept.len() <= slot {
                self.kept.resize(cluster.states.slots(), Kept::default());
            }
            let kept = &mut self.kept[slot];
            if kept.generation != state.generation || kept.version != self.version {
                let worth = self.scorer.potential.worth(free);
                *kept = Kept {
                    generation: state.generation,
                    version: self.version,
                    worth,
                };
            }
            Some(&kept.worth)
        } else {
            None
        };
        let subject = (free, &cluster.shapes[free.shape as usize]);
        let scored = self
            .scorer
            .score(subject, worth, ask, depth, &mut self.candidates)?;
        Some(scored.score)
    }
}

/// A rater as the index of one request sees it.
pub(crate) struct AskRating<'a> {
    pub rater: &'a mut Rater,
    pub cluster: &'a Cluster,
    pub ask: &'a Ask,
}

impl Rating for AskRating<'_> {
    fn may_fit(&self, states: &States, slot: u32) -> bool {
        states.digest(slot).may_fit(self.ask)
    }

    fn bound(&mut self, state: StateRef) -> Option<f32> {
        self.rater
            .listed(self.cluster, state, self.ask, Depth::Bound)
    }

    fn exact(&mut self, state: StateRef) -> Option<f32> {
        self.rater
            .listed(self.cluster, state, self.ask, Depth::Exact)
    }
}
