//! The process half of SoftDevice: the driver's checkpoint states without a driver.
//! It must never be kinder than the driver: illegal orders, full memory and stuck processes fail.

use super::fault::Fault;
use super::memory::Block;
use super::{SoftDevice, aligned_size};
use crate::device::{GpuPair, ProcState, ProcessControl};
use crate::error::code;
use crate::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// A process that uses the device.
#[derive(Debug)]
pub(super) struct Process {
    state: ProcState,
    /// The process's memory while it is not on the device.
    saved: Option<Arc<Block>>,
    /// A restore ran out of memory; the driver never recovers from that.
    stuck: bool,
}

fn refuse(call: &str, code: i32, why: impl Into<String>) -> Error {
    Error::device(call, code, why)
}

impl SoftDevice {
    /// A process starts to use the device with `len` bytes of its own.
    pub fn process_start(&self, pid: i32, len: u64) -> Result<()> {
        let len = aligned_size(len)?;
        let mut processes = self.processes();
        if processes.contains_key(&pid) {
            return Err(Error::Invalid(format!(
                "process {pid} uses the device already"
            )));
        }
        let mut memory = self.inner.lock();
        self.inner.admit(&memory, len)?;
        memory
            .resident
            .insert(pid, Arc::new(Block::new(len, false)?));
        let process = Process {
            state: ProcState::Running,
            saved: None,
            stuck: false,
        };
        processes.insert(pid, process);
        Ok(())
    }

    /// A process ended or was killed; its memory is free again, in whatever state it was.
    pub fn process_end(&self, pid: i32) -> Result<()> {
        let mut processes = self.processes();
        self.inner.lock().resident.remove(&pid);
        match processes.remove(&pid) {
            Some(_) => Ok(()),
            None => Err(Error::Invalid(format!(
                "process {pid} does not use the device"
            ))),
        }
    }

    /// Runs one step of the state machine for a process that is in the state `from`.
    fn step(
        &self,
        call: &str,
        pid: i32,
        from: ProcState,
        step: impl FnOnce(&mut Process) -> Result<()>,
    ) -> Result<()> {
        let mut processes = self.processes();
        let process = processes.get_mut(&pid).ok_or_else(|| {
            refuse(
                call,
                code::INVALID_VALUE,
                format!("process {pid} does not use the device"),
            )
        })?;
        if process.stuck {
            return Err(refuse(
                call,
                code::OPERATING_SYSTEM,
                "stuck after an earlier failure",
            ));
        }
        if process.state != from {
            let why = format!("process {pid} is {:?}, not {from:?}", process.state);
            return Err(refuse(call, code::ILLEGAL_STATE, why));
        }
        step(process)
    }
}

impl ProcessControl for SoftDevice {
    fn proc_state(&self, pid: i32) -> Result<ProcState> {
        self.processes()
            .get(&pid)
            .map(|process| process.state)
            .ok_or_else(|| {
                refuse(
                    "proc_state",
                    code::INVALID_VALUE,
                    format!("process {pid} is unknown"),
                )
            })
    }

    fn proc_lock(&self, pid: i32, timeout: Duration) -> Result<()> {
        self.step("proc_lock", pid, ProcState::Running, |process| {
            if self.inner.faults.has(Fault::LockTimeout) {
                return Err(refuse(
                    "proc_lock",
                    code::NOT_READY,
                    format!("not in {timeout:?}"),
                ));
            }
            process.state = ProcState::Locked;
            Ok(())
        })
    }

    fn proc_checkpoint(&self, pid: i32) -> Result<()> {
        self.step("proc_checkpoint", pid, ProcState::Locked, |process| {
            if self.inner.faults.has(Fault::ProcessFailed) {
                process.state = ProcState::Failed;
                return Err(refuse(
                    "proc_checkpoint",
                    code::OPERATING_SYSTEM,
                    "process failed",
                ));
            }
            process.saved = self.inner.lock().resident.remove(&pid);
            process.state = ProcState::Checkpointed;
            Ok(())
        })
    }

    fn proc_restore(&self, pid: i32, gpus: &[GpuPair]) -> Result<()> {
        let call = "proc_restore";
        self.step(call, pid, ProcState::Checkpointed, |process| {
            if !gpus.is_empty() && gpus.iter().all(|pair| pair.new != self.inner.uuid) {
                return Err(refuse(
                    call,
                    code::INVALID_DEVICE,
                    "no pair names this device",
                ));
            }
            let mut memory = self.inner.lock();
            let len = process.saved.as_ref().map_or(0, |block| block.len);
            let stuck = self.inner.faults.has(Fault::StuckAfterOom);
            if stuck || self.inner.admit(&memory, len).is_err() {
                process.stuck = stuck;
                return Err(refuse(
                    call,
                    code::OUT_OF_MEMORY,
                    format!("{len} bytes do not fit"),
                ));
            }
            if let Some(block) = process.saved.take() {
                memory.resident.insert(pid, block);
            }
            process.state = ProcState::Locked;
            Ok(())
        })
    }

    fn proc_unlock(&self, pid: i32) -> Result<()> {
        self.step("proc_unlock", pid, ProcState::Locked, |process| {
            // A locked process whose memory was never taken away simply runs on.
            process.state = ProcState::Running;
            Ok(())
        })
    }
}
