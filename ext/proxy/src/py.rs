//! The Python rim of this crate: argument conversion and error mapping, nothing else.

mod door;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::{
    Config, Definition, Event, NewWorker, Plane, Policy, Reject, Start, TenantLimits, Verdict,
};

/// Adds this crate's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Proxy>()?;
    module.add_class::<door::Door>()?;
    module.add_class::<door::DoorCall>()
}

/// The data plane; documented in `_ext.pyi`.
#[pyclass(frozen, module = "inferx._ext")]
struct Proxy {
    plane: Plane,
}

fn os_error(error: std::io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, error.to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}

fn parse_ip(host: &str) -> PyResult<IpAddr> {
    host.parse()
        .map_err(|_| PyValueError::new_err(format!("`{host}` is not an IP address")))
}

/// Takes over a descriptor whose owner in Python has let go of it.
#[allow(unsafe_code)] // there is no other way from a number to a descriptor
fn take_over(number: Option<RawFd>) -> Arc<Mutex<Option<OwnedFd>>> {
    // SAFETY: the contract in `_ext.pyi`: it is open, and nobody else in this process closes it.
    let owned = number.map(|number| unsafe { OwnedFd::from_raw_fd(number) });
    Arc::new(Mutex::new(owned))
}

fn read_config(
    host: &str,
    port: u16,
    control_socket: PathBuf,
    limits: Option<&Bound<'_, PyDict>>,
) -> PyResult<Config> {
    let listen = SocketAddr::new(parse_ip(host)?, port);
    let mut config = Config {
        listen,
        control_socket,
        ..Config::default()
    };
    for (name, value) in limits.into_iter().flatten() {
        let name: String = name.extract()?;
        let ms = || -> PyResult<Duration> { Ok(Duration::from_millis(value.extract()?)) };
        match name.as_str() {
            "default_tenant" => config.default_tenant = value.extract()?,
            "body_bytes_max" => config.body_bytes_max = value.extract()?,
            "head_bytes_max" => config.head_bytes_max = value.extract()?,
            "connections_max" => config.connections_max = value.extract()?,
            "parked_max" => config.parked_max = value.extract()?,
            "auth_key" => config.auth_key = value.extract()?,
            "eject_failures" => config.eject_failures = value.extract()?,
            "share_port" => config.share_port = value.extract()?,
            "listen_fd" => config.listening = take_over(value.extract()?),
            "tls" => config.tls = value.extract()?,
            "threads" => config.threads = value.extract()?,
            "head_timeout_ms" => config.head_timeout = ms()?,
            "keep_alive_timeout_ms" => config.keep_alive_timeout = ms()?,
            "connect_timeout_ms" => config.connect_timeout = ms()?,
            "first_byte_timeout_ms" => config.first_byte_timeout = ms()?,
            "idle_timeout_ms" => config.idle_timeout = ms()?,
            "control_idle_timeout_ms" => config.control_idle_timeout = ms()?,
            "pool_idle_timeout_ms" => config.pool_idle_timeout = ms()?,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "there is no option `{name}`"
                )));
            }
        }
    }
    Ok(config)
}

#[pymethods]
impl Proxy {
    #[new]
    #[pyo3(signature = (host, port, control_socket, **limits))]
    fn new(
        host: &str,
        port: u16,
        control_socket: PathBuf,
        limits: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let config = read_config(host, port, control_socket, limits)?;
        Ok(Self {
            plane: Plane::new(config).map_err(os_error)?,
        })
    }

    fn start(&self, py: Python<'_>) -> PyResult<u16> {
        py.detach(|| self.plane.start())
            .map(|address| address.port())
            .map_err(os_error)
    }

    fn open_door(&self) -> PyResult<door::Door> {
        self.plane
            .open_door()
            .map(door::Door::from)
            .map_err(os_error)
    }

    fn drain(&self, py: Python<'_>, timeout_ms: u64) -> bool {
        py.detach(|| self.plane.drain(Duration::from_millis(timeout_ms)))
    }

    fn reload_certificate(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.plane.reload_certificate())
            .map_err(os_error)
    }

    #[getter]
    fn port(&self) -> Option<u16> {
        self.plane.address().map(|address| address.port())
    }

    #[getter]
    fn event_fd(&self) -> i32 {
        self.plane.event_fd()
    }

    #[pyo3(signature = (
        function, *, revision, parallel, queue_len, queue_timeout_ms, wait_ratio,
        scalein_timeout_ms, model_names=Vec::new(), served_model=None, disabled=None, public=false,
    ))]
    #[allow(clippy::too_many_arguments)] // keyword-only on the other side
    fn upsert_function(
        &self,
        function: &str,
        revision: i64,
        parallel: u32,
        queue_len: usize,
        queue_timeout_ms: u64,
        wait_ratio: f64,
        scalein_timeout_ms: u64,
        model_names: Vec<String>,
        served_model: Option<String>,
        disabled: Option<String>,
        public: bool,
    ) {
        let policy = Policy {
            parallel,
            queue_len,
            queue_timeout: Duration::from_millis(queue_timeout_ms),
            wait_ratio,
            scalein_timeout: Duration::from_millis(scalein_timeout_ms),
        };
        let definition = Definition {
            revision,
            policy,
            model_names,
            served_model,
            disabled,
            public,
        };
        self.plane.upsert_function(function, definition);
    }

    fn remove_function(&self, function: &str) -> bool {
        self.plane.remove_function(function)
    }

    #[pyo3(signature = (function, *, revision, lease_id, pod_id, host, port, slots, start))]
    #[allow(clippy::too_many_arguments)] // keyword-only on the other side
    fn add_worker(
        &self,
        function: &str,
        revision: i64,
        lease_id: u64,
        pod_id: String,
        host: &str,
        port: u16,
        slots: u32,
        start: &str,
    ) -> PyResult<bool> {
        let address = SocketAddr::new(parse_ip(host)?, port);
        let start = Start::from_name(start);
        let worker = NewWorker {
            lease_id,
            pod_id,
            address,
            slots,
            start,
            revision,
        };
        Ok(self.plane.add_worker(function, worker))
    }

    fn hold_leases(&self, seconds: f64) {
        let time = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
        self.plane.hold_leases(time);
    }

    fn remove_worker(&self, lease_id: u64) -> bool {
        self.plane.remove_worker(lease_id)
    }

    fn trim_worker(&self, lease_id: u64, most: u32) -> bool {
        self.plane.trim_worker(lease_id, most)
    }

    #[pyo3(signature = (
        function, *, revision, http_status, code, message, retry_after_ms=None, late=false
    ))]
    #[allow(clippy::too_many_arguments)]
    fn fail_lease(
        &self,
        function: &str,
        revision: i64,
        http_status: u16,
        code: String,
        message: String,
        retry_after_ms: Option<u64>,
        late: bool,
    ) {
        let mut error = Reject::new(http_status, code, message);
        error.retry_after_ms = retry_after_ms;
        self.plane.fail_lease(function, revision, &error, late);
    }

    fn explain_wait(&self, function: &str, message: String) {
        self.plane.explain_wait(function, message);
    }

    fn set_verdict(
        &self,
        digest: [u8; 32],
        principal: &str,
        tag: &str,
        grants: Vec<String>,
        lifetime_ms: u64,
    ) {
        let verdict = Verdict {
            principal: principal.into(),
            tag: tag.into(),
            grants: grants.into_iter().map(String::into_boxed_str).collect(),
        };
        let lifetime = Duration::from_millis(lifetime_ms);
        self.plane.set_verdict(digest, Ok(verdict), lifetime);
    }

    fn refuse_verdict(
        &self,
        digest: [u8; 32],
        http_status: u16,
        code: String,
        message: String,
        lifetime_ms: u64,
    ) {
        let refusal = Reject::new(http_status, code, message);
        let lifetime = Duration::from_millis(lifetime_ms);
        self.plane.set_verdict(digest, Err(refusal), lifetime);
    }

    fn revoke_verdicts(&self, tag: &str) -> usize {
        self.plane.revoke_verdicts(tag)
    }

    #[pyo3(signature = (
        tenant, *, request_rate=None, concurrency=None, tokens_per_minute=None, gateways=1, rank=0
    ))]
    fn set_tenant_limits(
        &self,
        tenant: &str,
        request_rate: Option<f64>,
        concurrency: Option<u32>,
        tokens_per_minute: Option<u64>,
        gateways: u32,
        rank: u32,
    ) {
        let limits = TenantLimits {
            request_rate,
            concurrency,
            tokens_per_minute,
            gateways,
            rank,
        };
        self.plane.set_tenant_limits(tenant, limits);
    }

    fn set_synced(&self) {
        self.plane.set_synced();
    }

    #[pyo3(signature = (not_ready))]
    fn set_not_ready(&self, not_ready: Option<String>) {
        self.plane.set_not_ready(not_ready);
    }

    fn take_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let events = self.plane.take_events().into_iter();
        events.map(|event| convert_event(py, event)).collect()
    }

    fn take_records<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.plane.take_records())
    }

    fn count_records_in(&self, path: PathBuf) -> PyResult<()> {
        self.plane.count_records_in(crate::Tally::open(&path)?);
        Ok(())
    }

    #[getter]
    fn records_lost(&self) -> u64 {
        self.plane.records_lost()
    }

    fn stats<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.plane.stats())
    }
}

fn convert_event(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyAny>> {
    let tuple = match event {
        Event::NeedWorker {
            function,
            revision,
            count,
        } => ("need_worker", &*function, revision, count)
            .into_pyobject(py)?
            .into_any(),
        Event::WorkerIdle { function, lease_id } => ("worker_idle", &*function, lease_id)
            .into_pyobject(py)?
            .into_any(),
        Event::WorkerTrimmed {
            function,
            lease_id,
            slots,
        } => ("worker_trimmed", &*function, lease_id, slots)
            .into_pyobject(py)?
            .into_any(),
        Event::WorkerFailed {
            function,
            lease_id,
            reason,
        } => ("worker_failed", &*function, lease_id, reason)
            .into_pyobject(py)?
            .into_any(),
        Event::WhyWaiting { function } => ("why_waiting", &*function).into_pyobject(py)?.into_any(),
        Event::NeedVerdict { digest, credential } => {
            let digest = PyBytes::new(py, &digest);
            ("need_verdict", digest, credential.reveal())
                .into_pyobject(py)?
                .into_any()
        }
    };
    Ok(tuple)
}
