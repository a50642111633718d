//! The Python rim of this crate: argument conversion and error mapping, nothing else.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use scheduler_core::messages::Effect;
use scheduler_core::model::FuncKey;
use scheduler_core::py::{SchedulerCore, effect_dict};

use crate::{Desk, Files, Front, News, Options, Place, Refused, Statuses, Tally};

/// Adds this crate's class to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SchedulerServer>()
}

/// The scheduler's port; documented in `_ext.pyi`.
#[pyclass(frozen, module = "inferx._ext")]
struct SchedulerServer {
    desk: Arc<Desk>,
    lease_ttl_ms: u64,
    statuses: Statuses,
    front: Mutex<Option<Front>>,
}

impl SchedulerServer {
    /// A verb that panicked, here or in Python's hands, leaves a core that nobody may trust.
    fn desk(&self) -> PyResult<&Arc<Desk>> {
        if self.desk.is_broken() {
            return Err(PyRuntimeError::new_err(
                "the core is broken: an earlier verb panicked",
            ));
        }
        Ok(&self.desk)
    }

    fn front(&self) -> MutexGuard<'_, Option<Front>> {
        self.front.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn os_error(error: io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, error.to_string())),
        None => PyOSError::new_err(error.to_string()),
    }
}

#[pymethods]
impl SchedulerServer {
    #[new]
    fn new(
        core: &SchedulerCore,
        lease_ttl_ms: u64,
        statuses: HashMap<String, i32>,
        bounds_s: Vec<f64>,
    ) -> PyResult<Self> {
        Ok(Self {
            desk: Desk::new(core.shared(), Tally::new(bounds_s)).map_err(os_error)?,
            lease_ttl_ms,
            statuses: Statuses(statuses),
            front: Mutex::new(None),
        })
    }

    #[pyo3(signature = (address, behind, callers, tls = None))]
    fn start(
        &self,
        py: Python<'_>,
        address: &str,
        behind: PathBuf,
        callers: Vec<String>,
        tls: Option<(PathBuf, PathBuf, PathBuf)>,
    ) -> PyResult<u16> {
        let listen: SocketAddr = address.parse().map_err(|_| {
            PyValueError::new_err(format!("`{address}` is not an IP address and a port"))
        })?;
        let options = Options {
            listen,
            behind,
            tls: tls.map(|(ca, cert, key)| Files { ca, cert, key }),
            callers,
            statuses: self.statuses.clone(),
            lease_ttl_ms: self.lease_ttl_ms,
        };
        let desk = self.desk()?.clone();
        let front = py
            .detach(|| Front::start(desk, options))
            .map_err(os_error)?;
        let port = front.address.port();
        *self.front() = Some(front);
        Ok(port)
    }

    fn stop(&self, py: Python<'_>, grace_ms: u64) {
        let front = self.front().take();
        if let Some(front) = front {
            py.detach(|| front.stop(Duration::from_millis(grace_ms)));
        }
    }

    #[getter]
    fn bell_fd(&self) -> i32 {
        self.desk.bell_fd()
    }

    #[getter]
    fn broken(&self) -> bool {
        self.desk.is_broken()
    }

    fn lead(&self, epoch: i64, until_ms: u64) {
        self.desk.lead(epoch, until_ms);
    }

    fn open(&self) {
        self.desk.open();
    }

    fn close(&self) -> PyResult<()> {
        self.desk()?.close();
        Ok(())
    }

    fn settle<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        orders(py, self.desk()?.settle())
    }

    fn answer_bell<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyList>)> {
        let (effects, news) = self.desk()?.answer_bell();
        let told = PyList::empty(py);
        for item in news {
            told.append(told_as(py, item)?)?;
        }
        Ok((orders(py, effects)?, told))
    }

    #[pyo3(signature = (number, refusal = None))]
    fn learned(&self, number: u64, refusal: Option<(String, String, Option<u64>)>) -> PyResult<()> {
        let outcome = match refusal {
            None => Ok(()),
            Some((code, message, retry_after_ms)) => Err(Refused {
                code: Cow::Owned(code),
                message,
                retry_after_ms,
            }),
        };
        self.desk()?.learned(number, outcome);
        Ok(())
    }

    fn place(&self, pod_id: &str, ip: u32, port: u16) {
        let place = Place { ip, port };
        self.desk.place(pod_id, Some(place));
    }

    fn forget_place(&self, pod_id: &str) {
        self.desk.place(pod_id, None);
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (granted, refused) = self.desk.tally.read();
        let starts = PyDict::new(py);
        for (start, waits) in granted {
            starts.set_item(start, (waits.sum_s, waits.buckets))?;
        }
        let stats = PyDict::new(py);
        stats.set_item("granted", starts)?;
        stats.set_item("refused", refused)?;
        Ok(stats)
    }
}

fn orders(py: Python<'_>, effects: Vec<Effect>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for effect in effects {
        list.append(effect_dict(py, effect)?)?;
    }
    Ok(list)
}

fn told_as(py: Python<'_>, news: News) -> PyResult<Bound<'_, PyTuple>> {
    match news {
        News::Learn(learn) => ("learn", learn.number, key_tuple(learn.key)).into_pyobject(py),
        News::Refused {
            request_id,
            key,
            why,
        } => (
            "refused",
            request_id,
            key_tuple(key),
            why.code.as_ref(),
            why.message,
        )
            .into_pyobject(py),
        News::Untold(count) => ("untold", count).into_pyobject(py),
        News::Warning(text) => ("warning", text).into_pyobject(py),
    }
}

fn key_tuple(key: FuncKey) -> (String, String, String) {
    (key.tenant, key.namespace, key.name)
}
