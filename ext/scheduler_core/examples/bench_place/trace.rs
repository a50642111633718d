//! Reads node and pod lists and draws the arrivals of one run from them.
//! Never looks at a list beyond its columns; unknown columns are ignored.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use scheduler_core::place::{
    Cluster, DeviceSpec, GpuRequest, GpuShare, NodeSpec, Request, TypeSet,
};

/// Units of one GPU: thousandths.
pub const GPU_UNITS: u32 = 1000;

/// SplitMix64: small, seeded, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

/// The GPU nodes of a list.
pub struct Nodes(pub Vec<NodeSpec>);

impl Nodes {
    pub fn units(&self) -> u64 {
        let devices = self.0.iter().flat_map(|node| &node.devices);
        devices.map(|device| u64::from(device.capacity)).sum()
    }

    /// The nodes `scale` times, in the order of the list or shuffled.
    pub fn specs(&self, scale: u32, shuffle: Option<Random>) -> Vec<NodeSpec> {
        let copy = |copy: u32| {
            self.0.iter().map(move |node| {
                let name = if copy == 0 {
                    node.name.clone()
                } else {
                    format!("{}-{copy}", node.name)
                };
                NodeSpec {
                    name,
                    ..node.clone()
                }
            })
        };
        let mut specs: Vec<NodeSpec> = (0..scale).flat_map(copy).collect();
        if let Some(mut random) = shuffle {
            random.shuffle(&mut specs);
        }
        specs
    }
}

/// A pod of a list, before its GPU types have numbers.
pub struct Pod {
    pub name: String,
    pub cpu_millis: u32,
    pub mem_mb: u32,
    pub gpus: u8,
    pub gpu_millis: u32,
    pub types: String,
}

/// A list of pods and the figures published for it, by policy.
pub struct Trace {
    pub name: String,
    pub published: HashMap<String, f64>,
    pods: Vec<Pod>,
}

/// GPU units that a request takes.
pub fn demand(request: &Request) -> u64 {
    request.gpu.map_or(0, |gpu| {
        let units = match gpu.share {
            GpuShare::Whole => GPU_UNITS,
            GpuShare::Units(units) => units,
        };
        u64::from(units) * u64::from(gpu.count)
    })
}

impl Trace {
    /// A list without published figures.
    pub fn new(name: String, pods: Vec<Pod>) -> Trace {
        Trace {
            name,
            published: HashMap::new(),
            pods,
        }
    }

    /// The requests of all pods, sorted by the name of the pod.
    pub fn requests(&self, cluster: &mut Cluster) -> Vec<Request> {
        self.pods.iter().map(|pod| pod.request(cluster)).collect()
    }

    /// Shuffles the requests, then removes random ones while they ask for more than `target`
    /// units, or else repeats random ones until the next would ask for more.
    pub fn arrivals(&self, all: &[Request], target: u64, random: &mut Random) -> Vec<Request> {
        let mut drawn = all.to_vec();
        random.shuffle(&mut drawn);
        let mut sum: u64 = drawn.iter().map(demand).sum();
        if sum > target {
            while sum > target {
                // Keeps the order of the rest, as a removal from a list does.
                sum -= demand(&drawn.remove(random.below(drawn.len())));
            }
            return drawn;
        }
        loop {
            let next = all[random.below(all.len())];
            sum += demand(&next);
            if sum > target {
                return drawn;
            }
            drawn.push(next);
        }
    }
}

impl Pod {
    fn request(&self, cluster: &mut Cluster) -> Request {
        let types = if self.types.is_empty() {
            TypeSet::ANY
        } else {
            cluster
                .type_set(self.types.split('|'))
                .expect("a list has few GPU types")
        };
        let whole = self.gpus > 1 || self.gpu_millis == GPU_UNITS;
        let share = if whole {
            GpuShare::Whole
        } else {
            GpuShare::Units(self.gpu_millis)
        };
        let gpu = GpuRequest {
            count: self.gpus,
            share,
            contexts: 1,
            types,
        };
        Request {
            cpu_millis: self.cpu_millis,
            mem_mb: self.mem_mb,
            cache_mb: 0,
            gpu: (self.gpus > 0).then_some(gpu),
        }
    }
}

/// The rows of a CSV file without quoting, by column name; missing columns read as "".
struct Table {
    columns: HashMap<String, usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(path: &Path) -> Result<Table, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{path:?}: {error}"))?;
        let split = |line: &str| {
            line.split(',')
                .map(|field| field.trim().to_owned())
                .collect()
        };
        let mut lines = text.lines().filter(|line| !line.is_empty());
        let header: Vec<String> = lines.next().map(split).unwrap_or_default();
        let columns = header
            .into_iter()
            .enumerate()
            .map(|(at, name)| (name, at))
            .collect();
        Ok(Table {
            columns,
            rows: lines.map(split).collect(),
        })
    }

    fn text<'a>(&self, row: &'a [String], column: &str) -> &'a str {
        let at = self.columns.get(column);
        at.and_then(|at| row.get(*at)).map_or("", String::as_str)
    }

    fn number(&self, row: &[String], column: &str) -> Result<u32, String> {
        let text = self.text(row, column);
        let value: Option<f64> = if text.is_empty() {
            Some(0.0)
        } else {
            text.parse().ok()
        };
        let value = value.filter(|value| (0.0..=f64::from(u32::MAX)).contains(value));
        value
            .map(|value| value as u32)
            .ok_or(format!("column {column}: bad number {text:?}"))
    }
}

fn read_nodes(path: &Path) -> Result<Nodes, String> {
    let table = Table::read(path)?;
    let mut nodes = Vec::new();
    for row in &table.rows {
        let gpus = table.number(row, "gpu")?;
        if gpus == 0 {
            continue;
        }
        let gpu_type = table.text(row, "model").to_owned();
        let device = DeviceSpec {
            gpu_type,
            capacity: GPU_UNITS,
        };
        nodes.push(NodeSpec {
            name: table.text(row, "sn").to_owned(),
            cpu_millis: table.number(row, "cpu_milli")?,
            mem_mb: table.number(row, "memory_mib")?,
            cache_mb: 0,
            devices: vec![device; gpus as usize],
            context_overhead: 0,
            contexts_max: None,
            pods_max: None,
        });
    }
    Ok(Nodes(nodes))
}

fn read_pods(path: &Path) -> Result<Vec<Pod>, String> {
    let table = Table::read(path)?;
    let pods = table.rows.iter().map(|row| {
        Ok(Pod {
            name: table.text(row, "name").to_owned(),
            cpu_millis: table.number(row, "cpu_milli")?,
            mem_mb: table.number(row, "memory_mib")?,
            gpus: table.number(row, "num_gpu")?.min(255) as u8,
            gpu_millis: table.number(row, "gpu_milli")?,
            types: table.text(row, "gpu_spec").to_owned(),
        })
    });
    let mut pods = pods.collect::<Result<Vec<Pod>, String>>()?;
    pods.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(pods)
}

fn read_published(path: &Path) -> Result<HashMap<String, HashMap<String, f64>>, String> {
    let mut found: HashMap<String, HashMap<String, f64>> = HashMap::new();
    if !path.exists() {
        return Ok(found);
    }
    let table = Table::read(path)?;
    for row in &table.rows {
        let pct = table.text(row, "alloc_pct_mean@130").parse().ok();
        if let Some(pct) = pct {
            let by_policy = found
                .entry(table.text(row, "workload").to_owned())
                .or_default();
            by_policy.insert(table.text(row, "policy").to_owned(), pct);
        }
    }
    Ok(found)
}

/// All lists of a folder, by name.
pub fn load(folder: &Path) -> Result<(Nodes, Vec<Trace>), String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{folder:?}: {error}"))?;
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".csv"))
        .collect();
    files.sort();
    let node_file = files.iter().find(|name| name.contains("node_list"));
    let node_file = node_file.ok_or(format!("{folder:?} has no *node_list*.csv"))?;
    let nodes = read_nodes(&folder.join(node_file))?;
    let mut published = read_published(&folder.join("published_alloc_by_policy.csv"))?;
    let mut traces = Vec::new();
    for file in files.iter().filter(|name| name.contains("pod_list_")) {
        let stem = file.trim_end_matches(".csv");
        let name = stem.rsplit("pod_list_").next().unwrap_or(stem).to_owned();
        let pods = read_pods(&folder.join(file))?;
        let published = published.remove(stem).unwrap_or_default();
        traces.push(Trace {
            name,
            published,
            pods,
        });
    }
    Ok((nodes, traces))
}
