//! All nodes of a core, and the index that says which of them suits a request best.
//! It must never own the truth: that is each node's `Ledger`; the index is derived from it.
//!
//! Whoever changes a node goes through [`Fleet::get_mut`], which notes the node; before a decision,
//! and when a verb ends, what the index says of the noted nodes is derived from their ledgers
//! again. An answer of the index counts only once the ledger confirms it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Index;

use crate::ledger::Ledger;
use crate::nodes::{Capacity, Holding, NoFit, Node, NodeId, Request, place};
use crate::place;

/// The nodes of a core.
#[derive(Debug)]
pub struct Fleet {
    nodes: BTreeMap<NodeId, Node>,
    placer: place::Placer,
    indexed: BTreeMap<NodeId, Indexed>,
    numbers: BTreeMap<place::NodeId, NodeId>,
    /// Nodes that may differ from what the index says, also those whose back-off passes with time.
    noted: BTreeSet<NodeId>,
    /// GPU types that some node had, in lower case.
    kinds: BTreeSet<String>,
    /// Nodes that the index cannot express.
    strange: usize,
    /// What requests were told that no node takes, and when.
    refusals: HashMap<Request, (u64, NoFit)>,
}

/// How long a count of refusals stands for those who ask for the same (ms). It explains, and
/// decides nothing; to count anew asks every node.
const REFUSALS_KEPT_MS: u64 = 250;
const REFUSALS_MAX: usize = 1_024;

/// A node in the index; none where it has more GPUs or types than the index knows of.
#[derive(Debug)]
struct Indexed {
    entry: Option<place::NodeId>,
    capacity: Capacity,
}

impl Default for Fleet {
    fn default() -> Fleet {
        Fleet::new(place::Policy::default())
    }
}

impl Fleet {
    /// No nodes yet; `policy` will choose among them.
    pub fn new(policy: place::Policy) -> Fleet {
        Fleet {
            nodes: BTreeMap::new(),
            placer: place::Placer::new(policy),
            indexed: BTreeMap::new(),
            numbers: BTreeMap::new(),
            noted: BTreeSet::new(),
            kinds: BTreeSet::new(),
            strange: 0,
            refusals: HashMap::new(),
        }
    }
}

impl Index<&NodeId> for Fleet {
    type Output = Node;

    fn index(&self, id: &NodeId) -> &Node {
        &self.nodes[id]
    }
}

impl Fleet {
    /// Adds a node under a number that is new.
    pub fn insert(&mut self, id: NodeId, node: Node) {
        self.noted.insert(id);
        self.nodes.insert(id, node);
    }

    /// Removes a node.
    pub fn remove(&mut self, id: &NodeId) {
        self.noted.remove(id);
        self.nodes.remove(id);
        self.drop_entry(*id);
    }

    /// A node.
    pub fn get(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    /// A node that is about to change.
    pub fn get_mut(&mut self, id: &NodeId) -> Option<&mut Node> {
        let node = self.nodes.get_mut(id)?;
        self.noted.insert(*id);
        Some(node)
    }

    /// All nodes with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }

    /// All nodes.
    pub fn values(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Counts a pod that is wanted towards what is typical; once per pod, not once per attempt.
    pub fn learn(&mut self, request: &Request) {
        if let Some(request) = self.translate(request) {
            self.placer.observe(&request);
        }
    }

    /// The node for a request and what it takes there, or how many nodes refused it for which
    /// reason.
    pub fn choose(&mut self, request: &Request, now_ms: u64) -> Result<(NodeId, Holding), NoFit> {
        self.refresh(now_ms);
        if let Some(asked) = self.translate(request) {
            match self.placer.decide(&asked) {
                Some(choice) => {
                    if let Some(found) = self.confirm(&choice, request) {
                        return Ok(found);
                    }
                }
                None if self.strange == 0 => {
                    if let Some((told_ms, no_fit)) = self.refusals.get(request)
                        && now_ms < told_ms + REFUSALS_KEPT_MS
                    {
                        return Err(no_fit.clone());
                    }
                }
                None => {}
            }
        }
        // Either no node fits, and the refusals have to be counted, or the index cannot express it.
        let nodes = self.nodes.iter().map(|(id, node)| (*id, node));
        let found = place(nodes, request, now_ms);
        if let Err(no_fit) = &found {
            if self.refusals.len() >= REFUSALS_MAX {
                self.refusals.clear();
            }
            let told = (now_ms, no_fit.clone());
            self.refusals.insert(request.clone(), told);
        }
        found
    }

    /// The same among some nodes only, those that have a snapshot for instance.
    pub fn choose_among(
        &mut self,
        request: &Request,
        nodes: &[NodeId],
        now_ms: u64,
    ) -> Option<(NodeId, Holding)> {
        if nodes.is_empty() {
            return None;
        }
        self.refresh(now_ms);
        if let Some(asked) = self.translate(request) {
            let entries = nodes.iter().filter_map(|id| self.indexed.get(id)?.entry);
            let entries: Vec<place::NodeId> = entries.collect();
            if let Some(choice) = self.placer.best_among(&asked, &entries)
                && let Some(found) = self.confirm(&choice, request)
            {
                return Some(found);
            }
        }
        let nodes = nodes
            .iter()
            .filter_map(|id| Some((*id, self.nodes.get(id)?)));
        place(nodes, request, now_ms).ok()
    }

    /// What the ledger says to an answer of the index.
    fn confirm(&self, choice: &place::Choice, request: &Request) -> Option<(NodeId, Holding)> {
        let id = *self.numbers.get(&choice.node)?;
        let ledger = &self.nodes[&id].ledger;
        let gpus = &ledger.capacity.gpus;
        let devices = choice.devices.iter().map(|at| gpus[usize::from(*at)].index);
        let devices: Vec<u32> = devices.collect();
        let holding = ledger.fit_on(request, &devices).ok()?;
        Some((id, holding))
    }

    /// Brings the index into step with the nodes that changed.
    pub fn refresh(&mut self, now_ms: u64) {
        for id in std::mem::take(&mut self.noted) {
            let node = &self.nodes[&id];
            let known = self.indexed.get(&id);
            if known.is_none_or(|known| known.capacity != node.ledger.capacity) {
                self.drop_entry(id);
                self.add_entry(id);
            }
            let node = &self.nodes[&id];
            if node.retry_at_ms > now_ms {
                self.noted.insert(id);
            }
            let Some(entry) = self.indexed[&id].entry else {
                continue;
            };
            let cluster = self.placer.cluster_mut();
            let known = "the index has the node";
            cluster.set_left(entry, left_of(&node.ledger)).expect(known);
            cluster
                .set_ready(entry, is_open(node, now_ms))
                .expect(known);
        }
    }

    fn add_entry(&mut self, id: NodeId) {
        let node = &self.nodes[&id];
        let capacity = node.ledger.capacity.clone();
        let kinds = capacity
            .gpus
            .iter()
            .map(|gpu| gpu.kind.to_ascii_lowercase());
        self.kinds.extend(kinds);
        let entry = self
            .placer
            .cluster_mut()
            .add_node(spec_of(&node.name, &capacity))
            .ok();
        match entry {
            Some(entry) => _ = self.numbers.insert(entry, id),
            None => self.strange += 1,
        }
        self.indexed.insert(id, Indexed { entry, capacity });
        self.refusals.clear();
    }

    fn drop_entry(&mut self, id: NodeId) {
        let Some(known) = self.indexed.remove(&id) else {
            return;
        };
        self.refusals.clear();
        let Some(entry) = known.entry else {
            self.strange -= 1;
            return;
        };
        self.numbers.remove(&entry);
        let dropped = self.placer.cluster_mut().remove_node(entry);
        dropped.expect("the index has the node");
    }

    /// The request in the terms of the index, or nothing where it has none for it.
    fn translate(&mut self, request: &Request) -> Option<place::Request> {
        let gpu = match request.gpu.as_ref().filter(|gpu| gpu.count > 0) {
            None => None,
            Some(gpu) => Some(place::GpuRequest {
                count: u8::try_from(gpu.count).ok()?,
                share: match gpu.vram_mib {
                    0 => place::GpuShare::Whole,
                    mib => place::GpuShare::Units(u32::try_from(mib).ok()?),
                },
                contexts: u16::try_from(gpu.contexts).ok()?,
                types: self.types(&gpu.kind)?,
            }),
        };
        Some(place::Request {
            cpu_millis: u32::try_from(request.cpu_millis).ok()?,
            mem_mb: u32::try_from(request.mem_mib).ok()?,
            cache_mb: u32::try_from(request.cache_mib).ok()?,
            gpu,
        })
    }

    fn types(&mut self, kind: &str) -> Option<place::TypeSet> {
        let kind = kind.to_ascii_lowercase();
        if kind.is_empty() || kind == "any" {
            return Some(place::TypeSet::ANY);
        }
        // The index remembers every type that it is asked for, and there is room for few.
        if !self.kinds.contains(&kind) {
            return None;
        }
        self.placer.cluster_mut().type_set([kind.as_str()]).ok()
    }

    /// Panics when the index is not in step with the nodes; for tests, it looks at everything.
    pub fn check(&self, now_ms: u64) {
        let cluster = self.placer.cluster();
        assert_eq!(
            self.indexed.len(),
            self.nodes.len(),
            "every node was indexed"
        );
        assert_eq!(cluster.nodes().count(), self.numbers.len(), "and no other");
        let strange = self.indexed.values().filter(|known| known.entry.is_none());
        assert_eq!(
            strange.count(),
            self.strange,
            "nodes that it cannot express"
        );
        for (id, node) in &self.nodes {
            let (name, known) = (&node.name, &self.indexed[id]);
            assert_eq!(
                known.capacity, node.ledger.capacity,
                "{name}: indexed as it is"
            );
            let Some(entry) = known.entry else { continue };
            assert_eq!(
                self.numbers.get(&entry),
                Some(id),
                "{name}: found by its entry"
            );
            let left = cluster.left(entry).expect("indexed");
            assert_eq!(
                left,
                left_of(&node.ledger),
                "{name}: left by index and ledger"
            );
            if !self.noted.contains(id) {
                let ready = cluster.view(entry).expect("indexed").ready;
                assert_eq!(ready, is_open(node, now_ms), "{name}: open in the index");
            }
        }
    }
}

/// May anything go to this node now? One that is overfull takes not even what needs nothing.
fn is_open(node: &Node, now_ms: u64) -> bool {
    let nothing = Request::default();
    node.closed(now_ms).is_none() && node.ledger.fit(&nothing).is_ok()
}

fn units(amount: u64) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

fn spec_of(name: &str, has: &Capacity) -> place::NodeSpec {
    let devices = has.gpus.iter().map(|gpu| place::DeviceSpec {
        gpu_type: gpu.kind.to_ascii_lowercase(),
        capacity: units(gpu.vram_mib),
    });
    place::NodeSpec {
        name: name.to_owned(),
        cpu_millis: units(has.cpu_millis),
        mem_mb: units(has.mem_mib),
        cache_mb: match has.cache_mib {
            0 => u32::MAX,
            limit => units(limit),
        },
        devices: devices.collect(),
        context_overhead: units(has.context_overhead_mib),
        contexts_max: match has.contexts_per_gpu_max {
            0 => None,
            limit => u16::try_from(limit).ok(),
        },
        pods_max: match has.pods_max {
            0 => None,
            limit => Some(limit),
        },
    }
}

/// What the books leave, in the terms of the index.
fn left_of(ledger: &Ledger) -> place::Left {
    let (used, has) = (&ledger.used, &ledger.capacity);
    let rest = |has: u64, used: u64| units(has.saturating_sub(used));
    let devices = has.gpus.iter().map(|gpu| {
        let (mib, contexts) = ledger.share_of(gpu.index);
        let limit = u16::try_from(has.contexts_per_gpu_max).unwrap_or(0);
        place::DeviceLeft {
            units: rest(gpu.vram_mib, mib),
            contexts: match limit {
                0 => None,
                limit => Some(u32::from(limit).saturating_sub(contexts)),
            },
        }
    });
    place::Left {
        cpu_millis: rest(has.cpu_millis, used.cpu_millis),
        mem_mb: rest(has.mem_mib, used.mem_mib),
        cache_mb: match has.cache_mib {
            0 => u32::MAX,
            limit => rest(limit, used.cache_mib),
        },
        pods: match has.pods_max {
            0 => None,
            limit => Some(limit.saturating_sub(used.pods)),
        },
        devices: devices.collect(),
    }
}
