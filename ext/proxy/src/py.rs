//! The Python rim of this crate: argument conversion and error mapping, nothing else.

use pyo3::prelude::*;

/// Adds this crate's classes to the extension module.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
