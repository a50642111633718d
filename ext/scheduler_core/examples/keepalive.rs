//! Prints JSON lines of the keep-alive benchmark for a trace; `bench/keepalive.py` is the friendly
//! front of it. It must never print a figure that the same command does not print again.

use std::io::Write;
use std::{env, error::Error, fs};

use scheduler_core::keepalive::{FixedKeepAlive, GreedyDual, Lru, Policy};
use scheduler_core::sim::{NodeConfig, Summary, Trace, optimum_misses, policy_misses, simulate};

/// Fixed keep-alives of the comparison, seconds.
const FIXED_S: [u64; 19] = [
    0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 3600,
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: keepalive TRACE.csv [SLOTS,SLOTS...]")?;
    let slots = arguments.next().unwrap_or_else(|| "8,16".to_owned());
    let slots = slots
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()?;
    let trace = Trace::parse(&fs::read_to_string(&path)?)?;
    let name = path
        .rsplit('/')
        .next()
        .unwrap_or(&path)
        .trim_end_matches(".csv");
    let mut out = std::io::stdout().lock();
    for slots in slots {
        let policies: [(&str, Box<dyn Policy>); 2] = [
            ("lru", Box::new(Lru::default())),
            ("greedy-dual", Box::new(GreedyDual::default())),
        ];
        for (policy, mut rules) in policies {
            let misses = policy_misses(&trace, slots, rules.as_mut());
            caching_row(&mut out, name, slots, policy, &misses)?;
        }
        caching_row(
            &mut out,
            name,
            slots,
            "optimum",
            &optimum_misses(&trace, slots),
        )?;
    }
    for (scenario, config) in [
        ("unlimited", NodeConfig::unlimited(trace.functions)),
        ("20", NodeConfig::genai8(20)),
        ("6", NodeConfig::genai8(6)),
    ] {
        for keep_s in FIXED_S {
            let mut policy = FixedKeepAlive::new(keep_s * 1000, Lru::default());
            let run = simulate(&config, &trace, &mut policy);
            node_row(
                &mut out,
                name,
                scenario,
                "fixed",
                &keep_s.to_string(),
                &run.summary,
            )?;
        }
    }
    Ok(())
}

fn caching_row(
    out: &mut impl Write,
    trace: &str,
    slots: usize,
    policy: &str,
    misses: &[bool],
) -> std::io::Result<()> {
    let share = misses.iter().filter(|miss| **miss).count() as f64 / misses.len().max(1) as f64;
    writeln!(
        out,
        "{{\"bench\":\"keepalive\",\"trace\":\"{trace}\",\"slots\":{slots},\
         \"policy\":\"{policy}\",\"miss_pct\":{:.3}}}",
        100.0 * share
    )
}

fn node_row(
    out: &mut impl Write,
    trace: &str,
    pool: &str,
    policy: &str,
    knob: &str,
    run: &Summary,
) -> std::io::Result<()> {
    writeln!(
        out,
        concat!(
            r#"{{"bench":"genai8","trace":"{}","policy":"{}","knob":{},"pool":"{}","#,
            r#""cold_pct":{:.3},"file_pct":{:.3},"host_pct":{:.3},"warm_pct":{:.3},"#,
            r#""wait_mean_s":{:.4},"wait_p95_s":{:.3},"wait_p99_s":{:.3},"#,
            r#""busy_over_held_pct":{:.3},"fetches":{},"prewarms":{}}}"#
        ),
        trace,
        policy,
        knob,
        pool,
        run.cold_pct,
        run.file_pct,
        run.host_pct,
        run.warm_pct,
        run.wait_mean_s,
        run.wait_p95_s,
        run.wait_p99_s,
        run.busy_over_held_pct,
        run.fetches,
        run.prewarms
    )
}
