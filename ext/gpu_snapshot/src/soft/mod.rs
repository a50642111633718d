//! SoftDevice: a GPU without a GPU; its memory is sparse memfds under a capacity limit.
//! It must never touch bytes that nobody copies into: unused VRAM costs no RAM.

mod fault;
mod memory;
mod process;
mod queue;

pub use fault::Fault;

use crate::buffer::HostBuffer;
use crate::device::{Access, CopyQueue, Device, DeviceInfo, GRANULARITY, Phys, Va, round_up};
use crate::{Error, Result};
use fault::FaultPlan;
use memory::{Block, Mapping, Memory, VA_BASE, VA_END};
use rustix::fs::fstat;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a simulated device is like.
#[derive(Clone, Debug)]
pub struct SoftConfig {
    /// Total memory in bytes, rounded down to the granularity.
    pub capacity: u64,
    /// Copy rate of the device, all queues together; `None` is as fast as the host copies.
    pub bytes_per_second: Option<u64>,
    /// Copies that a queue moves at the same time; GPUs have several copy engines.
    pub copy_engines: usize,
    /// Time that each copy takes besides its bytes.
    pub copy_latency: Duration,
    /// Tells devices of one machine apart; part of the UUID.
    pub index: u16,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

impl Default for SoftConfig {
    fn default() -> Self {
        Self {
            capacity: 0,
            bytes_per_second: None,
            copy_engines: 2,
            copy_latency: Duration::ZERO,
            index: 0,
            faults: Vec::new(),
        }
    }
}

/// What queues and their device share.
#[derive(Debug)]
struct Inner {
    config: SoftConfig,
    uuid: [u8; 16],
    faults: FaultPlan,
    memory: Mutex<Memory>,
    /// When the copy engine is free again; only set when a rate or latency is.
    engine_free_at: Mutex<Option<Instant>>,
}

impl Inner {
    /// The bookkeeping is consistent between any two statements, so poison is no danger.
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, memory: &Memory, len: u64) -> Result<()> {
        let free = self.config.capacity.saturating_sub(memory.used());
        if len > free {
            return Err(Error::OutOfMemory { asked: len, free });
        }
        Ok(())
    }

    /// Books the copy engine for `len` bytes; when they are through.
    fn take_copy_time(&self, len: u64) -> Option<Instant> {
        let now = Instant::now();
        let rate = self
            .config
            .bytes_per_second
            .map(|rate| len as f64 / rate.max(1) as f64);
        let time = Duration::from_secs_f64(rate.unwrap_or(0.0)) + self.config.copy_latency;
        let mut free_at = self
            .engine_free_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let until = free_at.map_or(now, |at| at.max(now)) + time;
        *free_at = Some(until);
        Some(until)
    }
}

/// A simulated GPU. Dropping it and its queues frees all of its memory.
#[derive(Debug)]
pub struct SoftDevice {
    inner: Arc<Inner>,
    processes: Mutex<BTreeMap<i32, process::Process>>,
}

impl SoftDevice {
    /// A device with `capacity` bytes that copies as fast as it can; refuses less than 2 MiB.
    pub fn new(capacity: u64) -> Result<Self> {
        Self::with_config(SoftConfig {
            capacity,
            ..SoftConfig::default()
        })
    }

    /// A device of this configuration.
    pub fn with_config(mut config: SoftConfig) -> Result<Self> {
        config.capacity = config.capacity / GRANULARITY * GRANULARITY;
        if config.capacity == 0 {
            return Err(Error::Invalid(format!(
                "capacity is below {GRANULARITY} bytes"
            )));
        }
        let mut uuid = *b"inferx-softdev\0\0";
        uuid[14..].copy_from_slice(&config.index.to_be_bytes());
        let faults = FaultPlan::new(config.faults.clone());
        let (memory, engine_free_at) = Default::default();
        let inner = Inner {
            config,
            uuid,
            faults,
            memory,
            engine_free_at,
        };
        Ok(Self {
            inner: Arc::new(inner),
            processes: Mutex::default(),
        })
    }

    /// Total memory in bytes.
    pub fn capacity(&self) -> u64 {
        self.inner.config.capacity
    }

    /// Bytes in use, each piece of memory counted once.
    pub fn used(&self) -> u64 {
        self.inner.lock().used()
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<i32, process::Process>> {
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A length rounded up to the granularity; refuses 0 and what cannot be rounded.
fn aligned_size(len: u64) -> Result<u64> {
    let size = round_up(len, GRANULARITY).filter(|size| *size > 0);
    size.ok_or_else(|| Error::Invalid(format!("length {len}")))
}

fn aligned(name: &str, value: u64) -> Result<()> {
    if value == 0 || !value.is_multiple_of(GRANULARITY) {
        return Err(Error::Invalid(format!(
            "{name} {value:#x} is no multiple of {GRANULARITY}"
        )));
    }
    Ok(())
}

impl Device for SoftDevice {
    fn info(&self) -> DeviceInfo {
        let wrong = self.inner.faults.has(Fault::WrongDevice);
        let name = if wrong { "WrongDevice" } else { "SoftDevice" };
        DeviceInfo {
            name: name.into(),
            uuid: self.inner.uuid,
            memory_total: self.capacity(),
            granularity: GRANULARITY,
            driver: concat!("soft-", env!("CARGO_PKG_VERSION")).into(),
            cuda: "0.0".into(),
            compute_capability: "0.0".into(),
        }
    }

    fn mem_free(&self) -> Result<u64> {
        Ok(self.capacity().saturating_sub(self.used()))
    }

    fn reserve(&self, len: u64, hint: Option<Va>) -> Result<Va> {
        let mut memory = self.inner.lock();
        aligned("length", len)?;
        let fits = |at: u64| at >= VA_BASE && at.checked_add(len).is_some_and(|end| end <= VA_END);
        let start = match hint {
            Some(Va(at))
                if at.is_multiple_of(GRANULARITY)
                    && fits(at)
                    && !memory.touches_reservation(at, len) =>
            {
                at
            }
            _ => memory.find_free(len).ok_or_else(|| {
                Error::Invalid(format!("no address range of {len} bytes is free"))
            })?,
        };
        memory.reservations.insert(start, len);
        Ok(Va(start))
    }

    fn unreserve(&self, va: Va, len: u64) -> Result<()> {
        let mut memory = self.inner.lock();
        if memory.reservations.get(&va.0) != Some(&len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} is not a reservation",
                va.0
            )));
        }
        if memory.touches_mapping(va.0, len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} still has mappings",
                va.0
            )));
        }
        memory.reservations.remove(&va.0);
        Ok(())
    }

    fn create(&self, len: u64, exportable: bool) -> Result<Phys> {
        let len = aligned_size(len)?;
        let mut memory = self.inner.lock();
        if self.inner.faults.create_fails() {
            return Err(Error::OutOfMemory {
                asked: len,
                free: 0,
            });
        }
        self.inner.admit(&memory, len)?;
        let block = Arc::new(Block::new(len, exportable)?);
        Ok(memory.hold(block))
    }

    fn release(&self, phys: Phys) -> Result<()> {
        let mut memory = self.inner.lock();
        memory.block(&phys)?;
        memory.handles.remove(&phys.handle);
        Ok(())
    }

    fn map(&self, va: Va, phys: &Phys, access: Access) -> Result<()> {
        aligned("address", va.0)?;
        let mut memory = self.inner.lock();
        let block = memory.block(phys)?.clone();
        if !memory.reserved(va.0, block.len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{} is not reserved",
                va.0, block.len
            )));
        }
        if memory.touches_mapping(va.0, block.len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{} is mapped already",
                va.0, block.len
            )));
        }
        memory.mappings.insert(va.0, Mapping { block, access });
        Ok(())
    }

    fn unmap(&self, va: Va, len: u64) -> Result<()> {
        let end = va.checked_add(len).map(|end| end.0);
        let end = end.ok_or_else(|| Error::Invalid(format!("length {len}")))?;
        let mut memory = self.inner.lock();
        let mut at = va.0;
        while at < end {
            let Some(mapping) = memory.mappings.get(&at) else {
                return Err(Error::Invalid(format!(
                    "{at:#x} is not the start of a mapping"
                )));
            };
            at += mapping.block.len;
        }
        if at != end {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} ends inside a mapping",
                va.0
            )));
        }
        let gone: Vec<u64> = memory
            .mappings
            .range(va.0..end)
            .map(|(at, _)| *at)
            .collect();
        for at in gone {
            memory.mappings.remove(&at);
        }
        Ok(())
    }

    fn export(&self, phys: &Phys) -> Result<OwnedFd> {
        let memory = self.inner.lock();
        let block = memory.block(phys)?;
        if !block.exportable {
            return Err(Error::Invalid(
                "this memory was not created as exportable".into(),
            ));
        }
        block
            .memfd
            .try_clone()
            .map_err(|error| Error::io("dup of device memory", error))
    }

    fn import(&self, fd: BorrowedFd<'_>, len: u64) -> Result<Phys> {
        let stat = fstat(fd).map_err(|error| Error::io("fstat of imported memory", error))?;
        aligned("imported length", len)?;
        if u64::try_from(stat.st_size) != Ok(len) {
            return Err(Error::Invalid(format!(
                "imported memory has {} bytes",
                stat.st_size
            )));
        }
        let identity = memory::identity(fd)?;
        let mut memory = self.inner.lock();
        if let Some(block) = memory.known(identity) {
            return Ok(memory.hold(block));
        }
        self.inner.admit(&memory, len)?;
        let memfd = fd
            .try_clone_to_owned()
            .map_err(|error| Error::io("dup of imported memory", error))?;
        Ok(memory.hold(Arc::new(Block::of(memfd, len, true)?)))
    }

    fn pin(&self, buffer: &mut HostBuffer) -> Result<()> {
        buffer.set_pin(Arc::new(()));
        Ok(())
    }

    fn open_queue(&self, depth: usize) -> Result<Box<dyn CopyQueue>> {
        Ok(Box::new(queue::SoftQueue::start(
            Arc::clone(&self.inner),
            depth,
        )?))
    }
}
