//! Snapshots and the memory tier for Python.
//! It must never hold the GIL over I/O or a copy.

use super::MIB;
use super::gpu::{PyGpu, bytes_of};
use crate::image::{Draft, Identity, Import, Scan, Store, fsck};
use crate::pipeline::{self, Cancel, HostPool, Resident};
use crate::storage::OsStorage;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyDict;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A chunk of weights.
const SLOT_LEN: usize = 8 << 20;

/// What is wrong with each snapshot of a directory.
#[pyfunction]
pub(super) fn fsck_snapshots(
    py: Python<'_>,
    root: PathBuf,
) -> PyResult<BTreeMap<String, Option<String>>> {
    let found = py.detach(|| fsck(&OsStorage, &root))?;
    let texts = found.into_iter();
    Ok(texts
        .map(|(id, error)| (id, error.map(|error| error.to_string())))
        .collect())
}

/// Cancels a save or restore from another thread.
#[pyclass(frozen, module = "inferx._ext", name = "CancelToken")]
#[derive(Default)]
pub(super) struct PyCancel(Cancel);

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
pub(super) struct PyStore {
    store: Store,
    scan: Scan,
}

fn token(cancel: Option<&Bound<'_, PyCancel>>) -> Cancel {
    cancel.map(|one| one.get().0.clone()).unwrap_or_default()
}

fn draft(id: String, created_unix_ms: u64, identity: &str, extra: &str) -> PyResult<Draft> {
    let identity = serde_json::from_str(identity).map_err(json_error)?;
    let extra = serde_json::from_str(extra).map_err(json_error)?;
    Ok(Draft {
        id,
        created_unix_ms,
        identity,
        extra,
        regions: Vec::new(),
    })
}

fn host_identity(host: Option<&str>) -> PyResult<Option<Identity>> {
    host.map(serde_json::from_str)
        .transpose()
        .map_err(json_error)
}

fn figures<'py>(py: Python<'py>, done: &pipeline::Report) -> PyResult<Bound<'py, PyDict>> {
    let numbers = [
        ("chunks", done.chunks),
        ("reads", done.reads),
        ("read_calls", done.read_calls),
        ("bytes_read", done.bytes_read),
        ("bytes_copied", done.bytes_copied),
        ("bytes_zeroed", done.bytes_zeroed),
        ("direct", u64::from(done.direct)),
        ("first_copy_us", done.first_copy.as_micros() as u64),
        ("elapsed_us", done.elapsed.as_micros() as u64),
    ];
    report(py, &numbers)
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

    #[pyo3(signature = (commit, manifest, table, *, host = None))]
    fn start_import(
        &self,
        py: Python<'_>,
        commit: &[u8],
        manifest: &[u8],
        table: &[u8],
        host: Option<&str>,
    ) -> PyResult<PyImport> {
        let host = host_identity(host)?;
        let import = py.detach(|| self.store.import(commit, manifest, table, host.as_ref()))?;
        Ok(PyImport(Mutex::new(Some(import))))
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
        let draft = draft(id, created_unix_ms, identity, extra)?;
        let (gpu, cancel) = (gpu.get(), token(cancel));
        let done = py.detach(|| gpu.0.save(&self.store, draft, &regions, &files, &cancel))?;
        let elapsed_us = done.elapsed.as_micros() as u64;
        let numbers = [
            ("chunks", done.chunks),
            ("bytes", done.bytes),
            ("elapsed_us", elapsed_us),
        ];
        report(py, &numbers)
    }

    #[pyo3(signature = (id, gpu, *, host = None, cancel = None))]
    fn restore<'py>(
        &self,
        py: Python<'py>,
        id: &str,
        gpu: &Bound<'py, PyGpu>,
        host: Option<&str>,
        cancel: Option<&Bound<'py, PyCancel>>,
    ) -> PyResult<(BTreeMap<String, u64>, Bound<'py, PyDict>)> {
        let (gpu, cancel) = (gpu.get(), token(cancel));
        let host = host_identity(host)?;
        let (handles, done) =
            py.detach(|| gpu.0.restore(&self.store, id, host.as_ref(), &cancel))?;
        Ok((handles, figures(py, &done)?))
    }

    #[pyo3(signature = (id, pool, *, host = None, cancel = None))]
    fn load(
        &self,
        py: Python<'_>,
        id: &str,
        pool: &Bound<'_, PyHostPool>,
        host: Option<&str>,
        cancel: Option<&Bound<'_, PyCancel>>,
    ) -> PyResult<PyResident> {
        let (pool, cancel) = (pool.get(), token(cancel));
        let host = host_identity(host)?;
        let resident = py.detach(|| {
            let snapshot = self.store.snapshot(id)?;
            host.map_or(Ok(()), |host| snapshot.manifest().identity.check(&host))?;
            Resident::read(&snapshot, &pool.0, &cancel)
        })?;
        Ok(PyResident::new(resident))
    }

    #[pyo3(signature = (id, resident, *, identity = "{}", extra = "{}",
                        created_unix_ms = 0, cancel = None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of Python")]
    fn save_resident(
        &self,
        py: Python<'_>,
        id: String,
        resident: &Bound<'_, PyResident>,
        identity: &str,
        extra: &str,
        created_unix_ms: u64,
        cancel: Option<&Bound<'_, PyCancel>>,
    ) -> PyResult<()> {
        let mut draft = draft(id, created_unix_ms, identity, extra)?;
        let (resident, cancel) = (resident.get(), token(cancel));
        py.detach(|| {
            let mut resident = resident.lock();
            draft.regions = resident.regions().to_vec();
            let mut writer = self.store.writer(draft, Default::default())?;
            resident.write(&mut writer, &cancel)?;
            writer.publish().map(|_| ())
        })?;
        Ok(())
    }
}

/// A snapshot on its way in; `None` once it is published or given up.
#[pyclass(frozen, module = "inferx._ext", name = "SnapshotImport")]
pub(super) struct PyImport(Mutex<Option<Import>>);

impl PyImport {
    fn with<T>(&self, job: impl FnOnce(&mut Import) -> crate::Result<T>) -> crate::Result<T> {
        let mut import = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *import {
            Some(import) => job(import),
            None => Err(crate::Error::Invalid("this import has ended".into())),
        }
    }

    fn take(&self) -> Option<Import> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[pymethods]
impl PyImport {
    #[getter]
    fn id(&self) -> PyResult<String> {
        Ok(self.with(|import| Ok(import.id().to_owned()))?)
    }

    fn files(&self) -> PyResult<Vec<(String, u64)>> {
        let listed = |(name, len): (&str, u64)| (name.to_owned(), len);
        Ok(self.with(|import| Ok(import.files().map(listed).collect()))?)
    }

    fn feed(&self, py: Python<'_>, name: &str, content: PyBackedBytes) -> PyResult<()> {
        Ok(py.detach(|| self.with(|import| import.feed(name, &content)))?)
    }

    fn publish(&self, py: Python<'_>) -> PyResult<()> {
        let ended = || crate::Error::Invalid("this import has ended".into());
        let import = self.take().ok_or_else(ended)?;
        py.detach(|| import.publish())?;
        Ok(())
    }

    fn abandon(&self, py: Python<'_>) {
        py.detach(|| drop(self.take()));
    }
}

/// The pinned host memory of the agent.
#[pyclass(frozen, module = "inferx._ext", name = "HostPool")]
pub(super) struct PyHostPool(Arc<HostPool>);

#[pymethods]
impl PyHostPool {
    #[new]
    fn new(py: Python<'_>, gpu: &Bound<'_, PyGpu>, mib: u64) -> PyResult<Self> {
        let slots = (bytes_of(mib)? / SLOT_LEN as u64) as usize;
        let gpu = gpu.get();
        Ok(Self(
            py.detach(|| HostPool::new(gpu.0.gpu(), slots, SLOT_LEN))?,
        ))
    }

    #[getter]
    fn capacity_mib(&self) -> u64 {
        (self.0.slots() * self.0.slot_len()) as u64 / MIB
    }

    #[getter]
    fn free_mib(&self) -> u64 {
        (self.0.free_slots() * self.0.slot_len()) as u64 / MIB
    }

    fn capture(
        &self,
        py: Python<'_>,
        gpu: &Bound<'_, PyGpu>,
        regions: BTreeMap<String, u64>,
    ) -> PyResult<PyResident> {
        let gpu = gpu.get();
        Ok(PyResident::new(
            py.detach(|| gpu.0.capture(&regions, &self.0))?,
        ))
    }
}

/// A snapshot's GPU memory in a host pool.
#[pyclass(frozen, module = "inferx._ext", name = "ResidentSnapshot")]
pub(super) struct PyResident(Mutex<Resident>);

impl PyResident {
    fn new(resident: Resident) -> Self {
        Self(Mutex::new(resident))
    }

    fn lock(&self) -> MutexGuard<'_, Resident> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PyResident {
    #[getter]
    fn host_mib(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.lock().host_bytes()) / MIB
    }

    #[pyo3(signature = (gpu, *, cancel = None))]
    fn restore<'py>(
        &self,
        py: Python<'py>,
        gpu: &Bound<'py, PyGpu>,
        cancel: Option<&Bound<'py, PyCancel>>,
    ) -> PyResult<(BTreeMap<String, u64>, Bound<'py, PyDict>)> {
        let (gpu, cancel) = (gpu.get(), token(cancel));
        let (handles, done) = py.detach(|| gpu.0.restore_resident(&mut self.lock(), &cancel))?;
        Ok((handles, figures(py, &done)?))
    }
}
