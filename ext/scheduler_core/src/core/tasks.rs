//! Snapshot tasks: of each function on each node, whether it is there, being taken, or why not.
//! They must never cost a call anything: without a snapshot a pod starts from nothing.
//!
//! A worker is saved between its first good probe and its first call, so the permission to save it
//! goes out with its start. Tasks begin with the first start of a function on a node.
//!
//! | state | what it means | what comes next |
//! |---|---|---|
//! | Init | the function was edited: what is there is of no use | the next start there: Scheduled |
//! | Scheduled | a start that may save its worker is out | told of it: Done or ScheduleFail |
//! | Done | the node has it; starts there restore it | removed there: Waiting |
//! | ScheduleFail | the attempt failed; counted, shown | its back-off is over: Waiting |
//! | Waiting | may be taken again | the next start there: Scheduled |
//! | Cannot | this node will not save this revision, and why | an edit, or a node that can: Init |
//!
//! Nothing is tried for ever: the back-off doubles up to `Config::snapshot_backoff_max_ms`. Nothing
//! is condemned for ever either: after the longest back-off there is another attempt.

use super::Core;
use super::fault::Fault;
use super::messages::{SnapshotFact, SnapshotNews};
use super::model::{Config, FuncId, FuncKey, PodIx};
use super::timers::Timer;
use crate::nodes::NodeId;

/// Where a snapshot task is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum TaskState {
    #[default]
    Init,
    Scheduled,
    Done,
    ScheduleFail,
    Waiting,
    Cannot,
}

impl TaskState {
    /// Every state.
    pub const ALL: [TaskState; 6] = [
        TaskState::Init,
        TaskState::Scheduled,
        TaskState::Done,
        TaskState::ScheduleFail,
        TaskState::Waiting,
        TaskState::Cannot,
    ];

    /// The one of that name.
    pub fn named(name: &str) -> Option<TaskState> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// The name in objects and metrics.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Init => "Init",
            TaskState::Scheduled => "Scheduled",
            TaskState::Done => "Done",
            TaskState::ScheduleFail => "ScheduleFail",
            TaskState::Waiting => "Waiting",
            TaskState::Cannot => "Cannot",
        }
    }
}

/// Where the bytes of a snapshot are, and so how long a start from it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum SnapshotTier {
    /// In the node's memory.
    Host,
    /// In a file of the node.
    #[default]
    File,
}

impl SnapshotTier {
    /// Its name in facts and objects.
    pub fn name(self) -> &'static str {
        match self {
            SnapshotTier::Host => "host",
            SnapshotTier::File => "file",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<SnapshotTier> {
        match name {
            "host" => Some(SnapshotTier::Host),
            "file" => Some(SnapshotTier::File),
            _ => None,
        }
    }
}

/// One function's snapshot on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Task {
    /// Of the function; a task of another revision than the current one is worth nothing.
    pub revision: i64,
    pub state: TaskState,
    pub tier: SnapshotTier,
    pub size_mib: u64,
    /// Attempts in a row that failed, and the count that the node told last.
    pub failures: u32,
    pub told: u32,
    pub reason: String,
    /// The start whose worker is to be saved, until it is ready or over.
    pub pod: Option<PodIx>,
    /// When a back-off is over, or silence about an attempt counts as its failure.
    pub due_ms: Option<u64>,
}

impl Task {
    /// Whether the node can restore that revision of the function.
    fn restores(&self, revision: i64) -> bool {
        self.state == TaskState::Done && self.revision == revision
    }
}

impl Config {
    /// Back-off after this many attempts in a row that failed.
    fn snapshot_backoff(&self, failures: u32) -> u64 {
        let doubled = 1_u64 << failures.saturating_sub(1).min(20);
        let backoff_ms = self.snapshot_backoff_ms.saturating_mul(doubled);
        backoff_ms.min(self.snapshot_backoff_max_ms)
    }
}

impl Core {
    /// May the worker of this start be saved, should its node have no snapshot? (1) Not where the
    /// node keeps none or cannot save it; (2) not twice at a time; (3) not while it backs off.
    pub(super) fn permit_save(&mut self, now_ms: u64, func: FuncId, ix: PodIx) -> bool {
        let node = self.pod(ix).node;
        if !self.nodes[&node].keeps_snapshots {
            let reason = format!("node {} keeps no snapshots", self.nodes[&node].name);
            self.set_task(func, node, |task| {
                (task.state, task.reason) = (TaskState::Cannot, reason);
            });
            return false;
        }
        if let Some(task) = self.task(func, node) {
            let out = task.state == TaskState::Scheduled || task.pod.is_some();
            let backs_off = task.state == TaskState::ScheduleFail;
            match task.state {
                TaskState::Done => return true,
                TaskState::Cannot => return false,
                _ if out && !self.breaks(Fault::SaveTwice) => return false,
                _ if backs_off && !self.breaks(Fault::IgnoreSaveBackoff) => return false,
                _ => {}
            }
        }
        self.set_due(func, node, now_ms, None);
        self.set_task(func, node, |task| {
            (task.state, task.pod) = (TaskState::Scheduled, Some(ix));
            task.reason.clear();
        });
        true
    }

    /// The start that was to save its worker is ready: now the node tells how that went.
    pub(super) fn save_follows(&mut self, now_ms: u64, ix: PodIx) {
        let (func, node) = (self.pod(ix).func, self.pod(ix).node);
        if self.is_saved_by(func, node, ix) {
            if self.task(func, node).map(|task| task.state) == Some(TaskState::Scheduled) {
                self.set_due(func, node, now_ms, Some(self.config.snapshot_wait_ms));
            }
            self.set_task(func, node, |task| task.pod = None);
        }
    }

    /// The start that was to save its worker is over and did not get that far.
    pub(super) fn save_forsaken(&mut self, func: FuncId, node: NodeId, ix: PodIx) {
        if self.is_saved_by(func, node, ix) {
            self.set_task(func, node, |task| {
                task.pod = None;
                if task.state == TaskState::Scheduled {
                    task.state = TaskState::Waiting;
                    task.reason = "the start that was to save it did not get ready".into();
                }
            });
        }
    }

    fn is_saved_by(&self, func: FuncId, node: NodeId, ix: PodIx) -> bool {
        self.task(func, node)
            .is_some_and(|task| task.pod == Some(ix))
    }

    /// What a node tells of a snapshot: it has one, or could not take it. Told again, it changes
    /// nothing; what it tells of an older revision is of no use.
    pub(super) fn snapshot_told(&mut self, now_ms: u64, fact: SnapshotFact) {
        let Some((func, node)) = self.find_task(&fact.key, &fact.node) else {
            return;
        };
        let function = &self.functions[&func];
        if !function.present || fact.revision < function.revision {
            return;
        }
        let (state, told) = match self.task(func, node) {
            Some(task) if task.revision == fact.revision => (task.state, task.told),
            _ => (TaskState::Init, 0),
        };
        match fact.state {
            TaskState::Done => {
                self.set_due(func, node, now_ms, None);
                self.set_task(func, node, |task| {
                    *task = Task {
                        revision: fact.revision,
                        state: TaskState::Done,
                        tier: fact.tier,
                        size_mib: fact.size_mib,
                        reason: fact.reason,
                        pod: task.pod,
                        ..Task::default()
                    };
                });
            }
            TaskState::Cannot => {
                self.set_due(func, node, now_ms, None);
                self.set_task(func, node, |task| {
                    (task.revision, task.state) = (fact.revision, TaskState::Cannot);
                    task.reason = fact.reason;
                });
            }
            _ if fact.failures > told
                || (told > fact.failures && state == TaskState::Scheduled) =>
            {
                self.save_failed(now_ms, func, node, &fact.reason, fact.failures);
            }
            _ => {}
        }
    }

    /// The node has the snapshot no longer, or has nothing to tell of it any more.
    pub(super) fn snapshot_gone(&mut self, key: &FuncKey, node: &str) {
        let Some((func, node)) = self.find_task(key, node) else {
            return;
        };
        if self.task(func, node).map(|task| task.state) == Some(TaskState::Done) {
            self.set_task(func, node, |task| {
                (task.state, task.size_mib) = (TaskState::Waiting, 0);
                task.reason = "the node removed it".into();
            });
        }
    }

    fn save_failed(&mut self, now_ms: u64, func: FuncId, node: NodeId, reason: &str, told: u32) {
        let known = self.task(func, node).map_or(0, |task| task.failures);
        let failures = (known + 1).max(told);
        let backoff_ms = self.config.snapshot_backoff(failures);
        self.counters.snapshots_failed += 1;
        self.set_due(func, node, now_ms, Some(backoff_ms));
        self.set_task(func, node, |task| {
            task.state = TaskState::ScheduleFail; // of an earlier attempt where one is out
            (task.failures, task.told) = (failures, told);
            task.reason = reason.to_owned();
        });
    }

    /// The alarm of a task.
    pub(super) fn task_due(&mut self, now_ms: u64, func: FuncId, node: NodeId) {
        let Some(task) = self.task(func, node) else {
            return;
        };
        if task.due_ms.is_none_or(|due_ms| due_ms > now_ms) {
            return;
        }
        let told = task.told;
        match task.state {
            TaskState::Scheduled => {
                self.save_failed(now_ms, func, node, "nothing was heard of it", told);
            }
            TaskState::ScheduleFail => {
                self.set_due(func, node, now_ms, None);
                self.set_task(func, node, |task| task.state = TaskState::Waiting);
            }
            _ => {}
        }
    }

    /// A function was edited: what its nodes have is of no use.
    pub(super) fn tasks_outdated(&mut self, now_ms: u64, func: FuncId) {
        let function = &self.functions[&func];
        let revision = function.revision;
        let outdated = function
            .tasks
            .iter()
            .filter(|(_, task)| task.revision != revision);
        let nodes: Vec<NodeId> = outdated.map(|(node, _)| *node).collect();
        for node in nodes {
            self.set_due(func, node, now_ms, None);
            let broken = self.breaks(Fault::KeepStaleSnapshot);
            self.set_task(func, node, |task| {
                let keep = broken && task.state == TaskState::Done;
                let state = if keep { task.state } else { TaskState::Init };
                *task = Task {
                    revision,
                    state,
                    reason: "the function was edited".into(),
                    ..Task::default()
                };
            });
        }
    }

    /// A node that kept no snapshots does now.
    pub(super) fn tasks_possible(&mut self, node: NodeId) {
        let functions: Vec<FuncId> = self.functions.keys().copied().collect();
        for func in functions {
            if self.task(func, node).map(|task| task.state) == Some(TaskState::Cannot) {
                self.set_task(func, node, |task| {
                    task.state = TaskState::Init;
                    task.reason.clear();
                });
            }
        }
    }

    /// Nothing is kept of a function that is deleted.
    pub(super) fn forget_tasks_of(&mut self, func: FuncId) {
        let nodes: Vec<NodeId> = self.functions[&func].tasks.keys().copied().collect();
        for node in nodes {
            self.forget_task(func, node);
        }
    }

    /// Nor of a node.
    pub(super) fn forget_tasks_on(&mut self, node: NodeId) {
        let functions: Vec<FuncId> = self.functions.keys().copied().collect();
        for func in functions {
            self.forget_task(func, node);
        }
    }

    fn forget_task(&mut self, func: FuncId, node: NodeId) {
        self.set_due(func, node, 0, None);
        let function = self.functions.get_mut(&func).expect("listed");
        if let Some(task) = function.tasks.remove(&node) {
            let key = function.key.clone();
            *self.task_counts.entry(task.state).or_default() -= 1;
            self.tasks_changed
                .insert((key, self.nodes[&node].name.clone()));
        }
    }

    /// Tasks that changed since the last call; `task` is none for one that is forgotten.
    pub fn snapshot_news(&mut self) -> Vec<SnapshotNews> {
        let changed = std::mem::take(&mut self.tasks_changed);
        let news = changed.into_iter().map(|(key, node)| {
            let found = self.find_task(&key, &node);
            let task = found.and_then(|(func, node)| self.task(func, node).cloned());
            SnapshotNews { key, node, task }
        });
        news.collect()
    }

    /// The task of a function on a node.
    pub(super) fn task(&self, func: FuncId, node: NodeId) -> Option<&Task> {
        self.functions[&func].tasks.get(&node)
    }

    /// Nodes that can restore the current revision, with the tier.
    pub(super) fn holders(&self, func: FuncId) -> impl Iterator<Item = (NodeId, SnapshotTier)> {
        let function = &self.functions[&func];
        let tasks = function.tasks.iter();
        let done = tasks.filter(|(_, task)| task.restores(function.revision));
        done.map(|(node, task)| (*node, task.tier))
    }

    /// Where a node has the snapshot of the current revision.
    pub(super) fn tier_on(&self, func: FuncId, node: NodeId) -> Option<SnapshotTier> {
        let revision = self.functions[&func].revision;
        let task = self.task(func, node)?;
        task.restores(revision).then_some(task.tier)
    }

    fn find_task(&self, key: &FuncKey, node: &str) -> Option<(FuncId, NodeId)> {
        Some((*self.func_ids.get(key)?, *self.node_ids.get(node)?))
    }

    /// Changes a task, or makes it of the current revision; notes what has to be told of it.
    fn set_task(&mut self, func: FuncId, node: NodeId, change: impl FnOnce(&mut Task)) {
        let function = self.functions.get_mut(&func).expect("found by the caller");
        let revision = function.revision;
        let before = function.tasks.get(&node).cloned();
        let task = function.tasks.entry(node).or_insert_with(|| Task {
            revision,
            ..Task::default()
        });
        change(task);
        let after = task.state;
        if before.as_ref() == Some(task) {
            return;
        }
        if let Some(before) = before {
            *self.task_counts.entry(before.state).or_default() -= 1;
        }
        *self.task_counts.entry(after).or_default() += 1;
        let key = function.key.clone();
        self.tasks_changed
            .insert((key, self.nodes[&node].name.clone()));
    }

    /// Sets the alarm of a task, or takes it away.
    fn set_due(&mut self, func: FuncId, node: NodeId, now_ms: u64, wait_ms: Option<u64>) {
        let due_ms = wait_ms.map(|ms| now_ms + ms);
        let function = self.functions.get_mut(&func).expect("found by the caller");
        let Some(task) = function.tasks.get_mut(&node) else {
            if let Some(due_ms) = due_ms {
                self.set_task(func, node, |task| task.due_ms = Some(due_ms));
                self.timers.set(due_ms, Timer::Task(func, node));
            }
            return;
        };
        if let Some(set_ms) = std::mem::replace(&mut task.due_ms, due_ms) {
            self.timers.clear(set_ms, Timer::Task(func, node));
        }
        if let Some(due_ms) = due_ms {
            self.timers.set(due_ms, Timer::Task(func, node));
        }
    }
}
