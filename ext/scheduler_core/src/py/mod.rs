//! The Python rim of this crate: argument conversion and error mapping, nothing else.
//! It must never decide anything; `_ext.pyi` holds the documentation of what is here.

mod effects;
mod facts;

use std::sync::{Arc, MutexGuard};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::core::Core;
use crate::core::messages::{Answer, Ask, Refusal};
use crate::core::model::{Config, Eviction, FuncKey, StartKind};
use crate::place;
use crate::pod::{self, Event, State};
use crate::queue::TicketId;
use crate::shared::{Shared, Timed};
pub use effects::effect_dict;
use effects::{alloc_dict, key_dict, news_dict};
use facts::{Reader, parse_fact};

/// Adds this crate's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SchedulerCore>()?;
    module.add_function(wrap_pyfunction!(pod_table, module)?)?;
    module.add_function(wrap_pyfunction!(pod_transition, module)?)
}

#[pyfunction]
fn pod_table() -> Vec<(&'static str, &'static str, &'static str)> {
    let rows = pod::table().into_iter();
    rows.map(|(from, event, to)| (from.name(), event.name(), to.name()))
        .collect()
}

#[pyfunction]
fn pod_transition(state: &str, event: &str) -> PyResult<&'static str> {
    let state = parse_state(state)?;
    let event = Event::parse(event)
        .ok_or_else(|| PyValueError::new_err(format!("no pod event is named {event:?}")))?;
    let next = pod::next(state, event).map_err(|why| PyValueError::new_err(why.to_string()))?;
    Ok(next.name())
}

fn parse_state(name: &str) -> PyResult<State> {
    State::parse(name)
        .ok_or_else(|| PyValueError::new_err(format!("no pod state is named {name:?}")))
}

/// The core; documented in `_ext.pyi`.
#[pyclass(frozen, module = "inferx._ext")]
pub struct SchedulerCore {
    core: Arc<Shared>,
}

impl SchedulerCore {
    /// The same core for a thread that does without Python.
    pub fn shared(&self) -> Arc<Shared> {
        self.core.clone()
    }

    fn core(&self) -> PyResult<MutexGuard<'_, Timed>> {
        let broken = |_| PyRuntimeError::new_err("the core is broken: an earlier verb panicked");
        self.core.lock().map_err(broken)
    }

    /// The core, and the time to call a verb with.
    fn core_at(&self, now_ms: u64) -> PyResult<(MutexGuard<'_, Timed>, u64)> {
        let mut core = self.core()?;
        let now_ms = core.at(now_ms);
        Ok((core, now_ms))
    }
}

#[pymethods]
impl SchedulerCore {
    #[new]
    #[pyo3(signature = (
        pod_id_prefix, idle_park_ms = None, lease_ttl_ms = 15000, takeover_ms = 3000,
        placement = "inferx", eviction = "worth"
    ))]
    fn new(
        pod_id_prefix: &str,
        idle_park_ms: Option<u64>,
        lease_ttl_ms: u64,
        takeover_ms: u64,
        placement: &str,
        eviction: &str,
    ) -> PyResult<Self> {
        let unknown = |what, name| PyValueError::new_err(format!("no {what} is named {name:?}"));
        let pod_id_prefix = pod_id_prefix.to_owned();
        let config = Config {
            pod_id_prefix,
            idle_park_ms,
            lease_ttl_ms,
            takeover_ms,
            placement: place::Policy::named(placement)
                .ok_or_else(|| unknown("placement policy", placement))?,
            eviction: Eviction::named(eviction)
                .ok_or_else(|| unknown("eviction policy", eviction))?,
            ..Config::default()
        };
        Ok(SchedulerCore {
            core: Arc::new(Shared::new(Timed::new(Core::new(config)))),
        })
    }

    #[allow(clippy::too_many_arguments)]
    #[pyo3(signature = (
        now_ms, tenant, namespace, funcname, revision, gateway_id, request_id, slots, deadline_ms,
        consumer = ""
    ))]
    fn lease<'py>(
        &self,
        py: Python<'py>,
        now_ms: u64,
        tenant: &str,
        namespace: &str,
        funcname: &str,
        revision: i64,
        gateway_id: i64,
        request_id: &str,
        slots: u32,
        deadline_ms: u64,
        consumer: &str,
    ) -> PyResult<Bound<'py, PyTuple>> {
        // The current revision serves every caller; gateways learn of an edit on their own.
        let _ = revision;
        let ask = Ask {
            key: func_key(tenant, namespace, funcname),
            gateway: gateway_id,
            consumer: consumer.to_owned(),
            request_id: request_id.to_owned(),
            slots,
            deadline_ms,
        };
        let (mut core, now_ms) = self.core_at(now_ms)?;
        let answer = core.lease(now_ms, ask);
        drop(core);
        match answer {
            Answer::Leased(g) => {
                let start = match g.start {
                    StartKind::Warm => intern!(py, "warm"),
                    StartKind::Resume => intern!(py, "resume"),
                    StartKind::Snapshot => intern!(py, "snapshot"),
                    StartKind::Cold => intern!(py, "cold"),
                };
                (intern!(py, "leased"), g.lease.0, g.pod_id, g.slots, start).into_pyobject(py)
            }
            Answer::Queued(ticket) => (intern!(py, "queued"), ticket.0).into_pyobject(py),
            Answer::Refused(Refusal {
                code,
                message,
                retry_after_ms,
            }) => ("refused", code, message, retry_after_ms).into_pyobject(py),
        }
    }

    #[pyo3(signature = (now_ms, lease_id, ok = true))]
    fn give_back(&self, now_ms: u64, lease_id: u64, ok: bool) -> PyResult<bool> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        Ok(core.give_back(now_ms, lease_id, ok))
    }

    fn share(&self, lease_id: u64) -> PyResult<Option<u32>> {
        Ok(self.core()?.share(lease_id))
    }

    fn trim(&self, now_ms: u64, lease_id: u64, slots: u32) -> PyResult<bool> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        Ok(core.trim(now_ms, lease_id, slots))
    }

    fn cancel(&self, now_ms: u64, ticket: u64) -> PyResult<bool> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        Ok(core.cancel(now_ms, TicketId(ticket)))
    }

    fn connect(&self, now_ms: u64, gateway_id: i64) -> PyResult<()> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.connect(now_ms, gateway_id);
        Ok(())
    }

    fn expect(&self, now_ms: u64, gateway_ids: Vec<i64>) -> PyResult<()> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.expect(now_ms, &gateway_ids);
        Ok(())
    }

    fn heard(&self, now_ms: u64, gateway_id: i64) -> PyResult<()> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.heard(now_ms, gateway_id);
        Ok(())
    }

    fn names(&self, now_ms: u64, gateway_id: i64, lease_ids: Vec<u64>) -> PyResult<()> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.names(now_ms, gateway_id, &lease_ids);
        Ok(())
    }

    fn holds(&self, gateway_id: i64, lease_id: u64) -> PyResult<bool> {
        Ok(self.core()?.holds(gateway_id, lease_id))
    }

    fn replace(&self, now_ms: u64, gateway_id: i64) -> PyResult<()> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.replace(now_ms, gateway_id);
        Ok(())
    }

    fn refresh(&self, now_ms: u64, gateway_id: i64) -> PyResult<bool> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        Ok(core.refresh(now_ms, gateway_id))
    }

    fn announce(
        &self,
        now_ms: u64,
        gateway_id: i64,
        lease_id: u64,
        pod_id: &str,
        slots: u32,
    ) -> PyResult<bool> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        Ok(core.announce(now_ms, gateway_id, lease_id, pod_id, slots))
    }

    fn kill(&self, now_ms: u64, pod_id: &str) -> PyResult<Option<bool>> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        Ok(core.kill(now_ms, pod_id))
    }

    fn knows(
        &self,
        tenant: &str,
        namespace: &str,
        funcname: &str,
        revision: i64,
    ) -> PyResult<bool> {
        Ok(self
            .core()?
            .knows(&func_key(tenant, namespace, funcname), revision))
    }

    fn waiting(
        &self,
        tenant: &str,
        namespace: &str,
        funcname: &str,
    ) -> PyResult<Option<(usize, String)>> {
        Ok(self.core()?.waiting(&func_key(tenant, namespace, funcname)))
    }

    fn observe(&self, now_ms: u64, fact: &Bound<'_, PyDict>) -> PyResult<()> {
        let fact = parse_fact(&Reader(fact))?;
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.observe(now_ms, fact);
        Ok(())
    }

    fn tick(&self, now_ms: u64) -> PyResult<()> {
        let (mut core, now_ms) = self.core_at(now_ms)?;
        core.tick(now_ms);
        Ok(())
    }

    fn next_wakeup_ms(&self) -> PyResult<Option<u64>> {
        Ok(self.core()?.next_wakeup_ms())
    }

    fn effects<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let effects = PyList::empty(py);
        let decided = self.core()?.effects();
        for effect in decided {
            effects.append(effect_dict(py, effect)?)?;
        }
        Ok(effects)
    }

    fn snapshot_news<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        let changed = self.core()?.snapshot_news();
        for news in changed {
            list.append(news_dict(py, &news)?)?;
        }
        Ok(list)
    }

    fn check(&self, now_ms: u64) -> PyResult<()> {
        self.core()?.check(now_ms);
        Ok(())
    }

    fn pods<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pods = PyList::empty(py);
        let shown = self.core()?.pods();
        for pod in shown {
            let dict = key_dict(py, &pod.key)?;
            dict.set_item("pod_id", pod.pod_id)?;
            dict.set_item("revision", pod.revision)?;
            dict.set_item("node", pod.node)?;
            dict.set_item("state", pod.state.name())?;
            dict.set_item("reason", pod.reason)?;
            dict.set_item("since_ms", pod.since_ms)?;
            dict.set_item("slots", pod.slots)?;
            dict.set_item("leased", pod.leased)?;
            dict.set_item("start", pod.start)?;
            dict.set_item("alloc", alloc_dict(py, &pod.alloc)?)?;
            pods.append(dict)?;
        }
        Ok(pods)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.core()?.stats();
        let dict = PyDict::new(py);
        dict.set_item("functions", stats.functions)?;
        dict.set_item("nodes", stats.nodes)?;
        dict.set_item("nodes_ready", stats.nodes_ready)?;
        dict.set_item("leases", stats.leases)?;
        dict.set_item("tickets", stats.tickets)?;
        dict.set_item("gpu_mib_total", stats.gpu_mib_total)?;
        dict.set_item("gpu_mib_used", stats.gpu_mib_used)?;
        let pods = PyDict::new(py);
        for (state, count) in stats.pods {
            pods.set_item(state.name(), count)?;
        }
        dict.set_item("pods", pods)?;
        let tasks = PyDict::new(py);
        for (state, count) in stats.snapshot_tasks {
            tasks.set_item(state.name(), count)?;
        }
        dict.set_item("snapshot_tasks", tasks)?;
        let counters = stats.counters;
        dict.set_item("snapshots_failed", counters.snapshots_failed)?;
        dict.set_item("starts_cold", counters.starts_cold)?;
        dict.set_item("starts_resume", counters.starts_resume)?;
        dict.set_item("starts_failed", counters.starts_failed)?;
        dict.set_item("prewarms", counters.prewarms)?;
        dict.set_item("parks", counters.parks)?;
        dict.set_item("terminations", counters.terminations)?;
        dict.set_item("grants_warm", counters.grants_warm)?;
        dict.set_item("grants_waited", counters.grants_waited)?;
        dict.set_item("refusals", counters.refusals)?;
        dict.set_item("leases_expired", counters.leases_expired)?;
        Ok(dict)
    }
}

fn func_key(tenant: &str, namespace: &str, name: &str) -> FuncKey {
    FuncKey {
        tenant: tenant.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}
