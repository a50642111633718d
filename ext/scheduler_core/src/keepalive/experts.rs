//! Which forecast horizon (or greedy-dual) makes the best victims here: every expert runs a cache
//! of its own on the side. It must never let an expert see more than the history at the time of the
//! call.
//!
//! Why shadow caches: the right horizon of a forecast depends on how long an entry lives, hence on
//! the number of slots and on the load; greedy-dual needs no horizon and is hard to beat. The
//! leader is the expert whose own cache would have missed least. The real cache follows the
//! leader's content, so its misses follow the leader's, whoever that is.

use super::FunctionIx;
use super::history::History;

/// Horizons of the forecasting experts, seconds: doubling from half a minute to four hours.
pub(crate) const HORIZONS_S: [f32; 10] = [
    30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3840.0, 7680.0, 15360.0,
];

/// Experts: one per horizon, their geometric mean, greedy-dual.
const EXPERTS: usize = HORIZONS_S.len() + 2;
const GREEDY: usize = EXPERTS - 1;

/// How a shadow's misses fade, in calls: old regret must not outlive the habits it came from.
const FADE: f64 = 1.0 - 1.0 / 20_000.0;

/// Shadow caches of equal capacity.
#[derive(Clone, Debug)]
pub(crate) struct Experts {
    capacity: usize,
    caches: Vec<Vec<FunctionIx>>,
    misses: [f64; EXPERTS],
    calls: Vec<u64>,
    /// Greedy-dual: value of each function, inflation of its shadow.
    value: Vec<u64>,
    inflation: u64,
}

impl Experts {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            caches: vec![Vec::new(); EXPERTS],
            misses: [0.0; EXPERTS],
            calls: Vec::new(),
            value: Vec::new(),
            inflation: 0,
        }
    }

    /// Replays an arrival in every shadow. `history` knows of the call already.
    pub(crate) fn arrived(&mut self, now_ms: u64, function: FunctionIx, history: &History) {
        let at = function.0 as usize;
        if at >= self.calls.len() {
            self.calls.resize(at + 1, 0);
            self.value.resize(at + 1, 0);
        }
        self.calls[at] += 1;
        let mut scores = Scores::new(now_ms, history);
        for expert in 0..EXPERTS {
            self.misses[expert] *= FADE;
            if self.caches[expert].contains(&function) {
                continue;
            }
            self.misses[expert] += 1.0;
            if self.caches[expert].len() >= self.capacity {
                let out = self.lowest(expert, &self.caches[expert], &mut scores);
                let gone = self.caches[expert].swap_remove(out);
                if expert == GREEDY {
                    self.inflation = self.inflation.max(self.value[gone.0 as usize]);
                }
            }
            self.caches[expert].push(function);
        }
        self.value[at] = self.inflation + self.calls[at];
    }

    /// The expert with the fewest misses of late.
    pub(crate) fn leader(&self) -> usize {
        (0..EXPERTS)
            .min_by(|a, b| self.misses[*a].total_cmp(&self.misses[*b]))
            .unwrap_or(GREEDY)
    }

    /// The victim: not in the leader's cache, and the lowest of those by the leader's own measure.
    pub(crate) fn victim(
        &self,
        now_ms: u64,
        candidates: &[FunctionIx],
        history: &History,
    ) -> usize {
        let leader = self.leader();
        let mut scores = Scores::new(now_ms, history);
        let outside: Vec<usize> = (0..candidates.len())
            .filter(|at| !self.caches[leader].contains(&candidates[*at]))
            .collect();
        let names: Vec<FunctionIx> = outside.iter().map(|at| candidates[*at]).collect();
        if names.is_empty() {
            return self.lowest(leader, candidates, &mut scores);
        }
        outside[self.lowest(leader, &names, &mut scores)]
    }

    fn lowest(&self, expert: usize, functions: &[FunctionIx], scores: &mut Scores<'_>) -> usize {
        let key = |function: FunctionIx, scores: &mut Scores<'_>| {
            if expert == GREEDY {
                self.value.get(function.0 as usize).copied().unwrap_or(0) as f32
            } else {
                scores.of(function)[expert]
            }
        };
        let mut best = (0, key(functions[0], scores));
        for (at, function) in functions.iter().enumerate().skip(1) {
            let value = key(*function, scores);
            if value < best.1 {
                best = (at, value);
            }
        }
        best.0
    }
}

/// Forecasts at one moment, computed once per function.
struct Scores<'a> {
    now_ms: u64,
    history: &'a History,
    known: Vec<(FunctionIx, [f32; GREEDY])>,
}

impl<'a> Scores<'a> {
    fn new(now_ms: u64, history: &'a History) -> Self {
        Self {
            now_ms,
            history,
            known: Vec::new(),
        }
    }

    fn of(&mut self, function: FunctionIx) -> [f32; GREEDY] {
        if let Some((_, found)) = self.known.iter().find(|(other, _)| *other == function) {
            return *found;
        }
        let mut demand = [0.0; HORIZONS_S.len()];
        self.history
            .demand(self.now_ms, function, &HORIZONS_S, &mut demand);
        let mut scores = [0.0; GREEDY];
        for (score, demand) in scores.iter_mut().zip(demand) {
            *score = demand;
        }
        scores[GREEDY - 1] = demand.iter().map(|value| value.ln()).sum();
        self.known.push((function, scores));
        scores
    }
}
