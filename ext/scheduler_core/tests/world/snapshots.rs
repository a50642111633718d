//! Snapshots in the simulation: agents save workers when they may, fail some, lose some, and say
//! nothing of others; and what the core's permissions must keep to.

use std::collections::{BTreeMap, BTreeSet};

use scheduler_core::core::tasks::{SnapshotTier, TaskState};
use scheduler_core::messages::{Fact, PodRef, SnapshotFact, StartOrder};
use scheduler_core::model::FuncKey;
use scheduler_core::pod::State;

use super::{Happening, World};

/// First back-off after an attempt that failed.
pub const BACKOFF_MS: u64 = 300;

type Place = (FuncKey, String);

/// News of a snapshot on its way from an agent.
pub struct Told {
    pub at: usize,
    pub key: FuncKey,
    pub revision: i64,
}

/// What this scheduler process ordered and was told.
#[derive(Default)]
pub struct Saves {
    /// Starts that may save their worker, of functions that the node has no snapshot of.
    permitted: BTreeSet<String>,
    /// The revision that a node was told to have.
    done: BTreeMap<Place, i64>,
    /// Revision, count and time of the last failure that was told.
    failed: BTreeMap<Place, (i64, u32, u64)>,
}

impl World {
    fn revision_of(&self, key: &FuncKey) -> Option<i64> {
        let function = self.functions.iter().find(|f| f.key == *key)?;
        function.present.then_some(function.revision)
    }

    pub(super) fn has_snapshot(&self, pod: &PodRef) -> bool {
        let kept = &self.agents[self.agent_of(pod)].snapshots;
        kept.get(&pod.key) == Some(&pod.revision)
    }

    /// The agent saves a worker that is ready: most are published, some fail, of some nothing is
    /// ever heard.
    pub(super) fn save_worker(&mut self, at: usize, pod: &PodRef) {
        let agent = &mut self.agents[at];
        let save = agent.pods.get(&pod.pod_id).is_some_and(|pod| pod.save);
        let has = agent.snapshots.get(&pod.key) == Some(&pod.revision);
        if !save || has {
            return;
        }
        let (key, revision) = (pod.key.clone(), pod.revision);
        match self.random.below(10) {
            0..6 => {
                agent.snapshots.insert(key.clone(), revision);
            }
            6..9 => *agent.failed.entry((key.clone(), revision)).or_default() += 1,
            _ => return,
        }
        let delay_ms = self.random.below(400);
        self.after(delay_ms, Happening::Snapshot(Told { at, key, revision }));
    }

    /// An agent says what it has of a function now, or how often it failed.
    pub(super) fn snapshot_told(&mut self, told: Told) {
        let Told { at, key, revision } = told;
        if !self.agents[at].up {
            return; // it is told when the node is back
        }
        let agent = &self.agents[at];
        let failures = agent.failed.get(&(key.clone(), revision)).copied();
        let state = match agent.snapshots.get(&key) == Some(&revision) {
            true => TaskState::Done,
            false if failures.is_some() => TaskState::ScheduleFail,
            false => return,
        };
        let fact = SnapshotFact {
            key: key.clone(),
            node: agent.name.clone(),
            revision,
            state,
            tier: self.random.pick(&[SnapshotTier::Host, SnapshotTier::File]),
            size_mib: 1,
            failures: failures.unwrap_or(0),
            reason: String::new(),
        };
        let place = (key.clone(), self.agents[at].name.clone());
        if self.revision_of(&key) == Some(revision) {
            if state == TaskState::Done {
                self.saves.failed.remove(&place);
                self.saves.done.insert(place, revision);
            } else {
                let known = self.saves.failed.get(&place).copied();
                let news =
                    known.is_none_or(|(of, count, _)| of != revision || count < fact.failures);
                if news {
                    let failure = (revision, fact.failures, self.now);
                    self.saves.failed.insert(place, failure);
                }
            }
        }
        let times = if self.random.chance(10) { 2 } else { 1 };
        for _ in 0..times {
            self.observe(Fact::Snapshot(fact.clone()));
        }
    }

    /// Everything that an agent shows of snapshots, as it does when a connection begins.
    pub(super) fn tell_snapshots(&mut self, at: usize) {
        let agent = &self.agents[at];
        let kept = agent.snapshots.iter().map(|(key, of)| (key.clone(), *of));
        let failed = agent.failed.keys().cloned();
        let all: BTreeSet<(FuncKey, i64)> = kept.chain(failed).collect();
        for (key, revision) in all {
            self.snapshot_told(Told { at, key, revision });
        }
    }

    pub(super) fn a_snapshot_is_removed(&mut self) {
        let at = self.random.below(self.agents.len() as u64) as usize;
        let agent = &mut self.agents[at];
        if !agent.up {
            return;
        }
        if let Some((key, _)) = agent.snapshots.pop_first() {
            let node = agent.name.clone();
            self.saves.done.remove(&(key.clone(), node.clone()));
            self.observe(Fact::SnapshotGone { key, node });
        }
    }

    /// A worker may be saved where the node keeps snapshots, by one start at a time, and not soon
    /// after an attempt that failed.
    pub(super) fn judge_save(&mut self, order: &StartOrder) {
        let pod = &order.pod;
        if !order.save {
            return;
        }
        let agent = &self.agents[self.agent_of(pod)];
        assert!(agent.keeps_snapshots, "{} keeps no snapshots", pod.node);
        let place = (pod.key.clone(), pod.node.clone());
        if self.saves.done.get(&place) == Some(&pod.revision) {
            return;
        }
        let others = self.core.pods().into_iter().filter(|other| {
            (&other.key, &other.node, other.revision) == (&pod.key, &pod.node, pod.revision)
                && other.state.is_starting()
                && other.state != State::Resuming
                && other.pod_id != pod.pod_id
        });
        for other in others {
            let twice = self.saves.permitted.contains(&other.pod_id);
            // One that a lost node still starts, or a former process ordered, is not remembered.
            assert!(
                !twice || self.disturbed,
                "{} and {} are saved at once",
                other.pod_id,
                pod.pod_id
            );
        }
        if let Some((revision, _, at_ms)) = self.saves.failed.get(&place)
            && *revision == pod.revision
        {
            // One that was told in this very step may have come after the order.
            let early = *at_ms < self.now && self.now < at_ms + BACKOFF_MS;
            assert!(
                !early,
                "{}: saved again {at_ms} ms after a failure",
                pod.pod_id
            );
        }
        self.saves.permitted.insert(pod.pod_id.clone());
    }

    /// What the core believes that nodes have is what they said.
    pub(super) fn judge_snapshots(&mut self) {
        for news in self.core.snapshot_news() {
            let Some(task) = news.task.filter(|task| task.state == TaskState::Done) else {
                continue;
            };
            let place = (news.key, news.node);
            assert_eq!(
                self.saves.done.get(&place),
                Some(&task.revision),
                "{place:?} has a snapshot of that revision"
            );
        }
    }
}
