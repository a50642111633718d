//! What users, operators and misfortune do in the simulation.

use scheduler_core::messages::Fact;
use scheduler_core::model::{FuncKey, Policy, Spec, Tenant};
use scheduler_core::nodes::{Capacity, GpuCapacity};
use scheduler_core::pod::State;

use super::agent::{Agent, GPU_MIB};
use super::{FunctionOf, Gateway, Happening, World, core_of};

impl World {
    pub(super) fn populate(&mut self) {
        for at in 0..1 + self.random.below(3) {
            let gpus = 1 + self.random.below(3) as u32;
            let kind = self.random.pick(&["A", "B"]).to_owned();
            let gpu = |index| GpuCapacity {
                index,
                kind: kind.clone(),
                vram_mib: GPU_MIB,
            };
            let capacity = Capacity {
                cpu_millis: 4_000 + self.random.below(8_000),
                mem_mib: 2_000 + self.random.below(8_000),
                cache_mib: self.random.pick(&[0, 15_000, 60_000]),
                gpus: (0..gpus).map(gpu).collect(),
                context_overhead_mib: 400,
                contexts_per_gpu_max: self.random.below(4) as u32,
                pods_max: self.random.pick(&[0, 0, 2, 5]),
            };
            let name = format!("node{at}");
            let pods = Default::default();
            self.agents.push(Agent {
                name,
                capacity,
                up: true,
                pods,
                stream_ms: 0,
                keeps_snapshots: at != 1,
                snapshots: Default::default(),
                failed: Default::default(),
            });
        }
        for at in 0..2 + self.random.below(5) {
            let tenant = self.random.pick(&["t1", "t2"]).to_owned();
            let key = FuncKey {
                tenant,
                namespace: "n".into(),
                name: format!("f{at}"),
            };
            let (spec, policy) = (self.some_spec(), self.some_policy());
            let function = FunctionOf {
                key,
                revision: 1,
                present: true,
                spec,
                policy,
            };
            self.functions.push(function);
        }
        for id in 1..=1 + self.random.below(3) as i64 {
            self.gateways.insert(id, Gateway::default());
            self.after(0, Happening::Heartbeat(id));
        }
        self.tell_everything();
    }

    fn some_spec(&mut self) -> Spec {
        Spec {
            cpu_millis: 500 + self.random.below(1_500),
            mem_mib: 200 + self.random.below(1_500),
            standby_mem_mib: self.random.pick(&[0, 100]),
            gpu_kind: self.random.pick(&["Any", "Any", "A"]).to_owned(),
            gpu_count: self.random.pick(&[1, 1, 1, 0, 2]),
            vram_mib: self.random.pick(&[4_000, 9_000, 14_000, 23_000, 0, 30_000]),
            standby_image_in_memory: self.random.chance(70),
            ..Spec::default()
        }
    }

    fn some_policy(&mut self) -> Policy {
        Policy {
            min_replica: u32::from(self.random.chance(10)),
            max_replica: 1 + self.random.below(3) as u32,
            standby_per_node: self.random.below(3) as u32,
            parallel: 1 + self.random.below(4) as u32,
            queue_len: 2 + self.random.below(18) as u32,
            queue_timeout_ms: 3_000,
            wait_ratio_milli: self.random.pick(&[0, 100, 2_000]),
        }
    }

    fn limit(&mut self, name: String, tenant: Tenant) {
        self.tenants.insert(name.clone(), tenant.clone());
        self.observe(Fact::Tenant { name, tenant });
    }

    /// Everything that a scheduler process hears when it starts.
    fn tell_everything(&mut self) {
        for (name, tenant) in self.tenants.clone() {
            self.observe(Fact::Tenant { name, tenant });
        }
        for at in 0..self.functions.len() {
            self.tell_function(at);
        }
        for at in 0..self.agents.len() {
            self.tell_node(at, false);
            if !self.agents[at].up {
                continue;
            }
            let ids: Vec<String> = self.agents[at].pods.keys().cloned().collect();
            for id in ids {
                let fact = self.agents[at].fact(&id).expect("listed");
                self.observe(Fact::Pod(fact));
            }
            self.tell_snapshots(at);
            self.tell_node(at, true);
        }
    }

    fn tell_function(&mut self, at: usize) {
        let FunctionOf {
            key,
            revision,
            present,
            spec,
            policy,
        } = &self.functions[at];
        let key = key.clone();
        self.observe(match present {
            true => Fact::Function {
                key,
                revision: *revision,
                spec: spec.clone(),
                policy: policy.clone(),
            },
            false => Fact::FunctionGone(key),
        });
    }

    fn tell_node(&mut self, at: usize, ready: bool) {
        let (name, capacity) = (
            self.agents[at].name.clone(),
            self.agents[at].capacity.clone(),
        );
        let boot_id = "boot".to_owned();
        self.observe(Fact::Node {
            name,
            boot_id,
            ready,
            keeps_snapshots: self.agents[at].keeps_snapshots,
            capacity,
        });
    }

    pub(super) fn chaos(&mut self) {
        if self.calm {
            return self.restore();
        }
        match self.random.below(100) {
            0..80 => self.ask(),
            80..84 => self.edit(),
            84..86 => {
                let limit = self.random.chance(60).then(|| self.random.below(3_000));
                let replicas = self.random.chance(30).then(|| self.random.below(3) as u32);
                let tenant = Tenant {
                    disabled: self.random.chance(15),
                    gpu_milli_max: limit,
                    replicas_max: replicas,
                    priority: self.random.below(2) as i32,
                    weight: 1 + self.random.below(3) as u32,
                    ..Tenant::default()
                };
                let name = self.random.pick(&["t1", "t2"]).to_owned();
                self.limit(name, tenant);
            }
            86..89 => {
                let at = self.random.below(self.agents.len() as u64) as usize;
                if self.agents[at].up {
                    let delay_ms = self.random.below(300);
                    self.after(delay_ms, Happening::NodeLost(at));
                }
            }
            89..92 => {
                let ids: Vec<i64> = self.gateways.keys().copied().collect();
                let id = self.random.pick(&ids);
                let until_ms = self.now + self.random.below(5_000);
                self.gateways.get_mut(&id).expect("listed").silent_until_ms = until_ms;
            }
            92..95 => self.a_worker_dies(),
            95..97 => {
                if let Some(pod) = self.core.pods().first() {
                    self.core.kill(self.now, &pod.pod_id);
                }
            }
            97 => self.scheduler_restarts(),
            98 => self.a_snapshot_is_removed(),
            _ => {}
        }
        let pause_ms = self.random.pick(&[0, 0, 20, 100, 700]);
        let delay_ms = self.random.below(pause_ms + 1);
        self.after(delay_ms, Happening::Chaos);
    }

    /// The faults stop: limits are lifted, nodes are back, gateways speak.
    fn restore(&mut self) {
        for name in ["t1", "t2"] {
            self.limit(name.into(), Tenant::default());
        }
        for gateway in self.gateways.values_mut() {
            gateway.silent_until_ms = 0;
        }
    }

    fn edit(&mut self) {
        let at = self.random.below(self.functions.len() as u64) as usize;
        let (spec, policy) = (self.some_spec(), self.some_policy());
        let present = !self.random.chance(25);
        let new_spec = self.random.chance(70);
        let function = &mut self.functions[at];
        function.policy = policy;
        if new_spec || present != function.present {
            (function.spec, function.present) = (spec, present);
            function.revision += 1;
        }
        self.tell_function(at);
    }

    fn a_worker_dies(&mut self) {
        let at = self.random.below(self.agents.len() as u64) as usize;
        let agent = &self.agents[at];
        let dies = agent.pods.iter().find(|(_, pod)| pod.state == State::Ready);
        if let Some(id) = dies.map(|(id, _)| id.clone()) {
            self.agents[at].pods.remove(&id);
            self.tell(at, &id);
        }
    }

    /// The agent cannot be reached; its pods may or may not be there when it comes back.
    pub(super) fn node_lost(&mut self, at: usize) {
        self.disturbed = true;
        self.agents[at].up = false;
        if self.random.chance(50) {
            self.agents[at].pods.clear();
        }
        self.forget_stream(at);
        if self.random.chance(70) {
            let name = self.agents[at].name.clone();
            self.observe(Fact::NodeLost { name });
        } else {
            self.tell_node(at, false);
        }
        let delay_ms = self.random.below(3_000);
        self.after(delay_ms, Happening::NodeBack(at));
    }

    /// A broken stream delivers nothing more.
    fn forget_stream(&mut self, at: usize) {
        let name = &self.agents[at].name;
        self.queue.retain(|_, happening| match happening {
            Happening::Told(fact) => fact.node != *name,
            _ => true,
        });
    }

    pub(super) fn node_back(&mut self, at: usize) {
        self.telling = true;
        self.agents[at].up = true;
        let listed: Vec<String> = self.agents[at].pods.keys().cloned().collect();
        let name = self.agents[at].name.clone();
        for pod in self.core.pods() {
            // The new list no longer has it, unless it is one that is still to be made.
            if pod.node == name && !listed.contains(&pod.pod_id) {
                self.observe(Fact::PodGone { pod_id: pod.pod_id });
            }
        }
        for id in listed {
            let fact = self.agents[at].fact(&id).expect("listed");
            self.observe(Fact::Pod(fact));
        }
        self.tell_snapshots(at);
        self.tell_node(at, true);
    }

    /// A new process knows nothing; orders of the old one go on at the agents.
    fn scheduler_restarts(&mut self) {
        (self.disturbed, self.telling) = (true, true);
        self.process += 1;
        self.core = core_of(self.seed, self.process, self.fault);
        self.tickets.clear();
        self.saves = Default::default();
        let lost = |happening: &Happening| {
            matches!(
                happening,
                Happening::Result { .. } | Happening::Told(_) | Happening::Cancel(_)
            )
        };
        self.queue.retain(|_, happening| !lost(happening));
        self.tell_everything();
        let ids: Vec<i64> = self.gateways.keys().copied().collect();
        for id in ids {
            let delay_ms = self.random.below(500);
            self.after(delay_ms, Happening::Connect(id));
        }
    }
}
