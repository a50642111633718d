//! Facts from Python dictionaries. It must never fill in what a fact has to say.

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::parse_state;
use crate::core::messages::{Fact, Outcome, PodFact, SnapshotFact};
use crate::core::model::{FuncKey, Policy, Spec, StartKind, StartTimes, Tenant};
use crate::core::tasks::{SnapshotTier, TaskState};
use crate::nodes::{Capacity, GpuCapacity, GpuShare, Holding};

/// Reads entries of a fact; a missing or mistyped one is an error that names it.
pub(super) struct Reader<'a, 'py>(pub(super) &'a Bound<'py, PyDict>);

impl<'py> Reader<'_, 'py> {
    fn get<T>(&self, name: &str) -> PyResult<T>
    where
        T: for<'x> FromPyObject<'x, 'py>,
    {
        match self.find(name)? {
            Some(value) => Ok(value),
            None => Err(PyKeyError::new_err(format!("a fact lacks {name:?}"))),
        }
    }

    fn find<T>(&self, name: &str) -> PyResult<Option<T>>
    where
        T: for<'x> FromPyObject<'x, 'py>,
    {
        let Some(value) = self.0.get_item(name)?.filter(|value| !value.is_none()) else {
            return Ok(None);
        };
        let wrong = || {
            let shown = value.repr().map(|text| text.to_string());
            let shown = shown.unwrap_or_default();
            PyValueError::new_err(format!("{name:?} of a fact cannot be {shown}"))
        };
        value.extract().map(Some).map_err(|_| wrong())
    }

    fn key(&self) -> PyResult<FuncKey> {
        Ok(FuncKey {
            tenant: self.get("tenant")?,
            namespace: self.get("namespace")?,
            name: self.get("name")?,
        })
    }
}

pub(super) fn parse_fact(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    let kind: String = fact.get("kind")?;
    Ok(match kind.as_str() {
        "function" => parse_function(fact)?,
        "function_gone" => Fact::FunctionGone(fact.key()?),
        "tenant" => parse_tenant(fact)?,
        "namespace" => Fact::Namespace {
            tenant: fact.get("tenant")?,
            name: fact.get("name")?,
            disabled: fact.get("disabled")?,
        },
        "node" => parse_node(fact)?,
        "node_lost" => Fact::NodeLost {
            name: fact.get("name")?,
        },
        "node_gone" => Fact::NodeGone {
            name: fact.get("name")?,
        },
        "pod" => parse_pod(fact)?,
        "pod_gone" => Fact::PodGone {
            pod_id: fact.get("pod_id")?,
        },
        "snapshot" => parse_snapshot(fact)?,
        "snapshot_gone" => Fact::SnapshotGone {
            key: fact.key()?,
            node: fact.get("node")?,
        },
        "start_result" => Fact::StartResult(parse_outcome(fact)?),
        "park_result" => Fact::ParkResult(parse_outcome(fact)?),
        "terminate_result" => Fact::TerminateResult(parse_outcome(fact)?),
        other => {
            return Err(PyValueError::new_err(format!(
                "no fact is of kind {other:?}"
            )));
        }
    })
}

fn parse_function(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    let defaults = Policy::default();
    Ok(Fact::Function {
        key: fact.key()?,
        revision: fact.get("revision")?,
        spec: Spec {
            cpu_millis: fact.get("cpu_millis")?,
            mem_mib: fact.get("mem_mib")?,
            cache_mib: fact.find("cache_mib")?.unwrap_or(0),
            standby_mem_mib: fact.find("standby_mem_mib")?.unwrap_or(0),
            gpu_kind: fact.find("gpu_type")?.unwrap_or_default(),
            gpu_count: fact.find("gpu_count")?.unwrap_or(0),
            vram_mib: fact.find("vram_mib")?.unwrap_or(0),
            contexts: fact.find("contexts")?.unwrap_or(0),
            standby_image_in_memory: fact.find("standby_image_in_memory")?.unwrap_or(false),
            expected: StartTimes {
                cold_ms: fact.find("expected_cold_ms")?.unwrap_or(0),
                resume_ms: fact.find("expected_resume_ms")?.unwrap_or(0),
                host_ms: fact.find("expected_host_ms")?.unwrap_or(0),
                file_ms: fact.find("expected_file_ms")?.unwrap_or(0),
            },
        },
        policy: Policy {
            min_replica: fact.find("min_replica")?.unwrap_or(defaults.min_replica),
            max_replica: fact.find("max_replica")?.unwrap_or(defaults.max_replica),
            standby_per_node: fact
                .find("standby_per_node")?
                .unwrap_or(defaults.standby_per_node),
            parallel: fact.find("parallel")?.unwrap_or(defaults.parallel),
            queue_len: fact.find("queue_len")?.unwrap_or(defaults.queue_len),
            queue_timeout_ms: fact
                .find("queue_timeout_ms")?
                .unwrap_or(defaults.queue_timeout_ms),
            wait_ratio_milli: fact
                .find("wait_ratio_milli")?
                .unwrap_or(defaults.wait_ratio_milli),
        },
    })
}

fn parse_tenant(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    Ok(Fact::Tenant {
        name: fact.get("name")?,
        tenant: Tenant {
            disabled: fact.find("disabled")?.unwrap_or(false),
            priority: fact.find("priority")?.unwrap_or(0),
            weight: fact.find("weight")?.unwrap_or(1),
            allow_standby: fact.find("allow_standby")?.unwrap_or(true),
            replicas_max: fact.find("max_replica")?,
            min_replica_cap: fact.find("min_replica_cap")?,
            standby_max: fact.find("max_standby")?,
            gpu_milli_max: fact.find("max_gpu_milli")?,
            queue_len_max: fact.find("max_queue_len")?,
        },
    })
}

fn parse_node(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    let gpus: Vec<(u32, String, u64)> = fact.get("gpus")?;
    let gpus = gpus.into_iter().map(|(index, kind, vram_mib)| GpuCapacity {
        index,
        kind,
        vram_mib,
    });
    Ok(Fact::Node {
        name: fact.get("name")?,
        boot_id: fact.find("boot_id")?.unwrap_or_default(),
        ready: fact.get("ready")?,
        keeps_snapshots: fact.find("keeps_snapshots")?.unwrap_or(false),
        capacity: Capacity {
            cpu_millis: fact.get("cpu_millis")?,
            mem_mib: fact.get("mem_mib")?,
            cache_mib: fact.find("cache_mib")?.unwrap_or(0),
            gpus: gpus.collect(),
            context_overhead_mib: fact.find("context_overhead_mib")?.unwrap_or(0),
            contexts_per_gpu_max: fact.find("contexts_per_gpu_max")?.unwrap_or(0),
            pods_max: fact.find("pods_max")?.unwrap_or(0),
        },
    })
}

fn parse_pod(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    let devices: Vec<u32> = fact.find("devices")?.unwrap_or_default();
    let mib: u64 = fact.find("gpu_mib")?.unwrap_or(0);
    let contexts: u32 = fact.find("contexts")?.unwrap_or(1).max(1);
    let gpus = devices.into_iter().map(|index| GpuShare {
        index,
        mib,
        contexts,
    });
    Ok(Fact::Pod(PodFact {
        pod_id: fact.get("pod_id")?,
        node: fact.get("node")?,
        key: fact.key()?,
        revision: fact.get("revision")?,
        state: parse_state(&fact.get::<String>("state")?)?,
        reason: fact.find("reason")?.unwrap_or_default(),
        held: Holding {
            cpu_millis: fact.find("cpu_millis")?.unwrap_or(0),
            mem_mib: fact.find("mem_mib")?.unwrap_or(0),
            cache_mib: fact.find("cache_mib")?.unwrap_or(0),
            pods: 1,
            gpus: gpus.collect(),
        },
    }))
}

fn parse_snapshot(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    let unknown = |what: &str, name: &str| {
        PyValueError::new_err(format!("no {what} of a snapshot is named {name:?}"))
    };
    let state: String = fact.get("state")?;
    let tier: String = fact.find("tier")?.unwrap_or_else(|| "file".into());
    Ok(Fact::Snapshot(SnapshotFact {
        key: fact.key()?,
        node: fact.get("node")?,
        revision: fact.get("revision")?,
        state: TaskState::named(&state).ok_or_else(|| unknown("state", &state))?,
        tier: SnapshotTier::named(&tier).ok_or_else(|| unknown("tier", &tier))?,
        size_mib: fact.find("size_mib")?.unwrap_or(0),
        failures: fact.find("failures")?.unwrap_or(0),
        reason: fact.find("reason")?.unwrap_or_default(),
    }))
}

fn parse_outcome(fact: &Reader<'_, '_>) -> PyResult<Outcome> {
    let start: Option<String> = fact.find("start")?;
    let named = |name: String| {
        let unknown = || PyValueError::new_err(format!("no pod is started by a {name:?} start"));
        StartKind::named(&name).ok_or_else(unknown)
    };
    Ok(Outcome {
        pod_id: fact.get("pod_id")?,
        ok: fact.get("ok")?,
        code: fact.find("code")?.unwrap_or_default(),
        reason: fact.find("reason")?.unwrap_or_default(),
        gone: fact.find("gone")?.unwrap_or(false),
        order: fact.find("order")?.unwrap_or(0),
        start: start.map(named).transpose()?,
    })
}
