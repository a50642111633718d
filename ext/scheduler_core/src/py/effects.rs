//! Effects as Python dictionaries. It must never leave out a part of an order.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::core::messages::{Alloc, Effect, PodRef, SnapshotNews, StartOrder};
use crate::core::model::FuncKey;

pub(super) fn effect_dict(py: Python<'_>, effect: Effect) -> PyResult<Bound<'_, PyDict>> {
    match effect {
        Effect::Grant { ticket, grant } => {
            let dict = named(py, "grant")?;
            dict.set_item("ticket", ticket.0)?;
            dict.set_item("lease_id", grant.lease.0)?;
            dict.set_item("pod_id", grant.pod_id)?;
            dict.set_item("slots", grant.slots)?;
            dict.set_item("start", grant.start.name())?;
            Ok(dict)
        }
        Effect::Refuse { ticket, refusal } => {
            let dict = named(py, "refuse")?;
            dict.set_item("ticket", ticket.0)?;
            dict.set_item("code", refusal.code)?;
            dict.set_item("message", refusal.message)?;
            dict.set_item("retry_after_ms", refusal.retry_after_ms)?;
            Ok(dict)
        }
        Effect::Start(order) => order_dict(py, "start", &order),
        Effect::Resume(order) => order_dict(py, "resume", &order),
        Effect::Park(pod) => labelled(py, "park", &pod),
        Effect::Terminate(pod) => labelled(py, "terminate", &pod),
    }
}

fn named<'py>(py: Python<'py>, effect: &str) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("effect", effect)?;
    Ok(dict)
}

pub(super) fn key_dict<'py>(py: Python<'py>, key: &FuncKey) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("tenant", &key.tenant)?;
    dict.set_item("namespace", &key.namespace)?;
    dict.set_item("funcname", &key.name)?;
    Ok(dict)
}

fn pod_dict<'py>(py: Python<'py>, pod: &PodRef) -> PyResult<Bound<'py, PyDict>> {
    let dict = key_dict(py, &pod.key)?;
    dict.set_item("pod_id", &pod.pod_id)?;
    dict.set_item("node", &pod.node)?;
    dict.set_item("revision", pod.revision)?;
    dict.set_item("order", pod.order)?;
    Ok(dict)
}

fn labelled<'py>(py: Python<'py>, effect: &str, pod: &PodRef) -> PyResult<Bound<'py, PyDict>> {
    let dict = pod_dict(py, pod)?;
    dict.set_item("effect", effect)?;
    Ok(dict)
}

fn order_dict<'py>(py: Python<'py>, effect: &str, o: &StartOrder) -> PyResult<Bound<'py, PyDict>> {
    let dict = labelled(py, effect, &o.pod)?;
    dict.set_item("alloc", alloc_dict(py, &o.alloc)?)?;
    dict.set_item("save", o.save)?;
    for (name, pods) in [("terminate", &o.terminate), ("park", &o.park)] {
        let list = PyList::empty(py);
        for pod in pods {
            list.append(pod_dict(py, pod)?)?;
        }
        dict.set_item(name, list)?;
    }
    Ok(dict)
}

/// A snapshot task; one that is forgotten has no state.
pub(super) fn news_dict<'py>(py: Python<'py>, news: &SnapshotNews) -> PyResult<Bound<'py, PyDict>> {
    let dict = key_dict(py, &news.key)?;
    dict.set_item("node", &news.node)?;
    if let Some(task) = &news.task {
        dict.set_item("state", task.state.name())?;
        dict.set_item("revision", task.revision)?;
        dict.set_item("failures", task.failures)?;
        dict.set_item("size_mib", task.size_mib)?;
        dict.set_item("reason", &task.reason)?;
        dict.set_item("tier", task.tier.name())?;
    }
    Ok(dict)
}

/// The `alloc_resources` JSON of the agent protocol.
pub(super) fn alloc_dict<'py>(py: Python<'py>, alloc: &Alloc) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("CPU", alloc.cpu_millis)?;
    dict.set_item("Mem", alloc.mem_mib)?;
    dict.set_item("CacheMem", alloc.cache_mib)?;
    if !alloc.devices.is_empty() {
        let gpu = PyDict::new(py);
        gpu.set_item("Type", &alloc.gpu_kind)?;
        gpu.set_item("vRam", alloc.vram_mib)?;
        gpu.set_item("contextOverhead", alloc.context_overhead_mib)?;
        gpu.set_item("devices", &alloc.devices)?;
        dict.set_item("GPU", gpu)?;
    }
    Ok(dict)
}
