//! CudaDevice: an NVIDIA GPU behind the device trait.
//! It must never be needed: without a driver, opening one is an error and nothing else fails.

use super::abi::RestoreLayout;
use super::driver::Driver;
use super::flight::CudaQueue;
use crate::buffer::HostBuffer;
use crate::device::{
    Access, CopyQueue, Device, DeviceInfo, GpuPair, Phys, ProcState, ProcessControl, Va, round_up,
};
use crate::error::code;
use crate::{Error, Result};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Where the kernel driver says its version.
const KERNEL_DRIVER: &str = "/proc/driver/nvidia/version";

/// One GPU, with its primary context kept as long as this value or one of its queues lives.
#[derive(Debug)]
pub struct CudaDevice {
    driver: Arc<Driver>,
    info: DeviceInfo,
}

impl CudaDevice {
    /// Opens the GPU of this index. `Device` with code 100 when the machine has no driver.
    pub fn open(index: u32) -> Result<Self> {
        Self::open_with(Path::new("libcuda.so.1"), index)
    }

    /// Opens a GPU with the driver library at `path`.
    pub fn open_with(path: &Path, index: u32) -> Result<Self> {
        let driver = Arc::new(Driver::open(path, index)?);
        let version = driver.library.version;
        let (major, minor) = driver.compute_capability()?;
        let info = DeviceInfo {
            name: driver.name()?,
            uuid: driver.uuid()?,
            memory_total: driver.memory_total()?,
            granularity: driver.granularity()?,
            driver: kernel_driver_version().unwrap_or_default(),
            cuda: format!("{}.{}", version / 1000, version % 1000 / 10),
            compute_capability: format!("{major}.{minor}"),
        };
        Ok(Self { driver, info })
    }

    /// The layout of restore arguments that this driver reads.
    pub fn restore_layout(&self) -> RestoreLayout {
        self.driver.restore_layout()
    }

    /// Lengths that the driver would refuse with a bare code.
    fn aligned(&self, what: &str, value: u64) -> Result<()> {
        let unit = self.info.granularity;
        if value == 0 || !value.is_multiple_of(unit) {
            return Err(Error::Invalid(format!(
                "{what} {value:#x} is no multiple of {unit}"
            )));
        }
        Ok(())
    }
}

/// The kernel driver's version; `None` without one.
fn kernel_driver_version() -> Option<String> {
    let text = std::fs::read_to_string(KERNEL_DRIVER).ok()?;
    parse_driver_version(&text)
}

/// The first word of the first line that is a dotted number, as in
/// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.09  Release Build".
fn parse_driver_version(text: &str) -> Option<String> {
    let number =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    text.lines()
        .next()?
        .split_whitespace()
        .find(number)
        .map(str::to_owned)
}

impl Device for CudaDevice {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn mem_free(&self) -> Result<u64> {
        self.driver.memory_free()
    }

    fn reserve(&self, len: u64, hint: Option<Va>) -> Result<Va> {
        self.aligned("length", len)?;
        self.driver.reserve(len, hint.map_or(0, |va| va.0))
    }

    fn unreserve(&self, va: Va, len: u64) -> Result<()> {
        self.driver.unreserve(va, len)
    }

    fn create(&self, len: u64, exportable: bool) -> Result<Phys> {
        let size = round_up(len, self.info.granularity).filter(|size| *size > 0);
        let len = size.ok_or_else(|| Error::Invalid(format!("length {len}")))?;
        match self.driver.create(len, exportable) {
            Ok(handle) => Ok(Phys { handle, len }),
            Err(Error::Device {
                code: code::OUT_OF_MEMORY,
                ..
            }) => Err(Error::OutOfMemory {
                asked: len,
                free: self.driver.memory_free()?,
            }),
            Err(error) => Err(error),
        }
    }

    fn release(&self, phys: Phys) -> Result<()> {
        self.driver.release(phys.handle)
    }

    fn map(&self, va: Va, phys: &Phys, access: Access) -> Result<()> {
        self.aligned("address", va.0)?;
        self.driver.map(va, phys.len, phys.handle, access)
    }

    fn unmap(&self, va: Va, len: u64) -> Result<()> {
        self.driver.unmap(va, len)
    }

    fn export(&self, phys: &Phys) -> Result<OwnedFd> {
        self.driver.export(phys.handle)
    }

    fn import(&self, fd: BorrowedFd<'_>, len: u64) -> Result<Phys> {
        self.aligned("imported length", len)?;
        Ok(Phys {
            handle: self.driver.import(fd)?,
            len,
        })
    }

    fn pin(&self, buffer: &mut HostBuffer) -> Result<()> {
        self.driver.pin(buffer)
    }

    fn open_queue(&self, depth: usize) -> Result<Box<dyn CopyQueue>> {
        Ok(Box::new(CudaQueue::open(Arc::clone(&self.driver), depth)?))
    }
}

impl ProcessControl for CudaDevice {
    fn proc_state(&self, pid: i32) -> Result<ProcState> {
        self.driver.proc_state(pid)
    }

    fn proc_lock(&self, pid: i32, timeout: Duration) -> Result<()> {
        self.driver.proc_lock(pid, timeout)
    }

    fn proc_checkpoint(&self, pid: i32) -> Result<()> {
        self.driver.proc_checkpoint(pid)
    }

    fn proc_restore(&self, pid: i32, gpus: &[GpuPair]) -> Result<()> {
        self.driver.proc_restore(pid, gpus)
    }

    fn proc_unlock(&self, pid: i32) -> Result<()> {
        self.driver.proc_unlock(pid)
    }
}

#[cfg(test)]
mod tests {
    use super::parse_driver_version;

    #[test]
    fn the_driver_version_is_found_in_both_forms() {
        let closed =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.126.09  Wed Jan\nGCC 12.2";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.58  Release";
        assert_eq!(parse_driver_version(closed).as_deref(), Some("580.126.09"));
        assert_eq!(parse_driver_version(open).as_deref(), Some("595.58"));
        assert_eq!(parse_driver_version("something else"), None);
    }
}
