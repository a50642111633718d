//! GPUs for Python.
//! It must never decide anything: it converts arguments and calls `held`.

use super::MIB;
use crate::cuda::CudaDevice;
use crate::device::{Gpu, GpuPair, ProcState};
use crate::held::HeldGpu;
use crate::measure;
use crate::soft;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::fs::File;
use std::os::fd::{AsFd, IntoRawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub(super) fn bytes_of(mib: u64) -> PyResult<u64> {
    mib.checked_mul(MIB)
        .ok_or_else(|| PyValueError::new_err(format!("{mib} MiB")))
}

/// Any GPU.
#[pyclass(frozen, subclass, module = "inferx._ext", name = "Gpu")]
pub(super) struct PyGpu(pub(super) HeldGpu);

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
        let total = self.0.gpu().info().memory_total;
        Ok(total.saturating_sub(self.0.gpu().mem_free()?) / MIB)
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
    fn cuda(&self) -> String {
        self.0.gpu().info().cuda
    }

    #[getter]
    fn compute_capability(&self) -> String {
        self.0.gpu().info().compute_capability
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

    fn measure_pin(&self, py: Python<'_>, mib: u64, piece_mib: u64) -> PyResult<u64> {
        let (bytes, piece) = (bytes_of(mib)? as usize, bytes_of(piece_mib)? as usize);
        let time = py.detach(|| measure::pin(self.0.gpu(), bytes, piece))?;
        Ok(time.as_micros() as u64)
    }

    fn measure_copy(&self, py: Python<'_>, pieces: usize, piece_mib: u64) -> PyResult<(u64, u64)> {
        let piece = bytes_of(piece_mib)? as usize;
        let times = py.detach(|| measure::copies(self.0.gpu(), pieces, piece))?;
        let us = |time: Duration| time.as_micros() as u64;
        Ok((us(times.to_device), us(times.to_host)))
    }

    fn measure_map(&self, py: Python<'_>, mib: u64) -> PyResult<(u64, u64, u64)> {
        let bytes = bytes_of(mib)?;
        let times = py.detach(|| measure::mapping(self.0.gpu(), bytes))?;
        let us = |time: Duration| time.as_micros() as u64;
        Ok((us(times.create), us(times.map), us(times.unmap)))
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
pub(super) struct PySoftDevice {
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

    fn adopt(slf: &Bound<'_, Self>, descriptor: i32, mib: u64) -> PyResult<u64> {
        // Opened anew, because a bare number cannot be borrowed in safe code.
        let path = format!("/proc/self/fd/{descriptor}");
        let memory = File::options().read(true).write(true).open(path)?;
        let gpu = slf.as_super().get();
        Ok(gpu.0.import(memory.as_fd(), bytes_of(mib)?)?)
    }

    fn process_start(&self, pid: i32, mib: u64) -> PyResult<()> {
        Ok(self.device.process_start(pid, bytes_of(mib)?)?)
    }

    fn process_end(&self, pid: i32) -> PyResult<()> {
        Ok(self.device.process_end(pid)?)
    }
}

/// An NVIDIA GPU.
#[pyclass(frozen, extends = PyGpu, module = "inferx._ext", name = "CudaDevice")]
pub(super) struct PyCudaDevice;

#[pymethods]
impl PyCudaDevice {
    #[new]
    #[pyo3(signature = (index = 0, *, library = None))]
    fn new(
        py: Python<'_>,
        index: u32,
        library: Option<PathBuf>,
    ) -> PyResult<PyClassInitializer<Self>> {
        let device: Arc<dyn Gpu> = Arc::new(py.detach(|| match &library {
            Some(path) => CudaDevice::open_with(path, index),
            None => CudaDevice::open(index),
        })?);
        Ok(PyClassInitializer::from(PyGpu(HeldGpu::new(device))).add_subclass(Self))
    }
}
