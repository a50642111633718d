//! Prints JSON lines of the keep-alive benchmark for a trace; `bench/keepalive.py` is the friendly
//! front of it. It must never print a figure that the same command does not print again.

use std::error::Error;
use std::io::{self, Write};
use std::{env, fs};

use scheduler_core::keepalive::{Adaptive, FixedKeepAlive, Goal, GreedyDual, Lru, Policy};
use scheduler_core::sim::{Clairvoyant, ClairvoyantPool, NodeConfig, Summary, Trace};
use scheduler_core::sim::{optimum_misses, policy_misses, simulate};

const USAGE: &str = "usage: keepalive --trace FILE.csv [--slots 8,16] [--pools 20,6] \
                     [--parallel 1] [--days FROM:TO]";

/// Fixed keep-alives of the comparison, seconds.
const FIXED_S: [u64; 19] = [
    0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 3600,
];

/// Shares of busy time that the policy is asked for; the first is the default setting.
const SHARES: [f64; 15] = [
    Adaptive::DEFAULT_BUSY_SHARE,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.45,
    0.5,
    0.55,
    0.6,
    0.7,
    0.75,
    0.8,
    0.9,
    0.95,
];

struct Options {
    trace: Trace,
    name: String,
    slots: Vec<usize>,
    pools: Vec<usize>,
    parallel: usize,
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let (mut path, mut days) = (None, None);
        let (mut slots, mut pools, mut parallel) = (vec![8, 16], vec![20, 6], 1);
        let mut arguments = env::args().skip(1);
        while let Some(option) = arguments.next() {
            let value = arguments.next().ok_or(USAGE)?;
            match option.as_str() {
                "--trace" => path = Some(value),
                "--slots" => slots = numbers(&value)?,
                "--pools" => pools = numbers(&value)?,
                "--parallel" => parallel = value.parse()?,
                "--days" => days = Some(value),
                _ => return Err(format!("unknown option {option}\n{USAGE}").into()),
            }
        }
        let path = path.ok_or(USAGE)?;
        let file = path.rsplit('/').next().unwrap_or(&path);
        let mut name = file.trim_end_matches(".csv").to_owned();
        let mut trace = Trace::parse(&fs::read_to_string(&path)?)?;
        if let Some(days) = days {
            let (from, to) = days.split_once(':').ok_or(USAGE)?;
            trace = trace.days(from.parse()?, to.parse()?);
            name = format!("{name}:{from}-{to}");
        }
        if slots.contains(&0) || parallel == 0 {
            return Err("--slots and --parallel are at least 1".into());
        }
        Ok(Self {
            trace,
            name,
            slots,
            pools,
            parallel,
        })
    }
}

fn numbers(text: &str) -> Result<Vec<usize>, std::num::ParseIntError> {
    text.split(',').map(|part| part.trim().parse()).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    let mut out = io::stdout().lock();
    caching(&mut out, &options)?;
    let unlimited = NodeConfig {
        parallel: options.parallel,
        ..NodeConfig::unlimited(options.trace.functions)
    };
    scenario(&mut out, &options, "genai8_unlimited", &unlimited)?;
    for pool in &options.pools {
        let config = NodeConfig {
            parallel: options.parallel,
            ..NodeConfig::genai8(*pool)
        };
        scenario(&mut out, &options, "genai8", &config)?;
        clairvoyant(&mut out, &options, &config)?;
    }
    Ok(())
}

/// Equal slots: what share of calls misses.
fn caching(out: &mut impl Write, options: &Options) -> io::Result<()> {
    let Options { trace, name, .. } = options;
    let goal = Goal::BusyShare(Adaptive::DEFAULT_BUSY_SHARE);
    for slots in options.slots.iter().copied() {
        let policies: [(&str, Box<dyn Policy>); 3] = [
            ("lru", Box::new(Lru::default())),
            ("greedy-dual", Box::new(GreedyDual::default())),
            ("inferx", Box::new(Adaptive::new(goal, 1_000))),
        ];
        let mut rows: Vec<(&str, Vec<bool>)> = policies
            .into_iter()
            .map(|(policy, mut rules)| (policy, policy_misses(trace, slots, rules.as_mut())))
            .collect();
        rows.push(("optimum", optimum_misses(trace, slots)));
        for (policy, misses) in rows {
            let missed = misses.iter().filter(|miss| **miss).count() as f64;
            let percent = 100.0 * missed / misses.len().max(1) as f64;
            writeln!(
                out,
                concat!(
                    r#"{{"bench":"keepalive","trace":"{}","slots":{},"policy":"{}","#,
                    r#""miss_pct":{:.3}}}"#
                ),
                name, slots, policy, percent
            )?;
        }
    }
    Ok(())
}

/// One node: ours over its knob and without reading ahead, fixed keep-alives, and immediate parking
/// with either pool rule.
fn scenario(
    out: &mut impl Write,
    options: &Options,
    bench: &str,
    config: &NodeConfig,
) -> io::Result<()> {
    let trace = &options.trace;
    for (place, share) in SHARES.into_iter().enumerate() {
        let mut policy = Adaptive::new(Goal::BusyShare(share), config.host_start_ms);
        let run = simulate(config, trace, &mut policy).summary;
        row(
            out,
            (bench, &options.name, "inferx"),
            (share, place == 0),
            config,
            &run,
        )?;
    }
    let on_demand = NodeConfig {
        reads_ahead: false,
        ..config.clone()
    };
    let share = Adaptive::DEFAULT_BUSY_SHARE;
    let mut policy = Adaptive::new(Goal::BusyShare(share), config.host_start_ms);
    let run = simulate(&on_demand, trace, &mut policy).summary;
    row(
        out,
        (bench, &options.name, "inferx-on-demand"),
        (share, false),
        config,
        &run,
    )?;
    for keep_s in FIXED_S {
        let mut policy = FixedKeepAlive::new(keep_s * 1_000, Lru::default());
        let run = simulate(config, trace, &mut policy).summary;
        row(
            out,
            (bench, &options.name, "fixed"),
            (keep_s as f64, false),
            config,
            &run,
        )?;
    }
    let run = simulate(config, trace, &mut Lru::default()).summary;
    row(
        out,
        (bench, &options.name, "lru"),
        (0.0, false),
        config,
        &run,
    )?;
    let run = simulate(config, trace, &mut GreedyDual::default()).summary;
    row(
        out,
        (bench, &options.name, "greedy-dual"),
        (0.0, false),
        config,
        &run,
    )
}

/// What knowing the future would gain: in the pool with our decisions on the GPUs, first without
/// and then with reading ahead; and everywhere.
fn clairvoyant(out: &mut impl Write, options: &Options, config: &NodeConfig) -> io::Result<()> {
    let share = Adaptive::DEFAULT_BUSY_SHARE;
    let ours = || Adaptive::new(Goal::BusyShare(share), config.host_start_ms);
    let Options { trace, name, .. } = options;
    let policies: [(&str, Box<dyn Policy>); 3] = [
        (
            "clairvoyant-pool",
            Box::new(ClairvoyantPool::on_demand(trace, ours())),
        ),
        (
            "clairvoyant-pool-ahead",
            Box::new(ClairvoyantPool::ahead(trace, ours())),
        ),
        (
            "clairvoyant",
            Box::new(Clairvoyant::new(trace, config.host_start_ms)),
        ),
    ];
    for (policy, mut rules) in policies {
        let run = simulate(config, trace, rules.as_mut()).summary;
        row(out, ("genai8", name, policy), (share, false), config, &run)?;
    }
    Ok(())
}

fn row(
    out: &mut impl Write,
    (bench, trace, policy): (&str, &str, &str),
    (knob, default): (f64, bool),
    config: &NodeConfig,
    run: &Summary,
) -> io::Result<()> {
    write!(
        out,
        r#"{{"bench":"{bench}","trace":"{trace}","policy":"{policy}","knob":{knob},"#
    )?;
    write!(out, r#""default":{default},"#)?;
    write!(
        out,
        r#""pool":{},"parallel":{},"#,
        config.host_models, config.parallel
    )?;
    write!(
        out,
        r#""cold_pct":{:.3},"file_pct":{:.3},"#,
        run.cold_pct, run.file_pct
    )?;
    write!(
        out,
        r#""host_pct":{:.3},"warm_pct":{:.3},"#,
        run.host_pct, run.warm_pct
    )?;
    write!(
        out,
        r#""wait_mean_s":{:.4},"wait_p95_s":{:.3},"#,
        run.wait_mean_s, run.wait_p95_s
    )?;
    write!(out, r#""wait_p99_s":{:.3},"#, run.wait_p99_s)?;
    write!(
        out,
        r#""busy_over_held_pct":{:.3},"#,
        run.busy_over_held_pct
    )?;
    writeln!(
        out,
        r#""fetches":{},"prewarms":{}}}"#,
        run.fetches, run.prewarms
    )
}
