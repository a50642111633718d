//! The Python rim of this crate: argument conversion and error mapping, nothing else.
//! It must never hold the GIL over I/O and never decide anything.

use crate::device::{Device, GRANULARITY, Phys};
use crate::{Error, soft};
use pyo3::exceptions::{PyKeyError, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

pyo3::create_exception!(
    inferx._ext,
    SnapshotError,
    pyo3::exceptions::PyException,
    "A snapshot is corrupt, unsupported or of another machine, or its job was cancelled."
);

const MIB: u64 = 1 << 20;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        match &error {
            Error::OutOfMemory { .. } => PyMemoryError::new_err(error.to_string()),
            Error::Invalid(_) => PyValueError::new_err(error.to_string()),
            Error::Io { source, .. } => {
                PyOSError::new_err((source.raw_os_error(), error.to_string()))
            }
            _ => SnapshotError::new_err(error.to_string()),
        }
    }
}

/// A simulated GPU for Python: its allocations are counted in MiB and cost no RAM until written.
#[pyclass(frozen, module = "inferx._ext")]
struct SoftDevice {
    device: soft::SoftDevice,
    held: Mutex<HashMap<u64, Phys>>,
}

#[pymethods]
impl SoftDevice {
    #[new]
    fn new(capacity_mib: u64) -> PyResult<Self> {
        let capacity = capacity_mib
            .checked_mul(MIB)
            .ok_or_else(|| PyValueError::new_err("capacity"))?;
        Ok(Self {
            device: soft::SoftDevice::new(capacity)?,
            held: Mutex::default(),
        })
    }

    fn allocate(&self, mib: u64) -> PyResult<u64> {
        let len = mib
            .checked_mul(MIB)
            .ok_or_else(|| PyValueError::new_err("mib is too large"))?;
        let phys = self.device.create(len, true)?;
        let handle = phys.handle;
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(handle, phys);
        Ok(handle)
    }

    fn free(&self, handle: u64) -> PyResult<()> {
        let phys = self
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&handle);
        let phys = phys.ok_or_else(|| PyKeyError::new_err(format!("handle {handle}")))?;
        Ok(self.device.release(phys)?)
    }

    #[getter]
    fn used_mib(&self) -> u64 {
        self.device.used() / MIB
    }

    #[getter]
    fn capacity_mib(&self) -> u64 {
        self.device.capacity() / MIB
    }

    #[classattr]
    fn granularity_mib() -> u64 {
        GRANULARITY / MIB
    }

    fn __repr__(&self) -> String {
        format!(
            "SoftDevice(used_mib={}, capacity_mib={})",
            self.used_mib(),
            self.capacity_mib()
        )
    }
}

/// Adds this crate's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SnapshotError", module.py().get_type::<SnapshotError>())?;
    module.add_class::<SoftDevice>()
}
