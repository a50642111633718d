//! When to hold an idle worker and when to let it go and come back: the cheapest plan for a
//! forecast. It must never plan on anything but the forecast that it is given.
//!
//! A held second costs `price` waited seconds. If the next call finds a worker, its user saves the
//! resume time and the resume is not held for; if not, nothing is lost but that. Resuming ahead of
//! need costs the resume time once, held. Backward induction over steps of constant rate gives, for
//! each step, the value of being held and of being parked, under the condition that no call came so
//! far; a call ends the plan in either case.

/// Edges of the steps, seconds from now: a second each at first, then about a quarter longer each
/// time, to 36 hours.
pub(crate) const STEPS: usize = 56;

/// The edges; see `STEPS`.
pub(crate) fn edges_s() -> [f32; STEPS + 1] {
    let mut edges = [0.0; STEPS + 1];
    for at in 1..=STEPS {
        edges[at] = edges[at - 1] + (edges[at - 1] * 0.22_f32).max(1.0).floor();
    }
    edges
}

/// What to do from now on while no call comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Seconds from now until which a held worker stays; 0 is park now.
    pub(crate) keep_s: f32,
    /// Seconds from now at which a parked worker is resumed.
    pub(crate) prewarm_s: Option<f32>,
}

/// The best plan. `calls[i]` is the expected number of calls in step `i`, given that none came
/// before.
pub(crate) fn plan(
    edges_s: &[f32; STEPS + 1],
    calls: &[f32; STEPS],
    resume_s: f32,
    price: f32,
) -> Plan {
    let saved = resume_s * (1.0 + price);
    let (mut held, mut parked) = (0.0_f32, 0.0_f32);
    let mut keep_s = 0.0;
    let mut prewarm_s = None;
    for step in (0..STEPS).rev() {
        let width_s = edges_s[step + 1] - edges_s[step];
        let quiet = (-calls[step]).exp();
        let called = 1.0 - quiet;
        let held_s = if calls[step] > 1e-6 {
            width_s * called / calls[step]
        } else {
            width_s
        };
        // Going on from the end of the step: a held worker may be parked there, a parked one
        // resumed.
        let hold = called * saved - price * held_s + quiet * held.max(parked);
        let park = quiet * parked.max(held - price * resume_s);
        if hold <= park {
            keep_s = edges_s[step];
        } else if held <= parked {
            keep_s = edges_s[step + 1];
        }
        if hold - price * resume_s > park {
            prewarm_s = Some(edges_s[step]);
        }
        (held, parked) = (hold, park);
    }
    Plan { keep_s, prewarm_s }
}
