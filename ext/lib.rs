//! The extension module `inferx._ext`: adds what each crate registers, holds no logic of its own.

use pyo3::prelude::*;

#[pymodule]
fn _ext(module: &Bound<'_, PyModule>) -> PyResult<()> {
    #[cfg(feature = "scheduler")]
    {
        scheduler_core::py::register(module)?;
        scheduler_server::py::register(module)?;
    }
    #[cfg(feature = "proxy")]
    proxy::py::register(module)?;
    #[cfg(feature = "snapshot")]
    gpu_snapshot::py::register(module)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
