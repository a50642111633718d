//! What a held GPU second costs in waited seconds: given, or found so that a share of busy time is
//! met. It must never react faster than sessions come and go: a steady price is the cheapest way to
//! meet a budget.

/// How fast the price follows what the last worker lives cost: by a factor e per two hundred lives
/// over budget. Slower is cheaper and leaves more of the first lives' overspending unpaid.
const GAIN: f64 = 0.005;

/// How fast it works off what was overspent since the start; with this value the two together do
/// not swing.
const REPAY: f64 = GAIN * GAIN / 4.0;

/// Overspending beyond this many lives is not worked off any faster.
const OVER_MAX: f64 = 100.0;

/// What the policy is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Waited seconds that a held GPU second is worth.
    Price(f64),
    /// Share of held GPU time that is to be busy, above 0 and below 1.
    BusyShare(f64),
}

/// The price and what moves it.
#[derive(Clone, Debug)]
pub(crate) struct Price {
    goal: Goal,
    log: f64,
    lives: f64,
    held_ms: f64,
    /// Held time over budget so far.
    over_ms: f64,
}

impl Price {
    pub(crate) fn new(goal: Goal) -> Self {
        let log = match goal {
            Goal::Price(price) => price.ln(),
            // The price at which an hour held is worth a minute waited; the search goes on from
            // there.
            Goal::BusyShare(_) => (1.0_f64 / 60.0).ln(),
        };
        Self {
            goal,
            log,
            lives: 0.0,
            held_ms: 0.0,
            over_ms: 0.0,
        }
    }

    pub(crate) fn now(&self) -> f32 {
        self.log.exp() as f32
    }

    /// A worker's life ended.
    pub(crate) fn charged(&mut self, held_ms: u64, busy_ms: u64) {
        let Goal::BusyShare(share) = self.goal else {
            return;
        };
        self.lives += 1.0;
        self.held_ms += held_ms as f64;
        let mean_ms = (self.held_ms / self.lives).max(1.0);
        let over_ms = held_ms as f64 - busy_ms as f64 / share;
        self.over_ms += over_ms;
        // One long life must not upset the price: what it overspent is worked off slowly instead.
        self.log += GAIN * (over_ms / mean_ms).clamp(-1.0, 1.0);
        self.log += REPAY * (self.over_ms / mean_ms).clamp(-OVER_MAX, OVER_MAX);
    }
}
