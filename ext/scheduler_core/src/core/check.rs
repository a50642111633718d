//! The invariants: `check` panics with the name of the first that is broken.
//! It must never change anything.

use std::collections::BTreeMap;

use super::Core;
use super::model::Op;
use super::tasks::TaskState;
use crate::nodes::Holding;
use crate::pod::State;

impl Core {
    /// Checks every invariant against the whole state; for tests, it looks at everything.
    pub fn check(&self, now_ms: u64) {
        self.check_nodes();
        self.nodes.check(now_ms);
        self.check_pods();
        self.check_leases();
        self.check_tickets(now_ms);
        self.check_functions();
        self.check_tasks();
        self.check_victims();
    }

    fn check_nodes(&self) {
        for (id, node) in self.nodes.iter() {
            let mut taken = Holding::default();
            for ix in self.pods_on.get(id).into_iter().flatten() {
                assert_eq!(
                    self.pod(*ix).node,
                    *id,
                    "a pod is on the node that lists it"
                );
                taken.add(&self.pod(*ix).held);
            }
            let mut used = node.ledger.used.clone();
            taken.gpus.sort_by_key(|share| share.index);
            used.gpus.sort_by_key(|share| share.index);
            assert_eq!(
                taken, used,
                "taken on {} = the holdings of its pods",
                node.name
            );
            let has = &node.ledger.capacity;
            // A former process may have told the agent to make room, which has not happened yet.
            let on_node = self.pods_on.get(id).into_iter().flatten();
            let adopted = on_node.into_iter().any(|ix| self.pod(*ix).adopted);
            let within = node.ledger.is_within_capacity() || adopted || self.overfull.contains(id);
            let pods = || {
                let pods = self.pods().into_iter().filter(|pod| pod.node == node.name);
                pods.map(|pod| (pod.pod_id, pod.state, pod.alloc))
                    .collect::<Vec<_>>()
            };
            assert!(within, "{} is overfull: {has:?}, {:?}", node.name, pods());
        }
    }

    fn check_pods(&self) {
        assert_eq!(self.pods.len(), self.pod_ids.len(), "every pod has one id");
        for (ix, pod) in &self.pods {
            let (id, state) = (&pod.id, pod.state);
            assert!(!state.is_final(), "{id}: pods that ended are forgotten");
            assert_eq!(self.pod_ids.get(id), Some(ix), "{id}: found by its id");
            assert!(
                self.functions[&pod.func].pods.contains(ix),
                "{id}: in its function"
            );
            assert!(self.pods_on[&pod.node].contains(ix), "{id}: on its node");
            let tenant = &self.functions[&pod.func].key.tenant;
            assert!(self.tenant_pods[tenant].contains(ix), "{id}: of its tenant");
            if state == State::Working {
                assert!(pod.leased > 0, "{id}: a working pod is leased");
            } else {
                assert_eq!(pod.leased, 0, "{id}: no lease on a pod that is {state}");
            }
            match pod.op {
                Some(Op::Start) => assert!(state.is_starting(), "{id}: started, but {state}"),
                Some(Op::Resume) => assert_eq!(state, State::Resuming, "{id}"),
                Some(Op::Park) => assert_eq!(state, State::Parking, "{id}"),
                Some(Op::Terminate) => assert_eq!(state, State::Terminating, "{id}"),
                None => {}
            }
            if state == State::Standby {
                assert_eq!(
                    pod.held, pod.parked,
                    "{id}: a standby pod holds what it keeps"
                );
                assert!(pod.held.gpus.is_empty(), "{id}: a standby pod holds no GPU");
            }
            for victim in &pod.victims {
                let starter = self.pod(*victim).makes_room_for;
                assert_eq!(starter, Some(*ix), "{id}: its victims know it");
            }
            if let Some(starter) = pod.makes_room_for {
                assert!(
                    self.pod(starter).victims.contains(ix),
                    "{id}: known to who it leaves for"
                );
            } else {
                assert_eq!(pod.lent, Holding::default(), "{id}: lent to nobody");
            }
        }
    }

    fn check_leases(&self) {
        self.leases.check();
        let mut leases = 0;
        for (ix, pod) in &self.pods {
            let of_pod = self.leases.of_pod(*ix);
            let live = of_pod
                .iter()
                .map(|id| self.leases.get(*id).expect("a live lease"));
            let slots: u32 = live
                .inspect(|lease| {
                    let known = self.gateways.contains_key(&lease.gateway);
                    assert!(known, "{}: its lease is of a gateway that is gone", pod.id);
                })
                .map(|lease| lease.slots)
                .sum();
            leases += of_pod.len();
            assert_eq!(slots, pod.leased, "{}: its leases add up", pod.id);
        }
        assert_eq!(
            leases,
            self.leases.len(),
            "every lease is on a pod that exists"
        );
    }

    fn check_tickets(&self, now_ms: u64) {
        for (id, ticket) in self.tickets.iter() {
            let function = self.functions.get(&ticket.func);
            let function = function.expect("a ticket is for a function that exists");
            assert!(function.present, "nobody waits for a deleted function");
            assert!(
                ticket.deadline_ms > now_ms,
                "{id:?}: no ticket outlives its deadline"
            );
        }
        for func in self.functions.keys() {
            let waiting = self.tickets.waiting(*func);
            let free = self.functions[func]
                .pods
                .iter()
                .any(|ix| self.is_leasable(self.pod(*ix)));
            assert!(waiting == 0 || !free, "nobody waits while a slot is free");
        }
    }

    fn check_functions(&self) {
        assert!(
            self.dirty.is_empty() && !self.capacity_changed,
            "verbs settle what they touch"
        );
        for (func, function) in &self.functions {
            let limit = function.policy.max_replica;
            let name = &function.key.name;
            let ours = function.pods.iter().map(|ix| self.pod(*ix)).filter(|pod| {
                pod.state.is_starting() && matches!(pod.op, Some(Op::Start | Op::Resume))
            });
            if ours.count() > 0 && !function.surplus {
                assert!(
                    self.running(*func) <= limit,
                    "{name}: more than {limit} replicas"
                );
            }
            let waits = self.tickets.waiting(*func) > 0;
            let helped = self.starting(*func) > 0 || function.waiting_for.is_some();
            let held = function
                .pods
                .iter()
                .any(|ix| self.pod(*ix).held_until_ms.is_some());
            assert!(
                !waits || helped || held,
                "{name}: its tickets wait for nothing"
            );
        }
    }

    fn check_tasks(&self) {
        let mut counts: BTreeMap<TaskState, usize> = BTreeMap::new();
        for (func, function) in &self.functions {
            let name = &function.key.name;
            for (node, task) in &function.tasks {
                *counts.entry(task.state).or_default() += 1;
                assert!(self.nodes.get(node).is_some(), "{name}: on a node");
                assert!(function.present, "{name}: no task of a deleted function");
                if let Some(ix) = task.pod {
                    let pod = self.pods.get(&ix);
                    let pod = pod.expect("a task waits for a start that is out");
                    assert_eq!(
                        (pod.func, pod.node),
                        (*func, *node),
                        "{name}: its own start"
                    );
                }
                let heard = task.pod.is_some() || task.due_ms.is_some();
                let waits = matches!(task.state, TaskState::Scheduled | TaskState::ScheduleFail);
                assert!(heard || !waits, "{name}: no task waits for ever");
                let counted = task.state != TaskState::ScheduleFail || task.failures > 0;
                assert!(counted, "{name}: failures are counted");
            }
        }
        for state in TaskState::ALL {
            let known = self.task_counts.get(&state).copied().unwrap_or(0);
            let found = counts.get(&state).copied().unwrap_or(0);
            assert_eq!(known, found, "tasks that are {}", state.name());
        }
    }
}
