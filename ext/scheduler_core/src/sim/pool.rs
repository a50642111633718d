//! The host pool of the simulated node: which snapshots are in pinned memory, from when, and what
//! the file holds. It must never hold more snapshots than its capacity.

use crate::keepalive::FunctionIx;

/// Where the state of a function is at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: no start has been tried yet.
    Never,
    /// Being created by the first start, on file from the given time on.
    Creating(u64),
    /// On file only.
    File,
    /// In the pool, whole from the given time on (a read may be under way).
    Host(u64),
}

/// The pool and the files behind it.
#[derive(Clone, Debug)]
pub struct HostPool {
    capacity: usize,
    resident: Vec<FunctionIx>,
    on_file: Vec<FunctionIx>,
    whole_at_ms: Vec<u64>,
    file_at_ms: Vec<Option<u64>>,
}

impl HostPool {
    /// An empty pool for `capacity` snapshots of `functions` functions, which all or none have a
    /// file.
    #[must_use]
    pub fn new(capacity: usize, functions: usize, all_on_file: bool) -> Self {
        let on_file = if all_on_file { functions as u32 } else { 0 };
        Self {
            capacity,
            resident: Vec::new(),
            on_file: (0..on_file).map(FunctionIx).collect(),
            whole_at_ms: vec![0; functions],
            file_at_ms: vec![all_on_file.then_some(0); functions],
        }
    }

    /// Where `function` is at `now_ms`.
    #[must_use]
    pub fn place(&self, now_ms: u64, function: FunctionIx) -> Place {
        let at = function.0 as usize;
        match self.file_at_ms[at] {
            None => Place::Never,
            Some(ready_ms) if ready_ms > now_ms => Place::Creating(ready_ms),
            Some(_) if self.holds(function) => Place::Host(self.whole_at_ms[at]),
            Some(_) => Place::File,
        }
    }

    /// Whether the pool has room set aside for `function`.
    #[must_use]
    pub fn holds(&self, function: FunctionIx) -> bool {
        self.resident.binary_search(&function).is_ok()
    }

    /// Whether the next insertion needs an eviction first.
    #[must_use]
    pub fn full(&self) -> bool {
        self.resident.len() >= self.capacity
    }

    /// How many snapshots fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What is in the pool, in index order.
    #[must_use]
    pub fn resident(&self) -> &[FunctionIx] {
        &self.resident
    }

    /// What has a file, in index order.
    #[must_use]
    pub fn on_file(&self) -> &[FunctionIx] {
        &self.on_file
    }

    /// The first start of `function` began; its snapshot is on file at `ready_ms`.
    pub fn create(&mut self, function: FunctionIx, ready_ms: u64) {
        self.file_at_ms[function.0 as usize] = Some(ready_ms);
    }

    /// The snapshot of `function` was written: fetches may read it.
    pub fn written(&mut self, function: FunctionIx) {
        if let Err(place) = self.on_file.binary_search(&function) {
            self.on_file.insert(place, function);
        }
    }

    /// Sets room aside for `function`, whole from `whole_ms` on.
    ///
    /// # Panics
    /// When the pool is full: the caller evicts first.
    pub fn insert(&mut self, function: FunctionIx, whole_ms: u64) {
        assert!(!self.full(), "insertion into a full pool");
        self.whole_at_ms[function.0 as usize] = whole_ms;
        if let Err(place) = self.resident.binary_search(&function) {
            self.resident.insert(place, function);
        }
    }

    /// Throws `function` out; it stays on file.
    pub fn evict(&mut self, function: FunctionIx) {
        if let Ok(place) = self.resident.binary_search(&function) {
            self.resident.remove(place);
        }
    }
}
