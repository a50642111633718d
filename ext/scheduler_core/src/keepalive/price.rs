//! What a held GPU second costs in waited seconds: given, or found so that a share of busy time is
//! met. It must never react faster than sessions come and go: a steady price is the cheapest way to
//! meet a budget.

/// Step of the search per worker life: the price moves by a factor e when the budget is off by a
/// hundred lives.
const GAIN: f64 = 0.01;

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
        let over = held_ms as f64 - busy_ms as f64 / share;
        let mean = self.held_ms / self.lives;
        self.log += GAIN * over / mean.max(1.0);
    }
}
