//! A seeded generator of traces: tenants come, call a model a few times with pauses, sometimes
//! change to another one. It must never depend on anything but its arguments.

use crate::keepalive::{FunctionIx, TenantIx};

use super::trace::{Call, Trace};

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough for workloads.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

impl Trace {
    /// Sessions of tenants on `functions` functions for `hours` hours: arrivals of sessions are
    /// Poisson, popularity falls like one over the rank, pauses within a session are log-uniform
    /// between 5 and 300 s.
    ///
    /// # Panics
    /// When `functions` is 0.
    #[must_use]
    pub fn generate(seed: u64, functions: usize, hours: u64) -> Self {
        assert!(functions > 0, "a trace needs a function");
        let mut random = Random(seed);
        let weights: Vec<f64> = (0..functions).map(|rank| 1.0 / (rank + 1) as f64).collect();
        let total: f64 = weights.iter().sum();
        let mut calls = Vec::new();
        let (end_s, mut start_s, mut tenant) = ((hours * 3_600) as f64, 0.0, 0);
        loop {
            start_s += random.exponential(120.0);
            if start_s >= end_s {
                break;
            }
            let draw = |random: &mut Random| {
                let mut left = random.unit() * total;
                let found = weights.iter().position(|weight| {
                    left -= weight;
                    left < 0.0
                });
                FunctionIx(found.unwrap_or(0) as u32)
            };
            let mut function = draw(&mut random);
            let mut at_s = start_s;
            loop {
                let exec_s = 5.0 + random.exponential(15.0);
                calls.push(Call {
                    at_ms: (at_s * 1e3) as u64,
                    function,
                    exec_ms: (exec_s * 1e3) as u64,
                    tenant: TenantIx(tenant),
                });
                at_s += exec_s + 5.0 * (60.0_f64).powf(random.unit());
                if random.unit() < 0.2 || at_s >= end_s {
                    break;
                }
                if random.unit() < 0.2 {
                    function = draw(&mut random);
                }
            }
            // Every third session is by somebody known.
            tenant = if random.unit() < 0.33 {
                tenant / 2
            } else {
                tenant + 1
            };
        }
        calls.sort_by_key(|call| call.at_ms);
        Self { calls, functions }
    }
}
