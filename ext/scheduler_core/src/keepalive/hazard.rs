//! How likely a tenant is to come back, by the time since its last call ended: event rates in
//! logarithmic age bins. It must never forget those who have not come back: their waiting is what
//! keeps late rates honest.
//!
//! Rates are events per second of exposure. A finer table is shrunk towards a coarser one by
//! pseudo-events (the posterior mean of a gamma-Poisson model), so a tenant seen once behaves like
//! the crowd and a regular one like itself.

use std::collections::VecDeque;
use std::f32::consts::SQRT_2;

/// Age bins: `[0, 1)` s, then half octaves up to about two days; the last one is open.
pub(crate) const BINS: usize = 36;

/// Pseudo-events that a finer table needs to stand as much for itself as for its parent.
const STRENGTH: f32 = 2.0;

/// Edges, exact for the lookup: powers of two and those times the root of two.
fn edge_s(half_octaves: usize) -> f32 {
    let octave = (half_octaves / 2) as f32;
    octave.exp2() * if half_octaves % 2 == 1 { SQRT_2 } else { 1.0 }
}

/// Lower edge of `bin`, seconds.
pub(crate) fn low_s(bin: usize) -> f32 {
    if bin == 0 {
        0.0
    } else {
        ((bin - 1) as f32 / 2.0).exp2()
    }
}

/// Upper edge of `bin`, seconds.
pub(crate) fn high_s(bin: usize) -> f32 {
    edge_s(bin)
}

/// The bin of an age.
pub(crate) fn bin_of(age_s: f32) -> usize {
    if age_s < 1.0 {
        return 0;
    }
    // Exponent and upper half of the mantissa: half octaves without a logarithm.
    let bits = age_s.to_bits();
    let octave = (bits >> 23) as usize - 127;
    let half = usize::from(bits & 0x007f_ffff >= SQRT_2.to_bits() & 0x007f_ffff);
    (1 + 2 * octave + half).min(BINS - 1)
}

/// Counted events and exposure per age bin.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    events: [f32; BINS],
    exposure_s: [f32; BINS],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            events: [0.0; BINS],
            exposure_s: [0.0; BINS],
        }
    }
}

impl Counts {
    /// Somebody was away in `bin` for `seconds`.
    pub(crate) fn expose(&mut self, bin: usize, seconds: f32) {
        self.exposure_s[bin] += seconds;
    }

    /// Somebody came back in `bin`.
    pub(crate) fn event(&mut self, bin: usize) {
        self.events[bin] += 1.0;
    }

    /// Rates with a prior that knows only that rates fall with age: a quarter event per doubling.
    pub(crate) fn rates(&self) -> [f32; BINS] {
        std::array::from_fn(|bin| {
            (self.events[bin] + 0.5) / (self.exposure_s[bin] + 2.0 * high_s(bin))
        })
    }

    /// Rates shrunk towards `parent`.
    pub(crate) fn rates_within(&self, parent: &[f32; BINS]) -> [f32; BINS] {
        std::array::from_fn(|bin| {
            (self.events[bin] + STRENGTH) / (self.exposure_s[bin] + STRENGTH / parent[bin])
        })
    }
}

/// Who is away, by age bin. All stay equally long in a bin, so in each queue the front leaves
/// first.
#[derive(Clone, Debug)]
pub(crate) struct Away<Id> {
    queues: Vec<VecDeque<(u64, Id, u64)>>,
}

impl<Id: Copy> Default for Away<Id> {
    fn default() -> Self {
        Self {
            queues: vec![VecDeque::new(); BINS],
        }
    }
}

impl<Id: Copy> Away<Id> {
    /// `id` goes away. What it does next is to make `generation` void.
    pub(crate) fn leave(&mut self, now_ms: u64, id: Id, generation: u64) {
        self.queues[0].push_back((now_ms, id, generation));
    }

    /// Tells `passed` of every bin that somebody has been away for in full (id, generation, bin,
    /// seconds); those it does not know any more in that generation are dropped.
    pub(crate) fn advance(
        &mut self,
        now_ms: u64,
        mut passed: impl FnMut(Id, u64, usize, f32) -> bool,
    ) {
        for bin in 0..BINS - 1 {
            let width_s = high_s(bin) - low_s(bin);
            let width_ms = (f64::from(width_s) * 1e3) as u64;
            while let Some((entered_ms, id, generation)) = self.queues[bin].front().copied() {
                if entered_ms + width_ms > now_ms {
                    break;
                }
                self.queues[bin].pop_front();
                if passed(id, generation, bin, width_s) {
                    self.queues[bin + 1].push_back((entered_ms + width_ms, id, generation));
                }
            }
        }
    }
}

/// Rates and their integral from age 0.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    rate: [f32; BINS],
    total: [f32; BINS],
}

impl Curve {
    pub(crate) fn new(rate: [f32; BINS]) -> Self {
        let mut total = [0.0; BINS];
        for bin in 1..BINS {
            total[bin] = total[bin - 1] + rate[bin - 1] * (high_s(bin - 1) - low_s(bin - 1));
        }
        Self { rate, total }
    }

    /// Expected events from age 0 to `age_s` of somebody who stays away.
    pub(crate) fn integral(&self, age_s: f32) -> f32 {
        let bin = bin_of(age_s);
        self.total[bin] + self.rate[bin] * (age_s - low_s(bin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_is_in_its_bin() {
        for bin in 0..BINS {
            assert_eq!(bin_of(low_s(bin)), bin);
            assert_eq!(bin_of(low_s(bin) * 1.2 + 0.01), bin);
        }
        assert_eq!(bin_of(f32::MAX), BINS - 1);
    }

    #[test]
    fn the_integral_of_a_constant_rate_is_a_line() {
        let curve = Curve::new([0.01; BINS]);
        for age in [0.0_f32, 0.5, 1.0, 7.3, 100.0, 5e4] {
            assert!((curve.integral(age) - 0.01 * age).abs() <= 1e-4 * (1.0 + age));
        }
    }

    #[test]
    fn few_events_follow_the_parent_and_many_themselves() {
        let parent = [0.1; BINS];
        let mut own = Counts::default();
        assert!((own.rates_within(&parent)[3] - 0.1).abs() < 1e-6);
        for _ in 0..1000 {
            own.event(3);
            own.expose(3, 1.0);
        }
        assert!((own.rates_within(&parent)[3] - 1.0).abs() < 0.05);
    }
}
