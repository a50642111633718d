//! The Python rim of this crate: argument conversion and error mapping, nothing else.
//! It must never hold the GIL over I/O and never decide anything.

use crate::device::{GpuPair, ProcState};
use crate::held::HeldGpu;
use crate::image::{Draft, Identity, Scan, Store};
use crate::pipeline::Cancel;
use crate::storage::OsStorage;
use crate::{Error, soft};
use pyo3::exceptions::{PyKeyError, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;
use std::os::fd::IntoRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
pyo3::create_exception!(
    inferx._ext,
    SnapshotError,
    pyo3::exceptions::PyException,
    "A snapshot is corrupt, unsupported or of another machine, or its job was cancelled."
);
pyo3::create_exception!(
    inferx._ext,
    DeviceError,
    pyo3::exceptions::PyException,
    "The device refused a call or does not answer; `args` are the message and the driver's code."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let text = error.to_string();
        match error {
            Error::OutOfMemory { .. } => PyMemoryError::new_err(text),
            Error::Invalid(_) => PyValueError::new_err(text),
            Error::NotHeld(handle) => PyKeyError::new_err(handle),
            Error::Io { source, .. } => PyOSError::new_err((source.raw_os_error(), text)),
            Error::Device { code, .. } => DeviceError::new_err((text, code)),
            Error::Timeout(_) => DeviceError::new_err((text, None::<i32>)),
            Error::Corrupt { .. }
            | Error::BadChunks(_)
            | Error::Unsupported(_)
            | Error::Incompatible(_)
            | Error::Cancelled => SnapshotError::new_err(text),
        }
    }
}

fn bytes_of(mib: u64) -> PyResult<u64> {
    mib.checked_mul(MIB)
        .ok_or_else(|| PyValueError::new_err(format!("{mib} MiB")))
}

/// Any GPU.
#[pyclass(frozen, subclass, module = "inferx._ext", name = "Gpu")]
struct PyGpu(HeldGpu);

#[pymethods]
impl PyGpu {
    fn allocate(&self, mib: u64) -> PyResult<u64> {
        Ok(self.0.allocate(bytes_of(mib)?)?)
    }

    fn free(&self, handle: u64) -> PyResult<()> {
        Ok(self.0.free(handle)?)
    }

    fn export(&self, handle: u64) -> PyResult<i32> {
        Ok(self.0.export(handle)?.into_raw_fd())
    }

    #[getter]
    fn used_mib(&self) -> PyResult<u64> {
        Ok((self
            .0
            .gpu()
            .info()
            .memory_total
            .saturating_sub(self.0.gpu().mem_free()?))
            / MIB)
    }

    #[getter]
    fn capacity_mib(&self) -> u64 {
        self.0.gpu().info().memory_total / MIB
    }

    #[getter]
    fn name(&self) -> String {
        self.0.gpu().info().name
    }

    #[getter]
    fn driver(&self) -> String {
        self.0.gpu().info().driver
    }

    #[getter]
    fn uuid(&self) -> String {
        self.0
            .gpu()
            .info()
            .uuid
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn process_state(&self, py: Python<'_>, pid: i32) -> PyResult<&'static str> {
        let state = py.detach(|| self.0.gpu().proc_state(pid))?;
        Ok(match state {
            ProcState::Running => "running",
            ProcState::Locked => "locked",
            ProcState::Checkpointed => "checkpointed",
            ProcState::Failed => "failed",
        })
    }

    fn process_lock(&self, py: Python<'_>, pid: i32, timeout_ms: u64) -> PyResult<()> {
        Ok(py.detach(|| {
            self.0
                .gpu()
                .proc_lock(pid, Duration::from_millis(timeout_ms))
        })?)
    }

    fn process_checkpoint(&self, py: Python<'_>, pid: i32) -> PyResult<()> {
        Ok(py.detach(|| self.0.gpu().proc_checkpoint(pid))?)
    }

    #[pyo3(signature = (pid, gpus = Vec::new()))]
    fn process_restore(
        &self,
        py: Python<'_>,
        pid: i32,
        gpus: Vec<([u8; 16], [u8; 16])>,
    ) -> PyResult<()> {
        let pairs: Vec<GpuPair> = gpus
            .into_iter()
            .map(|(old, new)| GpuPair { old, new })
            .collect();
        Ok(py.detach(|| self.0.gpu().proc_restore(pid, &pairs))?)
    }

    fn process_unlock(&self, py: Python<'_>, pid: i32) -> PyResult<()> {
        Ok(py.detach(|| self.0.gpu().proc_unlock(pid))?)
    }
}

/// The simulated GPU.
#[pyclass(frozen, extends = PyGpu, module = "inferx._ext", name = "SoftDevice")]
struct PySoftDevice {
    device: Arc<soft::SoftDevice>,
}

#[pymethods]
impl PySoftDevice {
    #[new]
    #[pyo3(signature = (capacity_mib, *, index = 0, mib_per_second = None, faults = Vec::new()))]
    fn new(
        capacity_mib: u64,
        index: u16,
        mib_per_second: Option<u64>,
        faults: Vec<String>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let faults = faults
            .iter()
            .map(|name| name.parse())
            .collect::<crate::Result<_>>()?;
        let config = soft::SoftConfig {
            capacity: bytes_of(capacity_mib)?,
            bytes_per_second: mib_per_second.map(bytes_of).transpose()?,
            index,
            faults,
            ..soft::SoftConfig::default()
        };
        let device = Arc::new(soft::SoftDevice::with_config(config)?);
        let gpu = PyGpu(HeldGpu::new(device.clone()));
        Ok(PyClassInitializer::from(gpu).add_subclass(Self { device }))
    }

    fn process_start(&self, pid: i32, mib: u64) -> PyResult<()> {
        Ok(self.device.process_start(pid, bytes_of(mib)?)?)
    }

    fn process_end(&self, pid: i32) -> PyResult<()> {
        Ok(self.device.process_end(pid)?)
    }
}

/// Cancels a save or restore from another thread.
#[pyclass(frozen, module = "inferx._ext", name = "CancelToken")]
#[derive(Default)]
struct PyCancel(Cancel);

#[pymethods]
impl PyCancel {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn cancel(&self) {
        self.0.cancel();
    }
}

#[pyclass(frozen, module = "inferx._ext", name = "SnapshotStore")]
struct PyStore {
    store: Store,
    scan: Scan,
}

fn token(cancel: Option<&Bound<'_, PyCancel>>) -> Cancel {
    cancel.map(|one| one.get().0.clone()).unwrap_or_default()
}

fn json_error(error: serde_json::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn report<'py>(py: Python<'py>, numbers: &[(&str, u64)]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    numbers
        .iter()
        .try_for_each(|(name, number)| dict.set_item(name, number))?;
    Ok(dict)
}

#[pymethods]
impl PyStore {
    #[new]
    fn new(py: Python<'_>, root: PathBuf) -> PyResult<Self> {
        let (store, scan) = py.detach(|| Store::open(Arc::new(OsStorage), &root))?;
        Ok(Self { store, scan })
    }

    #[getter]
    fn removed(&self) -> Vec<String> {
        self.scan.removed.clone()
    }

    #[getter]
    fn quarantined(&self) -> BTreeMap<String, String> {
        self.scan.quarantined.iter().cloned().collect()
    }

    #[getter]
    fn skipped(&self) -> BTreeMap<String, String> {
        self.scan.skipped.iter().cloned().collect()
    }

    fn ids(&self) -> PyResult<Vec<String>> {
        Ok(self.store.list()?)
    }

    fn path(&self, id: &str) -> PathBuf {
        self.store.path(id)
    }

    fn manifest(&self, py: Python<'_>, id: &str) -> PyResult<String> {
        let snapshot = py.detach(|| self.store.snapshot(id))?;
        serde_json::to_string(snapshot.manifest()).map_err(json_error)
    }

    fn differences(&self, py: Python<'_>, id: &str, host: &str) -> PyResult<Vec<String>> {
        let host: Identity = serde_json::from_str(host).map_err(json_error)?;
        let snapshot = py.detach(|| self.store.snapshot(id))?;
        Ok(snapshot.manifest().identity.differences(&host))
    }

    fn verify(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        Ok(py.detach(|| self.store.fsck(id))?)
    }

    fn remove(&self, py: Python<'_>, id: &str) -> PyResult<()> {
        Ok(py.detach(|| self.store.remove(id))?)
    }

    #[pyo3(signature = (id, gpu, regions, *, identity = "{}", extra = "{}",
                        files = BTreeMap::new(), created_unix_ms = 0, cancel = None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn save<'py>(
        &self,
        py: Python<'py>,
        id: String,
        gpu: &Bound<'py, PyGpu>,
        regions: BTreeMap<String, u64>,
        identity: &str,
        extra: &str,
        files: BTreeMap<String, PathBuf>,
        created_unix_ms: u64,
        cancel: Option<&Bound<'py, PyCancel>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let identity = serde_json::from_str(identity).map_err(json_error)?;
        let extra = serde_json::from_str(extra).map_err(json_error)?;
        let draft = Draft {
            id,
            created_unix_ms,
            identity,
            extra,
            regions: Vec::new(),
        };
        let (gpu, cancel) = (gpu.get(), token(cancel));
        let done = py.detach(|| gpu.0.save(&self.store, draft, &regions, &files, &cancel))?;
        let elapsed_us = done.elapsed.as_micros() as u64;
        report(
            py,
            &[
                ("chunks", done.chunks),
                ("bytes", done.bytes),
                ("elapsed_us", elapsed_us),
            ],
        )
    }

    #[pyo3(signature = (id, gpu, *, cancel = None))]
    fn restore<'py>(
        &self,
        py: Python<'py>,
        id: &str,
        gpu: &Bound<'py, PyGpu>,
        cancel: Option<&Bound<'py, PyCancel>>,
    ) -> PyResult<(BTreeMap<String, u64>, Bound<'py, PyDict>)> {
        let (gpu, cancel) = (gpu.get(), token(cancel));
        let (handles, done) = py.detach(|| gpu.0.restore(&self.store, id, &cancel))?;
        let numbers = [
            ("chunks", done.chunks),
            ("reads", done.reads),
            ("bytes_read", done.bytes_read),
            ("bytes_copied", done.bytes_copied),
            ("bytes_zeroed", done.bytes_zeroed),
            ("direct", u64::from(done.direct)),
            ("first_copy_us", done.first_copy.as_micros() as u64),
            ("elapsed_us", done.elapsed.as_micros() as u64),
        ];
        Ok((handles, report(py, &numbers)?))
    }
}

/// Adds this crate's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SnapshotError", module.py().get_type::<SnapshotError>())?;
    module.add("DeviceError", module.py().get_type::<DeviceError>())?;
    module.add_class::<PyGpu>()?;
    module.add_class::<PySoftDevice>()?;
    module.add_class::<PyCancel>()?;
    module.add_class::<PyStore>()
}
