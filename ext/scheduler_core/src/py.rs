//! The Python rim of this crate: argument conversion and error mapping, nothing else.
//! It must never decide anything; `_ext.pyi` holds the documentation of what is here.

use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use crate::core::Core;
use crate::core::model::{
    Alloc, Answer, Ask, Config, Effect, Fact, FuncKey, Outcome, PodFact, PodRef, Policy, Refusal,
    Spec, StartOrder, Tenant,
};
use crate::nodes::{Capacity, GpuCapacity, GpuShare, Holding};
use crate::pod::{self, Event, State};
use crate::queue::TicketId;

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

#[pyclass(module = "inferx._ext")]
struct SchedulerCore {
    core: Core,
}

#[pymethods]
impl SchedulerCore {
    #[new]
    #[pyo3(signature = (pod_id_prefix, idle_park_ms = 5000, lease_ttl_ms = 15000, takeover_ms = 3000))]
    fn new(pod_id_prefix: &str, idle_park_ms: u64, lease_ttl_ms: u64, takeover_ms: u64) -> Self {
        let pod_id_prefix = pod_id_prefix.to_owned();
        let config = Config {
            pod_id_prefix,
            idle_park_ms,
            lease_ttl_ms,
            takeover_ms,
            ..Config::default()
        };
        SchedulerCore {
            core: Core::new(config),
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn lease<'py>(
        &mut self,
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
    ) -> PyResult<Bound<'py, PyTuple>> {
        // The current revision serves every caller; gateways learn of an edit on their own.
        let _ = revision;
        let ask = Ask {
            key: func_key(tenant, namespace, funcname),
            gateway: gateway_id,
            request_id: request_id.to_owned(),
            slots,
            deadline_ms,
        };
        match self.core.lease(now_ms, ask) {
            Answer::Leased(g) => {
                ("leased", g.lease.0, g.pod_id, g.slots, g.start.name()).into_pyobject(py)
            }
            Answer::Queued(ticket) => ("queued", ticket.0).into_pyobject(py),
            Answer::Refused(Refusal {
                code,
                message,
                retry_after_ms,
            }) => ("refused", code, message, retry_after_ms).into_pyobject(py),
        }
    }

    #[pyo3(signature = (now_ms, lease_id, ok = true))]
    fn give_back(&mut self, now_ms: u64, lease_id: u64, ok: bool) -> bool {
        self.core.give_back(now_ms, lease_id, ok)
    }

    fn cancel(&mut self, now_ms: u64, ticket: u64) -> bool {
        self.core.cancel(now_ms, TicketId(ticket))
    }

    fn connect(&mut self, now_ms: u64, gateway_id: i64) {
        self.core.connect(now_ms, gateway_id);
    }

    fn refresh(&mut self, now_ms: u64, gateway_id: i64) -> bool {
        self.core.refresh(now_ms, gateway_id)
    }

    fn announce(
        &mut self,
        now_ms: u64,
        gateway_id: i64,
        lease_id: u64,
        pod_id: &str,
        slots: u32,
    ) -> bool {
        self.core
            .announce(now_ms, gateway_id, lease_id, pod_id, slots)
    }

    fn kill(&mut self, now_ms: u64, pod_id: &str) -> Option<bool> {
        self.core.kill(now_ms, pod_id)
    }

    fn knows(&self, tenant: &str, namespace: &str, funcname: &str, revision: i64) -> bool {
        self.core
            .knows(&func_key(tenant, namespace, funcname), revision)
    }

    fn waiting(&self, tenant: &str, namespace: &str, funcname: &str) -> Option<(usize, String)> {
        self.core.waiting(&func_key(tenant, namespace, funcname))
    }

    fn observe(&mut self, now_ms: u64, fact: &Bound<'_, PyDict>) -> PyResult<()> {
        let fact = parse_fact(&Reader(fact))?;
        self.core.observe(now_ms, fact);
        Ok(())
    }

    fn tick(&mut self, now_ms: u64) {
        self.core.tick(now_ms);
    }

    fn next_wakeup_ms(&self) -> Option<u64> {
        self.core.next_wakeup_ms()
    }

    fn effects<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let effects = PyList::empty(py);
        for effect in self.core.effects() {
            effects.append(effect_dict(py, effect)?)?;
        }
        Ok(effects)
    }

    fn check(&self, now_ms: u64) {
        self.core.check(now_ms);
    }

    fn pods<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let pods = PyList::empty(py);
        for pod in self.core.pods() {
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
        let stats = self.core.stats();
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
        let counters = stats.counters;
        dict.set_item("starts_cold", counters.starts_cold)?;
        dict.set_item("starts_resume", counters.starts_resume)?;
        dict.set_item("starts_failed", counters.starts_failed)?;
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

/// Reads entries of a fact; a missing or mistyped one is an error that names it.
struct Reader<'a, 'py>(&'a Bound<'py, PyDict>);

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
        let shown = value
            .repr()
            .map(|text| text.to_string())
            .unwrap_or_default();
        let wrong = || PyValueError::new_err(format!("{name:?} of a fact cannot be {shown}"));
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

fn parse_fact(fact: &Reader<'_, '_>) -> PyResult<Fact> {
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
        },
    })
}

fn parse_tenant(fact: &Reader<'_, '_>) -> PyResult<Fact> {
    Ok(Fact::Tenant {
        name: fact.get("name")?,
        tenant: Tenant {
            disabled: fact.find("disabled")?.unwrap_or(false),
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
        capacity: Capacity {
            cpu_millis: fact.get("cpu_millis")?,
            mem_mib: fact.get("mem_mib")?,
            cache_mib: fact.find("cache_mib")?.unwrap_or(0),
            gpus: gpus.collect(),
            context_overhead_mib: fact.find("context_overhead_mib")?.unwrap_or(0),
            contexts_per_gpu_max: fact.find("contexts_per_gpu_max")?.unwrap_or(0),
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
            gpus: gpus.collect(),
        },
    }))
}

fn parse_outcome(fact: &Reader<'_, '_>) -> PyResult<Outcome> {
    Ok(Outcome {
        pod_id: fact.get("pod_id")?,
        ok: fact.get("ok")?,
        code: fact.find("code")?.unwrap_or_default(),
        reason: fact.find("reason")?.unwrap_or_default(),
        gone: fact.find("gone")?.unwrap_or(false),
        order: fact.find("order")?.unwrap_or(0),
    })
}

fn effect_dict(py: Python<'_>, effect: Effect) -> PyResult<Bound<'_, PyDict>> {
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

fn key_dict<'py>(py: Python<'py>, key: &FuncKey) -> PyResult<Bound<'py, PyDict>> {
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
    for (name, pods) in [("terminate", &o.terminate), ("park", &o.park)] {
        let list = PyList::empty(py);
        for pod in pods {
            list.append(pod_dict(py, pod)?)?;
        }
        dict.set_item(name, list)?;
    }
    Ok(dict)
}

/// The `alloc_resources` JSON of the agent protocol.
fn alloc_dict<'py>(py: Python<'py>, alloc: &Alloc) -> PyResult<Bound<'py, PyDict>> {
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
