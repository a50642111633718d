//! One device of the driver: its memory, addresses, streams, events and locked host pages.
//! It must never pass on an address that is not inside a reservation made here.

use super::abi::{
    ACCESS_READ, ACCESS_READ_WRITE, ALLOCATION_PINNED, ATTRIBUTE_MAJOR, ATTRIBUTE_MINOR,
    AccessDesc, AllocationProp, EVENT_DISABLE_TIMING, HANDLE_POSIX_FD, LOCATION_DEVICE, Location,
    REGISTER_PORTABLE, STREAM_NON_BLOCKING,
};
use super::calls::Library;
use crate::buffer::HostBuffer;
use crate::device::{Access, Va};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A raw pointer of the driver as a number, since pointers may not cross threads but these may.
pub(super) type Raw = usize;

/// A device with its primary context.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) library: Library,
    device: i32,
    context: Raw,
    /// Own address ranges: start to length.
    reserved: Mutex<BTreeMap<u64, u64>>,
}

impl Driver {
    pub(super) fn open(path: &Path, index: u32) -> Result<Self> {
        let library = Library::load(path)?;
        let (mut count, mut device, mut context) = (0, 0, null_mut());
        let calls = &library.calls;
        // SAFETY: the pointer is valid for the call.
        library.check("cuDeviceGetCount", unsafe {
            (calls.device_count)(&raw mut count)
        })?;
        let index = i32::try_from(index).ok().filter(|index| *index < count);
        let index = index.ok_or_else(|| Error::Invalid(format!("there are {count} GPUs")))?;
        // SAFETY: the pointer is valid for the call.
        library.check("cuDeviceGet", unsafe {
            (calls.device_get)(&raw mut device, index)
        })?;
        // SAFETY: the pointer is valid for the call; released when this value is dropped.
        let result = unsafe { (calls.context_retain)(&raw mut context, device) };
        library.check("cuDevicePrimaryCtxRetain", result)?;
        Ok(Self {
            library,
            device,
            context: context as Raw,
            reserved: Mutex::default(),
        })
    }

    /// Makes the context current on this thread; cheap when it is already.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as this value lives.
        let result = unsafe { (self.library.calls.context_set)(self.context as *mut c_void) };
        self.library.check("cuCtxSetCurrent", result)
    }

    /// Runs a call with the context current and names it in the error.
    fn call(&self, name: &str, call: impl FnOnce(&Library) -> i32) -> Result<()> {
        self.enter()?;
        self.library.check(name, call(&self.library))
    }

    fn ranges(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses addresses outside of the own reservations: to the driver they could be anything,
    /// host memory included.
    pub(super) fn check_range(&self, va: Va, len: u64) -> Result<()> {
        let ranges = self.ranges();
        let found = ranges.range(..=va.0).next_back();
        let inside = found.is_some_and(|(start, size)| {
            va.0.checked_add(len).is_some_and(|end| end <= start + size)
        });
        if inside {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{:#x}+{len} is not reserved here",
            va.0
        )))
    }

    pub(super) fn name(&self) -> Result<String> {
        let mut text = [0u8; 128];
        let (room, at) = (text.len() as i32, text.as_mut_ptr().cast::<c_char>());
        // SAFETY: the driver writes at most `room` bytes, the last of them NUL.
        self.call("cuDeviceGetName", |lib| unsafe {
            (lib.calls.device_name)(at, room, self.device)
        })?;
        let end = text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    pub(super) fn uuid(&self) -> Result<[u8; 16]> {
        let mut uuid = [0; 16];
        // SAFETY: the pointer is valid for the call.
        self.call("cuDeviceGetUuid", |lib| unsafe {
            (lib.calls.device_uuid)(&raw mut uuid, self.device)
        })?;
        Ok(uuid)
    }

    pub(super) fn compute_capability(&self) -> Result<(i32, i32)> {
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the pointer is valid for the call.
            self.call("cuDeviceGetAttribute", |lib| unsafe {
                (lib.calls.device_attribute)(&raw mut value, which, self.device)
            })?;
            Ok::<i32, Error>(value)
        };
        Ok((attribute(ATTRIBUTE_MAJOR)?, attribute(ATTRIBUTE_MINOR)?))
    }

    pub(super) fn memory_total(&self) -> Result<u64> {
        let mut bytes = 0usize;
        // SAFETY: the pointer is valid for the call.
        self.call("cuDeviceTotalMem", |lib| unsafe {
            (lib.calls.device_memory)(&raw mut bytes, self.device)
        })?;
        Ok(bytes as u64)
    }

    pub(super) fn memory_free(&self) -> Result<u64> {
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: both pointers are valid for the call.
        self.call("cuMemGetInfo", |lib| unsafe {
            (lib.calls.memory_info)(&raw mut free, &raw mut total)
        })?;
        Ok(free as u64)
    }

    fn location(&self) -> Location {
        Location {
            kind: LOCATION_DEVICE,
            id: self.device,
        }
    }

    fn prop(&self, exportable: bool) -> AllocationProp {
        AllocationProp {
            kind: ALLOCATION_PINNED,
            handle_types: if exportable { HANDLE_POSIX_FD } else { 0 },
            location: self.location(),
            win32_metadata: null_mut(),
            flags: [0; 8],
        }
    }

    pub(super) fn granularity(&self) -> Result<u64> {
        let (mut bytes, prop) = (0usize, self.prop(true));
        // SAFETY: both pointers are valid for the call; 0 asks for the minimum.
        self.call("cuMemGetAllocationGranularity", |lib| unsafe {
            (lib.calls.granularity)(&raw mut bytes, &raw const prop, 0)
        })?;
        Ok(bytes as u64)
    }

    pub(super) fn reserve(&self, len: u64, hint: u64) -> Result<Va> {
        let mut va = 0;
        // SAFETY: the pointer is valid for the call; a hint is only a wish.
        self.call("cuMemAddressReserve", |lib| unsafe {
            (lib.calls.address_reserve)(&raw mut va, len as usize, 0, hint, 0)
        })?;
        self.ranges().insert(va, len);
        Ok(Va(va))
    }

    pub(super) fn unreserve(&self, va: Va, len: u64) -> Result<()> {
        if self.ranges().get(&va.0) != Some(&len) {
            return Err(Error::Invalid(format!(
                "{:#x}+{len} is not a reservation",
                va.0
            )));
        }
        // SAFETY: a reservation of this device, exactly as it was made.
        self.call("cuMemAddressFree", |lib| unsafe {
            (lib.calls.address_free)(va.0, len as usize)
        })?;
        self.ranges().remove(&va.0);
        Ok(())
    }

    pub(super) fn create(&self, len: u64, exportable: bool) -> Result<u64> {
        let (mut handle, prop) = (0, self.prop(exportable));
        // SAFETY: both pointers are valid for the call; flags must be 0.
        self.call("cuMemCreate", |lib| unsafe {
            (lib.calls.create)(&raw mut handle, len as usize, &raw const prop, 0)
        })?;
        Ok(handle)
    }

    pub(super) fn release(&self, handle: u64) -> Result<()> {
        // SAFETY: device memory only; the driver refuses handles it does not know.
        self.call("cuMemRelease", |lib| unsafe { (lib.calls.release)(handle) })
    }

    pub(super) fn map(&self, va: Va, len: u64, handle: u64, access: Access) -> Result<()> {
        self.check_range(va, len)?;
        // SAFETY: inside an own reservation; offset and flags must be 0.
        self.call("cuMemMap", |lib| unsafe {
            (lib.calls.map)(va.0, len as usize, 0, handle, 0)
        })?;
        let flags = match access {
            Access::Read => ACCESS_READ,
            Access::ReadWrite => ACCESS_READ_WRITE,
        };
        let desc = AccessDesc {
            location: self.location(),
            flags,
        };
        // SAFETY: the mapping just made; one descriptor, valid for the call.
        let allowed = self.call("cuMemSetAccess", |lib| unsafe {
            (lib.calls.set_access)(va.0, len as usize, &raw const desc, 1)
        });
        // Without access the mapping is of no use, and the caller does not know of it.
        if let Err(error) = allowed {
            return self.unmap(va, len).and(Err(error));
        }
        Ok(())
    }

    pub(super) fn unmap(&self, va: Va, len: u64) -> Result<()> {
        self.check_range(va, len)?;
        // SAFETY: inside an own reservation.
        self.call("cuMemUnmap", |lib| unsafe {
            (lib.calls.unmap)(va.0, len as usize)
        })
    }

    pub(super) fn export(&self, handle: u64) -> Result<OwnedFd> {
        let mut fd = -1i32;
        // SAFETY: for this handle type the driver writes an int; the pointer is valid for one.
        self.call("cuMemExportToShareableHandle", |lib| unsafe {
            (lib.calls.export)((&raw mut fd).cast(), handle, HANDLE_POSIX_FD, 0)
        })?;
        if fd < 0 {
            return Err(Error::Invalid(format!(
                "the driver exported descriptor {fd}"
            )));
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn import(&self, fd: BorrowedFd<'_>) -> Result<u64> {
        let (mut handle, fd) = (0, fd.as_raw_fd() as usize as *mut c_void);
        // SAFETY: for this handle type the descriptor itself is passed in place of a pointer.
        self.call("cuMemImportFromShareableHandle", |lib| unsafe {
            (lib.calls.import)(&raw mut handle, fd, HANDLE_POSIX_FD)
        })?;
        Ok(handle)
    }

    /// Locks a buffer's pages until the buffer is dropped.
    pub(super) fn pin(self: &Arc<Self>, buffer: &mut HostBuffer) -> Result<()> {
        if buffer.is_pinned() {
            return Ok(());
        }
        let (at, len) = (buffer.bytes_mut().as_mut_ptr(), buffer.len());
        // SAFETY: memory of the buffer, which never moves and drops the pin before the memory.
        self.call("cuMemHostRegister", |lib| unsafe {
            (lib.calls.host_register)(at.cast(), len, REGISTER_PORTABLE)
        })?;
        buffer.set_pin(Arc::new(Pinned {
            driver: Arc::clone(self),
            at: at as Raw,
        }));
        Ok(())
    }

    pub(super) fn stream(&self) -> Result<Raw> {
        let mut stream = null_mut();
        // SAFETY: the pointer is valid for the call.
        self.call("cuStreamCreate", |lib| unsafe {
            (lib.calls.stream_create)(&raw mut stream, STREAM_NON_BLOCKING)
        })?;
        Ok(stream as Raw)
    }

    pub(super) fn event(&self) -> Result<Raw> {
        let mut event = null_mut();
        // SAFETY: the pointer is valid for the call.
        self.call("cuEventCreate", |lib| unsafe {
            (lib.calls.event_create)(&raw mut event, EVENT_DISABLE_TIMING)
        })?;
        Ok(event as Raw)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: retained once when this value was made. A failure leaves nothing to be done.
        unsafe { (self.library.calls.context_release)(self.device) };
    }
}

/// Locked pages of a buffer.
struct Pinned {
    driver: Arc<Driver>,
    at: Raw,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: registered once, at this address; the buffer's memory is still there. After a
        // failure the pages stay locked until the process ends, which harms nobody's memory.
        let unregister = self.driver.call("cuMemHostUnregister", |lib| unsafe {
            (lib.calls.host_unregister)(self.at as *mut c_void)
        });
        let _ = unregister;
    }
}
