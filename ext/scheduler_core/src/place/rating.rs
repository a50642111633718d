//! Scores of states, with what they are worth kept between requests.
//! Never decides: it gives numbers to the index, and the same numbers to a scan.

use super::cluster::Cluster;
use super::index::Rating;
use super::learn::{Demand, Typical};
use super::policies::{Policy, Scored, Scorer, Yardstick};
use super::potential::{Potential, Supply, Weights, Worth};
use super::request::Request;
use super::resources::{Ask, Free, Shape};
use super::state::{StateRef, States};

/// For policies that do not weigh what a node is worth.
const NO_WEIGHTS: Weights = Weights {
    capped_odds: 0.0,
    scarcity: 0.0,
    best_fit: 0.0,
    any_device: false,
};

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
    pub fn new(policy: Policy) -> Rater {
        let nothing = Supply {
            cpu: 0,
            mem: 0,
            units: 0,
            devices: 0,
        };
        let demand = Demand::default();
        let potential = Potential::new((&[], &demand), &[], NO_WEIGHTS, &nothing, |_| 0);
        let scorer = Scorer {
            policy,
            any_device: policy.weights().is_some_and(|weights| weights.any_device),
            potential,
            yardstick: Yardstick::default(),
        };
        Rater {
            scorer,
            version: 1,
            kept: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Draws up the tables anew, for these typical requests on the nodes that there are.
    pub fn redraw(&mut self, cluster: &Cluster, typical: &[Typical], demand: &Demand) {
        let shapes = || cluster.shapes.iter().filter(|shape| shape.nodes > 0);
        let total = |part: fn(&Shape) -> u64| {
            shapes()
                .map(|shape| part(shape) * u64::from(shape.nodes))
                .sum::<u64>()
        };
        let supply = Supply {
            cpu: total(|shape| u64::from(shape.cpu)),
            mem: total(|shape| u64::from(shape.empty.mem)),
            units: cluster.units,
            devices: total(|shape| shape.empty.devices.len() as u64),
        };
        let able = |request: &Request| {
            let able = shapes().filter(|shape| shape.empty.check(request, &cluster.kinds).is_ok());
            able.map(|shape| u64::from(shape.units) * u64::from(shape.nodes))
                .sum()
        };
        let weights = self.scorer.policy.weights().unwrap_or(NO_WEIGHTS);
        self.scorer.potential =
            Potential::new((typical, demand), &cluster.kinds, weights, &supply, able);
        self.scorer.yardstick = Yardstick {
            cpu: shapes().map(|shape| shape.cpu).max().unwrap_or(0),
            units: shapes().map(|shape| shape.units).max().unwrap_or(0),
        };
        self.version += 1;
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
            self.scorer.depth(),
            &mut self.candidates,
        )
    }

    /// The score of a listed state.
    fn listed(&mut self, cluster: &Cluster, state: StateRef, ask: &Ask, depth: u8) -> Option<f32> {
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

    fn depth_full(&self) -> u8 {
        self.rater.scorer.depth()
    }

    fn score(&mut self, state: StateRef, depth: u8) -> Option<f32> {
        self.rater.listed(self.cluster, state, self.ask, depth)
    }
}
