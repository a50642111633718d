//! Checkpoints of processes by the driver.
//! It must never send GPU pairs to a driver whose restore arguments have no place for them.

use super::abi::{EmptyArgs, LockArgs, RestoreArgs, RestoreArgsStorage, RestoreLayout, UuidPair};
use super::calls::{CheckpointCalls, PAIRS_VERSION};
use super::driver::Driver;
use crate::device::{GpuPair, ProcState};
use crate::error::code;
use crate::{Error, Result};
use std::ptr::null_mut;
use std::time::Duration;

impl Driver {
    /// The layout of restore arguments that this driver reads.
    pub(super) fn restore_layout(&self) -> RestoreLayout {
        match (
            self.library.has_storage,
            self.library.version >= PAIRS_VERSION,
        ) {
            (true, _) => RestoreLayout::Storage,
            (false, true) => RestoreLayout::Pairs,
            (false, false) => RestoreLayout::Reserved,
        }
    }

    fn checkpoint_calls(&self, call: &str) -> Result<&CheckpointCalls> {
        self.library.checkpoint.as_ref().ok_or_else(|| {
            let version = self.library.version;
            let why = format!("the driver is of CUDA version {version}, 12080 is needed");
            Error::device(call, code::NOT_SUPPORTED, why)
        })
    }

    pub(super) fn proc_state(&self, pid: i32) -> Result<ProcState> {
        let call = "cuCheckpointProcessGetState";
        let mut state = -1;
        // SAFETY: the pointer is valid for the call.
        let result = unsafe { (self.checkpoint_calls(call)?.state)(pid, &raw mut state) };
        self.library.check(call, result)?;
        match state {
            0 => Ok(ProcState::Running),
            1 => Ok(ProcState::Locked),
            2 => Ok(ProcState::Checkpointed),
            3 => Ok(ProcState::Failed),
            // Newer drivers have states of transition: 4 checkpointing, 5 restoring.
            other => Err(Error::device(
                call,
                code::NOT_READY,
                format!("state {other}"),
            )),
        }
    }

    pub(super) fn proc_lock(&self, pid: i32, timeout: Duration) -> Result<()> {
        let call = "cuCheckpointProcessLock";
        // Rounded up, because 0 would wait for ever.
        let timeout_ms = timeout
            .as_micros()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(u32::MAX);
        let mut args = LockArgs {
            timeout_ms,
            ..LockArgs::default()
        };
        // SAFETY: the arguments are valid for the call and all reserved words are zero.
        let result = unsafe { (self.checkpoint_calls(call)?.lock)(pid, &raw mut args) };
        self.library.check(call, result)
    }

    pub(super) fn proc_checkpoint(&self, pid: i32) -> Result<()> {
        let call = "cuCheckpointProcessCheckpoint";
        let mut args = EmptyArgs::default();
        // SAFETY: the arguments are valid for the call and zero: no custom storage is asked for.
        let result = unsafe { (self.checkpoint_calls(call)?.checkpoint)(pid, &raw mut args) };
        self.library.check(call, result)
    }

    pub(super) fn proc_restore(&self, pid: i32, gpus: &[GpuPair]) -> Result<()> {
        let call = "cuCheckpointProcessRestore";
        let restore = self.checkpoint_calls(call)?.restore;
        let layout = self.restore_layout();
        if layout == RestoreLayout::Reserved && !gpus.is_empty() {
            let why = "GPU pairs need a driver of CUDA 13.0 or newer";
            return Err(Error::device(call, code::NOT_SUPPORTED, why));
        }
        let pair = |pair: &GpuPair| UuidPair {
            old: pair.old,
            new: pair.new,
        };
        let mut pairs: Vec<UuidPair> = gpus.iter().map(pair).collect();
        let pair_count = pairs.len() as u32;
        let pairs = if pairs.is_empty() {
            null_mut()
        } else {
            pairs.as_mut_ptr()
        };
        let result = if layout == RestoreLayout::Storage {
            let (storage_out, reserved) = (null_mut(), [0; 5]);
            let mut args = RestoreArgsStorage {
                pairs,
                pair_count,
                pad: 0,
                storage_out,
                reserved,
            };
            // SAFETY: the arguments and the pairs are valid for the call, unused words are zero.
            unsafe { restore(pid, (&raw mut args).cast()) }
        } else {
            let reserved = [0; 52 - size_of::<*mut UuidPair>()];
            let mut args = RestoreArgs {
                pairs,
                pair_count,
                reserved,
                reserved1: 0,
            };
            // SAFETY: as above.
            unsafe { restore(pid, (&raw mut args).cast()) }
        };
        self.library.check(call, result)
    }

    pub(super) fn proc_unlock(&self, pid: i32) -> Result<()> {
        let call = "cuCheckpointProcessUnlock";
        let mut args = EmptyArgs::default();
        // SAFETY: the arguments are valid for the call and zero.
        let result = unsafe { (self.checkpoint_calls(call)?.unlock)(pid, &raw mut args) };
        self.library.check(call, result)
    }
}
