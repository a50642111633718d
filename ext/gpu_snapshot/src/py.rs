//! The Python rim of this crate: argument conversion and error mapping, nothing else.
//! It must never hold the GIL over I/O and never decide anything.

mod gpu;
mod store;

use crate::Error;
use pyo3::exceptions::{PyKeyError, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;

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
            Error::OutOfMemory { .. } | Error::OutOfHostMemory { .. } => {
                PyMemoryError::new_err(text)
            }
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

/// Adds this crate's classes to the extension module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("SnapshotError", module.py().get_type::<SnapshotError>())?;
    module.add("DeviceError", module.py().get_type::<DeviceError>())?;
    module.add_class::<gpu::PyGpu>()?;
    module.add_class::<gpu::PySoftDevice>()?;
    module.add_class::<gpu::PyCudaDevice>()?;
    module.add_class::<store::PyCancel>()?;
    module.add_class::<store::PyHostPool>()?;
    module.add_class::<store::PyResident>()?;
    module.add_class::<store::PyImport>()?;
    module.add_function(wrap_pyfunction!(store::fsck_snapshots, module)?)?;
    module.add_class::<store::PyStore>()
}
