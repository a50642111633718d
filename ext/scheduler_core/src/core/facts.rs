//! `observe`: facts about functions, tenants and nodes; each may be told any number of times.
//! It must never ask back; what a fact does not say stays as it was.

use super::Core;
use super::fault::Fault;
use super::messages::{Fact, Refusal};
use super::model::{Backoff, FuncId, FuncKey, PodIx, Policy, Spec};
use crate::nodes::{Capacity, Ledger, Node, NodeId};

impl Core {
    /// Tells the core what happened.
    pub fn observe(&mut self, now_ms: u64, fact: Fact) {
        match fact {
            Fact::Function {
                key,
                revision,
                spec,
                policy,
            } => {
                self.function(now_ms, &key, revision, spec, policy);
            }
            Fact::FunctionGone(key) => self.function_gone(now_ms, &key),
            Fact::Tenant { name, tenant } => {
                self.tenants.insert(name.clone(), tenant);
                self.permissions_changed(now_ms, |key| key.tenant == name);
            }
            Fact::Namespace {
                tenant,
                name,
                disabled,
            } => {
                let entry = (tenant.clone(), name.clone());
                match disabled {
                    true => self.namespaces_disabled.insert(entry),
                    false => self.namespaces_disabled.remove(&entry),
                };
                let inside = |key: &FuncKey| key.tenant == tenant && key.namespace == name;
                self.permissions_changed(now_ms, inside);
            }
            Fact::Node {
                name,
                boot_id,
                ready,
                keeps_snapshots,
                capacity,
            } => {
                let id = self.node(now_ms, name, boot_id, ready, capacity);
                let node = self.nodes.get_mut(&id).expect("just told");
                let before = std::mem::replace(&mut node.keeps_snapshots, keeps_snapshots);
                if keeps_snapshots && !before {
                    self.tasks_possible(id);
                }
            }
            Fact::NodeLost { name } => self.node_lost(now_ms, &name),
            Fact::NodeGone { name } => {
                self.node_lost(now_ms, &name);
                if let Some(id) = self.node_ids.get(&name).copied() {
                    self.forget_tasks_on(id);
                    self.node_ids.remove(&name);
                    self.nodes.remove(&id);
                    self.pods_on.remove(&id);
                }
            }
            Fact::Pod(fact) => self.pod_fact(now_ms, fact),
            Fact::PodGone { pod_id } => self.pod_gone(now_ms, &pod_id),
            Fact::StartResult(outcome) => self.start_result(now_ms, outcome),
            Fact::ParkResult(outcome) => self.park_result(now_ms, outcome),
            Fact::TerminateResult(outcome) => self.terminate_result(now_ms, outcome),
            Fact::Snapshot(fact) => self.snapshot_told(now_ms, fact),
            Fact::SnapshotGone { key, node } => self.snapshot_gone(&key, &node),
        }
        self.settle(now_ms);
    }

    /// Ends a pod by name, whatever it does. `None` when there is none, false when it ends already.
    pub fn kill(&mut self, now_ms: u64, pod_id: &str) -> Option<bool> {
        let ix = self.pod_ids.get(pod_id).copied()?;
        let live = self.pod(ix).state.is_live();
        if live {
            self.terminate(now_ms, ix);
            self.settle(now_ms);
        }
        Some(live)
    }

    /// True when the core knows the function in this revision or a newer one.
    pub fn knows(&self, key: &FuncKey, revision: i64) -> bool {
        let function = self.func_ids.get(key).map(|func| &self.functions[func]);
        function.is_some_and(|function| function.present && function.revision >= revision)
    }

    fn function(&mut self, now: u64, key: &FuncKey, revision: i64, spec: Spec, policy: Policy) {
        let func = self.func_id(key);
        let function = self.functions.get_mut(&func).expect("just made");
        if function.present && revision < function.revision {
            return;
        }
        if function.revision != revision {
            function.backoff = Backoff::default();
        }
        function.present = true;
        function.surplus = true;
        function.learned &= function.revision == revision;
        function.revision = revision;
        function.spec = spec;
        let slots = policy.parallel.max(1);
        function.policy = policy;
        self.tasks_outdated(now, func);
        for ix in self.pods_of(func) {
            if self.pod(ix).revision == revision {
                // Leases keep what they have; a smaller number only stops new ones.
                self.pod_mut(ix).slots = slots;
            }
        }
        self.retire_all_unwanted(now, func);
        self.retire_surplus(now, func);
        self.arm_idle_pods(now, func);
        self.dirty.insert(func);
        self.capacity_changed = true;
    }

    fn function_gone(&mut self, now_ms: u64, key: &FuncKey) {
        let Some(func) = self.func_ids.get(key).copied() else {
            return;
        };
        let function = self.functions.get_mut(&func).expect("indexed");
        function.present = false;
        self.forget_tasks_of(func);
        let why = format!("the function {} was deleted", key.name);
        self.refuse_all(now_ms, func, &Refusal::new("function_not_found", why));
        for ix in self.pods_of(func) {
            if self.pod(ix).state.is_live() {
                self.terminate(now_ms, ix);
            }
        }
        self.forget_function(func);
    }

    pub(super) fn pods_of(&self, func: FuncId) -> Vec<PodIx> {
        self.functions[&func].pods.iter().copied().collect()
    }

    fn retire_all_unwanted(&mut self, now_ms: u64, func: FuncId) {
        for ix in self.pods_of(func) {
            self.retire_unwanted(now_ms, ix);
        }
    }

    fn permissions_changed(&mut self, now_ms: u64, concerns: impl Fn(&FuncKey) -> bool) {
        let functions = self
            .functions
            .iter()
            .filter(|(_, function)| concerns(&function.key));
        let functions: Vec<FuncId> = functions.map(|(func, _)| *func).collect();
        for func in functions {
            let key = self.functions[&func].key.clone();
            if self.is_disabled(&key) {
                let why = format!("the tenant or namespace of {} is disabled", key.name);
                self.refuse_all(now_ms, func, &Refusal::new("disabled", why));
            }
            self.retire_all_unwanted(now_ms, func);
            // The tenant may have wanted idle pods kept that nothing else would look at again.
            self.arm_idle_pods(now_ms, func);
            self.dirty.insert(func);
        }
    }

    fn node(
        &mut self,
        now_ms: u64,
        name: String,
        boot_id: String,
        ready: bool,
        has: Capacity,
    ) -> NodeId {
        self.capacity_changed = true;
        let has = match self.breaks(Fault::IgnorePodLimit) {
            true => Capacity { pods_max: 0, ..has },
            false => has,
        };
        let Some(id) = self.node_ids.get(&name).copied() else {
            self.node_counter += 1;
            let id = NodeId(self.node_counter);
            self.node_ids.insert(name.clone(), id);
            let ledger = Ledger::new(has);
            let node = Node {
                name,
                boot_id,
                ready,
                ledger,
                faults: 0,
                retry_at_ms: 0,
                fault: String::new(),
                keeps_snapshots: false,
            };
            self.nodes.insert(id, node);
            return id;
        };
        if self.nodes[&id].boot_id != boot_id {
            self.node_lost(now_ms, &name);
        }
        let node = self.nodes.get_mut(&id).expect("indexed");
        node.boot_id = boot_id;
        node.ready = ready;
        node.ledger.capacity = has;
        self.overfull.insert(id);
        id
    }

    /// The pods of a lost node are gone as far as anybody can tell; should it come back with them,
    /// they are adopted like those of a former scheduler process.
    fn node_lost(&mut self, now_ms: u64, name: &str) {
        let Some(id) = self.node_ids.get(name).copied() else {
            return;
        };
        self.nodes.get_mut(&id).expect("indexed").ready = false;
        let pods: Vec<PodIx> = self
            .pods_on
            .get(&id)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        for ix in &pods {
            let pod = self.pod_mut(*ix);
            (pod.victims, pod.makes_room_for, pod.lent) = Default::default();
        }
        for ix in pods {
            self.remove_pod(now_ms, ix, false);
        }
    }
}
