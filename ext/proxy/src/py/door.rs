//! The Python rim of the second door: argument conversion and nothing else.

use bytes::Bytes;
use http::HeaderMap;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::Part;

/// Hands calls to the data plane; documented in `_ext.pyi`.
#[pyclass(frozen, module = "inferx._ext")]
pub(crate) struct Door {
    door: crate::Door,
}

impl From<crate::Door> for Door {
    fn from(door: crate::Door) -> Self {
        Self { door }
    }
}

#[pymethods]
impl Door {
    #[getter]
    fn ready_fd(&self) -> i32 {
        self.door.ready_fd()
    }

    fn ready(&self) -> Vec<u64> {
        self.door.ready()
    }

    fn open(&self, head: &[u8], chunked: bool) -> PyResult<DoorCall> {
        let call = self.door.open(head, chunked).map_err(super::os_error)?;
        Ok(DoorCall { call })
    }
}

/// One call; documented in `_ext.pyi`.
#[pyclass(frozen, module = "inferx._ext")]
pub(crate) struct DoorCall {
    call: crate::DoorCall,
}

#[pymethods]
impl DoorCall {
    #[getter]
    fn id(&self) -> u64 {
        self.call.id()
    }

    fn push(&self, frame: &[u8]) -> bool {
        self.call.push(Bytes::copy_from_slice(frame))
    }

    fn finish(&self) {
        self.call.finish();
    }

    fn leave(&self) {
        self.call.leave();
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        self.call.take().map(|part| convert(py, part)).transpose()
    }
}

fn convert(py: Python<'_>, part: Part) -> PyResult<Bound<'_, PyAny>> {
    let tuple = match part {
        Part::Whole(status, headers, body) => {
            let (fields, body) = (fields(py, &headers)?, PyBytes::new(py, &body));
            ("whole", status.as_u16(), fields, body)
                .into_pyobject(py)?
                .into_any()
        }
        Part::Head(status, headers) => ("head", status.as_u16(), fields(py, &headers)?)
            .into_pyobject(py)?
            .into_any(),
        Part::Data(data) => ("data", PyBytes::new(py, &data))
            .into_pyobject(py)?
            .into_any(),
        Part::End => ("end",).into_pyobject(py)?.into_any(),
        Part::Broken(why) => ("broken", why).into_pyobject(py)?.into_any(),
    };
    Ok(tuple)
}

fn fields<'py>(py: Python<'py>, headers: &HeaderMap) -> PyResult<Bound<'py, PyList>> {
    let fields = PyList::empty(py);
    for (name, value) in headers {
        let name = PyBytes::new(py, name.as_str().as_bytes());
        fields.append((name, PyBytes::new(py, value.as_bytes())))?;
    }
    Ok(fields)
}
