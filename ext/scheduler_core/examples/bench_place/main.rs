//! Measures placement on lists of real pods: GPUs allocated and time per decision, by policy.
//! Never tunes anything to a list: every policy gets the arrivals and nothing else.
//!
//! Usage: `bench_place [DIR] [--seeds N] [--only POLICY,..] [--traces NAME,..]`, where DIR holds
//! `*node_list*.csv`, `*pod_list_*.csv` and, if known, `published_alloc_by_policy.csv`. Without
//! DIR, nodes and pods are made up from a fixed seed.

mod generate;
mod trace;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use scheduler_core::place::{Placer, Policy, Request};
use trace::{Nodes, Random, Trace};

/// A row of the table: a policy and the way it is run.
struct Variant {
    name: &'static str,
    policy: Policy,
    /// The typical requests are told beforehand, from the list itself.
    known: bool,
    /// Nodes are added in random order instead of the order of the file.
    shuffled: bool,
    /// So many copies of every node, and as many arrivals.
    scale: u32,
}

const fn variant(name: &'static str, policy: Policy) -> Variant {
    Variant {
        name,
        policy,
        known: false,
        shuffled: false,
        scale: 1,
    }
}

/// About 10,000 nodes from the 1,213 of the list.
const SCALE_LARGE: u32 = 8;

fn variants() -> Vec<Variant> {
    let mut rows: Vec<Variant> = Policy::ALL
        .into_iter()
        .map(|policy| Variant {
            // The published FGD knows the distribution of the list.
            known: policy == Policy::Fgd,
            ..variant(policy.name(), policy)
        })
        .collect();
    let ours = || variant("inferx", Policy::Inferx);
    rows.push(Variant {
        name: "inferx-known",
        known: true,
        ..ours()
    });
    rows.push(Variant {
        name: "inferx-shuffled",
        shuffled: true,
        ..ours()
    });
    rows.push(Variant {
        name: "inferx-10k",
        scale: SCALE_LARGE,
        ..ours()
    });
    rows
}

/// What one run, or several together, came to.
#[derive(Default)]
struct Outcome {
    at_100: f64,
    at_130: f64,
    runs: f64,
    nanos: Vec<u32>,
    /// CPU time of all arrivals: what one core needs, also on a machine with other work.
    busy_nanos: f64,
}

/// Arrivals as a share of the GPUs of the cluster, at the end of a run.
const ARRIVAL_PCT: u64 = 130;

fn run(variant: &Variant, trace: &Trace, nodes: &Nodes, seed: u64, outcome: &mut Outcome) {
    let mut random = Random::new(seed);
    let policy = match variant.policy {
        Policy::Random(_) => Policy::Random(seed),
        policy => policy,
    };
    let mut placer = Placer::new(policy);
    let order = nodes.specs(variant.scale, variant.shuffled.then(|| Random::new(!seed)));
    for spec in order {
        placer
            .cluster_mut()
            .add_node(spec)
            .expect("names of nodes are unique");
    }
    let requests = trace.requests(placer.cluster_mut());
    let capacity = nodes.units() * u64::from(variant.scale);
    let arrivals = trace.arrivals(&requests, capacity * ARRIVAL_PCT / 100, &mut random);
    if variant.known {
        requests
            .iter()
            .for_each(|request| placer.expect(request, 1));
        placer.relearn();
    }
    let (mut arrived, mut used, mut at_100) = (0, 0, None);
    let (wall, busy) = (Instant::now(), busy_nanos());
    for request in &arrivals {
        let demand = trace::demand(request);
        let start = Instant::now();
        let placed = decide(&mut placer, request, variant.known);
        outcome
            .nanos
            .push(start.elapsed().as_nanos().min(u128::from(u32::MAX)) as u32);
        arrived += demand;
        used += if placed { demand } else { 0 };
        if arrived >= capacity && at_100.is_none() {
            at_100 = Some(used);
        }
    }
    let wall = wall.elapsed().as_nanos() as f64;
    outcome.busy_nanos += match (busy, busy_nanos()) {
        (Some(start), Some(end)) => (end - start) as f64,
        _ => wall,
    };
    let pct = |units: u64| units as f64 * 100.0 / capacity as f64;
    outcome.at_130 += pct(used);
    outcome.at_100 += pct(at_100.unwrap_or(used));
    outcome.runs += 1.0;
}

/// CPU time of this thread so far, where the kernel tells (Linux).
fn busy_nanos() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// One arrival: learn from it unless all is known, decide, deduct.
fn decide(placer: &mut Placer, request: &Request, known: bool) -> bool {
    if !known {
        placer.observe(request);
    }
    let Some(choice) = placer.decide(request) else {
        return false;
    };
    let placed = placer
        .cluster_mut()
        .allocate(choice.node, *request, &choice.devices);
    placed.expect("what was decided fits");
    true
}

fn row(variant: &Variant, trace: &Trace, mut outcome: Outcome) -> String {
    outcome.nanos.sort_unstable();
    let per_second = outcome.nanos.len() as f64 * 1e9 / outcome.busy_nanos;
    let at = |part: f64| {
        let index = (outcome.nanos.len() as f64 * part) as usize;
        f64::from(outcome.nanos[index.min(outcome.nanos.len() - 1)]) / 1e3
    };
    let mut line = format!("{{\"bench\":\"place\",\"trace\":\"{}\"", trace.name);
    let _ = write!(line, ",\"policy\":\"{}\"", variant.name);
    let _ = write!(
        line,
        ",\"alloc_pct_130\":{:.2}",
        outcome.at_130 / outcome.runs
    );
    let _ = write!(
        line,
        ",\"alloc_pct_100\":{:.2}",
        outcome.at_100 / outcome.runs
    );
    let _ = write!(line, ",\"decisions_per_s\":{per_second:.0}");
    let _ = write!(
        line,
        ",\"p50_us\":{:.2},\"p99_us\":{:.2}",
        at(0.5),
        at(0.99)
    );
    let published = trace
        .published
        .get(variant.name.split('-').next().unwrap_or_default());
    let published = published.or_else(|| trace.published.get("FGD").filter(|_| ours(variant)));
    match published {
        Some(pct) => drop(write!(line, ",\"published\":{pct}")),
        None => line.push_str(",\"published\":null"),
    }
    line.push('}');
    line
}

/// Our own policy is compared with the best published one.
fn ours(variant: &Variant) -> bool {
    variant.policy == Policy::Inferx
}

const USAGE: &str = "usage: bench_place [DIR] [--seeds N] [--only POLICY,..] [--traces NAME,..]";

struct Arguments {
    folder: Option<PathBuf>,
    seeds: u64,
    only: Option<Vec<String>>,
    traces: Option<Vec<String>>,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments {
        folder: None,
        seeds: 10,
        only: None,
        traces: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let list = |text: String| Some(text.split(',').map(str::to_owned).collect());
        match word.as_str() {
            "--seeds" => {
                found.seeds = value()?.parse().map_err(|_| "--seeds needs a number")?;
            }
            "--only" => found.only = list(value()?),
            "--traces" => found.traces = list(value()?),
            flag if flag.starts_with('-') => return Err(format!("{flag}: {USAGE}")),
            _ => found.folder = Some(PathBuf::from(word)),
        }
    }
    if found.seeds == 0 {
        return Err(USAGE.to_owned());
    }
    Ok(found)
}

fn measure() -> Result<(), String> {
    let wanted = arguments()?;
    let (nodes, traces) = match &wanted.folder {
        Some(folder) => trace::load(folder)?,
        None => generate::generate(),
    };
    let chosen = |list: &Option<Vec<String>>, name: &str| {
        list.as_ref()
            .is_none_or(|list| list.iter().any(|other| other == name))
    };
    for trace in traces
        .iter()
        .filter(|trace| chosen(&wanted.traces, &trace.name))
    {
        for variant in variants()
            .iter()
            .filter(|variant| chosen(&wanted.only, variant.name))
        {
            let mut outcome = Outcome::default();
            let seeds = if variant.scale > 1 { 1 } else { wanted.seeds };
            for seed in 0..seeds {
                run(variant, trace, &nodes, seed, &mut outcome);
            }
            let line = row(variant, trace, outcome);
            writeln!(io::stdout(), "{line}").map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            let _ = writeln!(io::stderr(), "{problem}");
            ExitCode::FAILURE
        }
    }
}
