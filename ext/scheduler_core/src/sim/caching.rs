//! The pure caching view: equal slots, a call of a function without a slot is a miss and takes one.
//! It must never let a policy refuse admission: whoever is called gets a slot.

use crate::keepalive::{FunctionIx, Policy, Tier};

use super::trace::Trace;

/// Whether each call of the trace missed, with `slots` slots and victims named by `policy`.
///
/// The policy hears of the call, then of its eviction question, then (in order of time) of
/// completions, which are
/// `exec_ms` after the arrival: the view has no queues and no start times.
///
/// # Panics
/// When `slots` is 0 or the policy names a candidate that does not exist.
pub fn policy_misses(trace: &Trace, slots: usize, policy: &mut dyn Policy) -> Vec<bool> {
    assert!(slots > 0, "a cache needs a slot");
    let mut resident: Vec<FunctionIx> = Vec::with_capacity(slots);
    let mut running = std::collections::BinaryHeap::new();
    let mut misses = Vec::with_capacity(trace.calls.len());
    for (number, call) in trace.calls.iter().enumerate() {
        while let Some(std::cmp::Reverse((end_ms, done))) = running.peek().copied() {
            if end_ms > call.at_ms {
                break;
            }
            running.pop();
            let ended: &super::Call = &trace.calls[done];
            policy.completed(end_ms, ended.function, ended.tenant);
        }
        policy.arrived(call.at_ms, call.function, call.tenant);
        running.push(std::cmp::Reverse((call.at_ms + call.exec_ms, number)));
        let place = resident.binary_search(&call.function);
        misses.push(place.is_err());
        if place.is_err() {
            if resident.len() == slots {
                let out = policy.victim(call.at_ms, Tier::Host, &resident);
                resident.remove(out);
            }
            let place = resident.partition_point(|function| *function < call.function);
            resident.insert(place, call.function);
        }
    }
    misses
}

/// Whether each call missed under the clairvoyant optimum (Belady: throw out what is needed last).
///
/// # Panics
/// When `slots` is 0.
#[must_use]
pub fn optimum_misses(trace: &Trace, slots: usize) -> Vec<bool> {
    assert!(slots > 0, "a cache needs a slot");
    let mut next_call = vec![usize::MAX; trace.calls.len()];
    let mut later = vec![usize::MAX; trace.functions];
    for (number, call) in trace.calls.iter().enumerate().rev() {
        let function = call.function.0 as usize;
        next_call[number] = later[function];
        later[function] = number;
    }
    let mut resident: Vec<(FunctionIx, usize)> = Vec::with_capacity(slots);
    let mut misses = Vec::with_capacity(trace.calls.len());
    for (number, call) in trace.calls.iter().enumerate() {
        let found = resident
            .iter()
            .position(|(function, _)| *function == call.function);
        misses.push(found.is_none());
        if let Some(place) = found {
            resident[place].1 = next_call[number];
            continue;
        }
        if resident.len() == slots {
            let last = (0..slots).max_by_key(|place| resident[*place].1);
            resident.swap_remove(last.unwrap_or(0));
        }
        resident.push((call.function, next_call[number]));
    }
    misses
}
