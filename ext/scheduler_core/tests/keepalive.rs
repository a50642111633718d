//! What a user of the keep-alive policy and of its simulator would notice: causality, budgets,
//! baselines. It must never need a file; `INFERX_TRACE` names one to run the causality tests on as
//! well.

use scheduler_core::keepalive::{Adaptive, FixedKeepAlive, FunctionIx, Goal, GreedyDual, Lru};
use scheduler_core::keepalive::{Policy, TenantIx, Tier};
use scheduler_core::sim::{Call, Clairvoyant, ClairvoyantPool, Decision, NodeConfig, Trace};
use scheduler_core::sim::{optimum_misses, policy_misses, simulate};

fn adaptive(share: f64) -> Adaptive {
    Adaptive::new(Goal::BusyShare(share), 1_000)
}

fn traces() -> Vec<Trace> {
    let mut traces = vec![Trace::generate(1, 30, 48), Trace::generate(2, 100, 24)];
    if let Ok(path) = std::env::var("INFERX_TRACE") {
        let text = std::fs::read_to_string(&path).expect("INFERX_TRACE can be read");
        traces.push(Trace::parse(&text).expect("INFERX_TRACE is a trace"));
    }
    traces
}

fn call(at_s: u64, function: u32, exec_s: u64) -> Call {
    Call {
        at_ms: at_s * 1_000,
        function: FunctionIx(function),
        exec_ms: exec_s * 1_000,
        tenant: TenantIx(0),
    }
}

fn missed(misses: &[bool]) -> usize {
    misses.iter().filter(|miss| **miss).count()
}

#[test]
fn decisions_on_a_prefix_are_those_on_the_whole() {
    for trace in traces() {
        for pool in [6, 20] {
            let config = NodeConfig::genai8(pool);
            let whole = simulate(&config, &trace, &mut adaptive(0.7)).decisions;
            for part in [3, 10, 50, 90] {
                let prefix = trace.prefix(trace.calls.len() * part / 100);
                let Some(last) = prefix.calls.last() else {
                    continue;
                };
                let known = |decisions: &[(u64, Decision)]| {
                    let end = decisions.partition_point(|(at_ms, _)| *at_ms < last.at_ms);
                    decisions[..end].to_vec()
                };
                let run = simulate(&config, &prefix, &mut adaptive(0.7));
                assert_eq!(
                    known(&run.decisions),
                    known(&whole),
                    "{part} % of the trace"
                );
            }
        }
    }
}

#[test]
fn victims_on_a_prefix_are_those_on_the_whole() {
    for trace in traces() {
        let whole = policy_misses(&trace, 8, &mut adaptive(0.8));
        let prefix = trace.prefix(trace.calls.len() / 2);
        let part = policy_misses(&prefix, 8, &mut adaptive(0.8));
        assert_eq!(part, whole[..part.len()]);
    }
}

#[test]
fn the_optimum_misses_least_and_ours_hardly_more_than_greedy_dual() {
    let trace = Trace::generate(3, 60, 96);
    for slots in [4, 8, 16] {
        let optimum = missed(&optimum_misses(&trace, slots));
        let greedy = missed(&policy_misses(&trace, slots, &mut GreedyDual::default()));
        let ours = missed(&policy_misses(&trace, slots, &mut adaptive(0.8)));
        let lru = missed(&policy_misses(&trace, slots, &mut Lru::default()));
        assert!(optimum <= ours.min(greedy).min(lru), "{slots} slots");
        // Generated tenants give little to forecast from; the mixture may pay this to find out.
        assert!(
            ours as f64 <= 1.01 * greedy as f64,
            "{slots} slots: ours {ours}, greedy-dual {greedy}"
        );
    }
}

#[test]
fn the_share_of_busy_time_is_met() {
    let trace = Trace::generate(4, 30, 240);
    for share in [0.5, 0.7, 0.81] {
        let run = simulate(&NodeConfig::genai8(20), &trace, &mut adaptive(share)).summary;
        let off = run.busy_over_held_pct - 100.0 * share;
        assert!(
            off.abs() < 2.0,
            "asked {share}, got {}",
            run.busy_over_held_pct
        );
    }
}

#[test]
fn users_wait_less_than_with_a_fixed_keep_alive_of_the_same_cost() {
    let trace = Trace::generate(5, 30, 240);
    let config = NodeConfig::unlimited(trace.functions);
    for keep_ms in [10_000, 30_000, 120_000] {
        let fixed = simulate(
            &config,
            &trace,
            &mut FixedKeepAlive::new(keep_ms, Lru::default()),
        );
        let share = fixed.summary.busy_over_held_pct / 100.0;
        let ours = simulate(&config, &trace, &mut adaptive(share)).summary;
        assert!(
            ours.wait_mean_s < fixed.summary.wait_mean_s,
            "{keep_ms} ms: {ours:?}"
        );
    }
}

#[test]
fn who_knows_more_of_the_future_lets_users_wait_less() {
    let trace = Trace::generate(6, 30, 48);
    let config = NodeConfig::genai8(6);
    let ours = || adaptive(0.8);
    let mut policies: [Box<dyn Policy>; 4] = [
        Box::new(ours()),
        Box::new(ClairvoyantPool::on_demand(&trace, ours())),
        Box::new(ClairvoyantPool::ahead(&trace, ours())),
        Box::new(Clairvoyant::new(&trace, config.host_start_ms)),
    ];
    let runs = policies
        .each_mut()
        .map(|policy| simulate(&config, &trace, policy.as_mut()).summary);
    let waits_s = runs.each_ref().map(|run| run.wait_mean_s);
    assert!(
        waits_s.is_sorted_by(|less, more| less > more),
        "{waits_s:?}"
    );
    assert!(runs[3].wait_mean_s < 0.1, "{:?}", runs[3]);
    assert!(runs[3].busy_over_held_pct > 80.0, "{:?}", runs[3]);
}

#[test]
fn a_pool_read_ahead_keeps_regular_functions_from_one_off_calls() {
    // Two functions called every minute by the same tenants, a pool for two, and strangers who call
    // something else once: what they called does not stay in the pool.
    let mut calls = Vec::new();
    for minute in 0..300 {
        for function in 0..2 {
            let mut regular = call(60 * minute + 20 * u64::from(function), function, 5);
            regular.tenant = TenantIx(function);
            calls.push(regular);
        }
        if minute % 10 == 9 {
            let mut once = call(60 * minute + 50, 2 + minute as u32 / 10, 5);
            once.tenant = TenantIx(2 + minute as u32 / 10);
            calls.push(once);
        }
    }
    let trace = Trace {
        calls,
        functions: 32,
    };
    let config = NodeConfig::genai8(2);
    let lru = simulate(&config, &trace, &mut Lru::default()).summary;
    let ours = simulate(&config, &trace, &mut adaptive(0.8)).summary;
    let once_pct = 100.0 * 30.0 / 630.0;
    assert!(ours.file_pct < once_pct + 1.0, "{ours:?}");
    assert!(lru.file_pct > once_pct + 4.0, "{lru:?}");
    let on_demand = NodeConfig {
        reads_ahead: false,
        ..config
    };
    let run = simulate(&on_demand, &trace, &mut adaptive(0.8)).summary;
    assert_eq!(run.fetches, 0);
    assert!(run.file_pct > ours.file_pct, "{run:?}");
}

#[test]
fn start_costs_and_tiers_are_those_of_the_scenario() {
    // Two functions and a pool for one: cold, cold (throws the first out), file, then idle, then
    // from the pool.
    let calls = vec![
        call(0, 0, 10),
        call(100, 1, 10),
        call(200, 0, 10),
        call(218, 0, 10),
        call(300, 0, 10),
    ];
    let trace = Trace {
        calls,
        functions: 2,
    };
    let mut policy = FixedKeepAlive::new(5_000, Lru::default());
    let config = NodeConfig {
        all_on_file: false,
        ..NodeConfig::genai8(1)
    };
    let run = simulate(&config, &trace, &mut policy).summary;
    let shares = [run.cold_pct, run.file_pct, run.host_pct, run.warm_pct];
    assert_eq!(shares, [40.0, 20.0, 20.0, 20.0]);
    let waited = 2.0 * 22.7 + 6.0 + 0.0 + 1.0;
    assert!((run.wait_mean_s - waited / 5.0).abs() < 1e-9);
    let idle = 5.0 * 4.0 + 2.0;
    assert!((run.held_s - (50.0 + waited + idle)).abs() < 1e-9);
    assert!((run.busy_s - 50.0).abs() < 1e-9);
}

#[test]
fn calls_wait_for_room_and_all_are_served() {
    // 30 functions at once on 24 places: the last six get the places of the first that end. All
    // are read from file.
    let calls = (0..30).map(|function| call(0, function, 60)).collect();
    let trace = Trace {
        calls,
        functions: 30,
    };
    let run = simulate(&NodeConfig::genai8(20), &trace, &mut adaptive(0.8)).summary;
    assert_eq!(run.calls, 30);
    let waited = 24.0 * 6.0 + 6.0 * (6.0 + 60.0 + 6.0);
    assert!((run.wait_mean_s - waited / 30.0).abs() < 1e-9, "{run:?}");
}

#[test]
fn slots_of_one_worker_are_shared() {
    let calls = (0..4).map(|at_s| call(100 + at_s, 0, 60)).collect();
    let trace = Trace {
        calls,
        functions: 1,
    };
    let config = NodeConfig {
        parallel: 4,
        ..NodeConfig::unlimited(1)
    };
    let run = simulate(&config, &trace, &mut Lru::default()).summary;
    assert!((run.wait_mean_s - 0.25).abs() < 1e-9, "{run:?}");
    assert!(
        (run.busy_s - 62.0).abs() < 1e-9,
        "one worker from 101 s to 163 s: {run:?}"
    );
}

#[test]
fn a_regular_tenant_is_met_by_a_warm_worker() {
    let (function, tenant) = (FunctionIx(0), TenantIx(0));
    let mut policy = Adaptive::new(Goal::Price(0.02), 1_000);
    let mut now_ms = 0;
    for _ in 0..50 {
        policy.arrived(now_ms, function, tenant);
        now_ms += 20_000;
        policy.completed(now_ms, function, tenant);
        now_ms += 120_000;
    }
    let idle_ms = now_ms - 120_000;
    assert_eq!(
        policy.keep_until(idle_ms, function, idle_ms, 0),
        idle_ms,
        "parked at once"
    );
    let resumed_ms = policy
        .prewarm_at(idle_ms, function)
        .expect("resumed ahead of need")
        - idle_ms;
    assert!(
        (40_000..120_000).contains(&resumed_ms),
        "resumed after {resumed_ms} ms"
    );
}

#[test]
fn a_victim_is_always_one_of_the_candidates() {
    let mut policy = adaptive(0.8);
    let candidates: Vec<FunctionIx> = (0..9).map(FunctionIx).collect();
    for count in 1..candidates.len() {
        for tier in [Tier::Host, Tier::Gpu] {
            assert!(policy.victim(1_000, tier, &candidates[..count]) < count);
        }
    }
}
