//! Which function is called next: a choice model that learns from every call what its features are
//! worth. It must never see a call before it scored it.
//!
//! A function's score is linear in its features and the next call is a softmax over the scores (a
//! conditional logit). Each call moves the weights by one AdaGrad step on its logarithmic loss;
//! the loss is convex, so the regret against the best fixed weights grows with the square root of
//! the calls, whatever they are. Before the first call the weights are those of a product of the
//! forecasts.
//!
//! The next call is the right question for a pool that is read into ahead of need: what is not
//! likely next may leave and be read again when it is. A pool filled on demand has to look as far
//! ahead as its entries live; see `experts`.

use super::FunctionIx;
use super::history::History;

/// Horizons of the forecasts, seconds: from half a minute to two hours, each four times the last.
const HORIZONS_S: [f32; 5] = [30.0, 120.0, 480.0, 1920.0, 7680.0];

/// Forecasts, two of the age of the last call, two of the calls that run.
const FEATURES: usize = HORIZONS_S.len() + 4;

/// Step of AdaGrad: a tenth of what a weight may be.
const STEP: f32 = 0.1;

/// Squared gradients that are assumed before the first one.
const CAUTION: f32 = 0.01;

/// Functions that a call is compared with: those called last.
const RIVALS_MAX: usize = 128;

type Features = [f32; FEATURES];

/// The weights and what they were learned from.
#[derive(Clone, Debug)]
pub(crate) struct Ranker {
    weights: Features,
    squares: Features,
    /// Functions by last call, the latest last.
    recent: Vec<FunctionIx>,
}

impl Default for Ranker {
    fn default() -> Self {
        let mut weights = [0.0; FEATURES];
        weights[..HORIZONS_S.len()].fill(1.0 / HORIZONS_S.len() as f32);
        Self {
            weights,
            squares: [CAUTION; FEATURES],
            recent: Vec::new(),
        }
    }
}

impl Ranker {
    /// Logarithm of the chance that the next call is of `function`, up to a constant that all
    /// functions share.
    pub(crate) fn score(&self, now_ms: u64, function: FunctionIx, history: &History) -> f32 {
        dot(&self.weights, &features(now_ms, function, history))
    }

    /// Forgets a function; its index may then stand for another one.
    pub(crate) fn forget(&mut self, function: FunctionIx) {
        self.recent.retain(|other| *other != function);
    }

    /// Which of `functions` is called last, by the scores: the first of equals. 0 for none.
    pub(crate) fn last(&self, now_ms: u64, functions: &[FunctionIx], history: &History) -> usize {
        let scores = functions
            .iter()
            .map(|function| self.score(now_ms, *function, history));
        let last = scores
            .enumerate()
            .min_by(|left, right| left.1.total_cmp(&right.1));
        last.map_or(0, |(at, _)| at)
    }

    /// A call of `function` is about to be told to `history`.
    pub(crate) fn learn(&mut self, now_ms: u64, function: FunctionIx, history: &History) {
        if let Some(called) = self.recent.iter().position(|other| *other == function) {
            self.step(now_ms, called, history);
            self.recent.remove(called);
        } else if self.recent.len() == RIVALS_MAX {
            self.recent.remove(0);
        }
        self.recent.push(function);
    }

    fn step(&mut self, now_ms: u64, called: usize, history: &History) {
        let rivals: Vec<Features> = self
            .recent
            .iter()
            .map(|function| features(now_ms, *function, history))
            .collect();
        let scores: Vec<f32> = rivals.iter().map(|x| dot(&self.weights, x)).collect();
        let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let chances: Vec<f32> = scores.iter().map(|score| (score - top).exp()).collect();
        let total: f32 = chances.iter().sum();
        for feature in 0..FEATURES {
            let expected: f32 = rivals
                .iter()
                .zip(&chances)
                .map(|(x, chance)| x[feature] * chance / total)
                .sum();
            let slope = rivals[called][feature] - expected;
            self.squares[feature] += slope * slope;
            self.weights[feature] += STEP * slope / self.squares[feature].sqrt();
        }
    }
}

fn dot(weights: &Features, values: &Features) -> f32 {
    weights.iter().zip(values).map(|(w, x)| w * x).sum()
}

fn features(now_ms: u64, function: FunctionIx, history: &History) -> Features {
    let mut features = [0.0; FEATURES];
    let (forecasts, others) = features.split_at_mut(HORIZONS_S.len());
    history.demand(now_ms, function, &HORIZONS_S, forecasts);
    for forecast in forecasts {
        *forecast = (*forecast + 1e-7).ln();
    }
    let age = history.age_s(now_ms, function).ln_1p();
    let running = history.running(function) as f32;
    others.copy_from_slice(&[age, age * age / 20.0, running.ln_1p(), running.min(1.0)]);
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keepalive::TenantIx;

    #[test]
    fn learns_what_is_called_next_even_against_what_it_began_with() {
        // Strangers call three functions in turn: next is whichever was called longest ago.
        let (mut ranker, mut history) = (Ranker::default(), History::default());
        let functions = [0, 1, 2].map(FunctionIx);
        let mut now_ms = 0;
        let mut right = 0;
        for call in 0..600_u32 {
            now_ms += 100_000;
            let function = functions[call as usize % 3];
            if call >= 500 {
                let last = ranker.last(now_ms, &functions, &history);
                right += u32::from(functions[last] == functions[(call as usize + 2) % 3]);
            }
            ranker.learn(now_ms, function, &history);
            history.arrived(now_ms, function, TenantIx(call));
            history.completed(now_ms + 10_000, function, TenantIx(call));
        }
        assert_eq!(right, 100, "{ranker:?}");
    }
}
