//! libcuda's entry points: found by name and version, called by type.
//! It must never guess: an entry point that is missing is an error that names it.

use super::abi::{AccessDesc, AllocationProp, CuResult};
use super::abi::{EmptyArgs, LockArgs};
use crate::error::code;
use crate::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::ptr::{null, null_mut};

/// The version whose signatures this module knows for all but the checkpoint calls.
const BASE_VERSION: i32 = 12_000;
/// From here on the checkpoint calls exist; from 13.0 on they take GPU pairs.
pub(super) const CHECKPOINT_VERSION: i32 = 12_080;
pub(super) const PAIRS_VERSION: i32 = 13_000;
pub(super) const STORAGE_VERSION: i32 = 13_040;

type GetProcAddress =
    unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64, *mut i32) -> CuResult;

macro_rules! entry_points {
    ($(#[$doc:meta])* $table:ident { $($name:ident = $symbol:literal ($($arg:ty),*);)* }) => {
        $(#[$doc])*
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> CuResult,)*
        }

        impl $table {
            fn find(find: &impl Fn(&str) -> Result<*mut c_void>) -> Result<Self> {
                Ok(Self {
                    // SAFETY: the driver returned this address for this name at a version whose
                    // signature in cuda.h is the one written here; the library is never unloaded.
                    $($name: unsafe {
                        std::mem::transmute::<
                            *mut c_void,
                            unsafe extern "C" fn($($arg),*) -> CuResult,
                        >(find($symbol)?)
                    },)*
                })
            }
        }
    };
}

entry_points! {
    /// What every driver since CUDA 12.0 has.
    Calls {
        error_string = "cuGetErrorString" (CuResult, *mut *const c_char);
        device_count = "cuDeviceGetCount" (*mut i32);
        device_get = "cuDeviceGet" (*mut i32, i32);
        device_name = "cuDeviceGetName" (*mut c_char, i32, i32);
        device_uuid = "cuDeviceGetUuid" (*mut [u8; 16], i32);
        device_memory = "cuDeviceTotalMem" (*mut usize, i32);
        device_attribute = "cuDeviceGetAttribute" (*mut i32, i32, i32);
        context_retain = "cuDevicePrimaryCtxRetain" (*mut *mut c_void, i32);
        context_release = "cuDevicePrimaryCtxRelease" (i32);
        context_set = "cuCtxSetCurrent" (*mut c_void);
        memory_info = "cuMemGetInfo" (*mut usize, *mut usize);
        granularity = "cuMemGetAllocationGranularity" (*mut usize, *const AllocationProp, i32);
        address_reserve = "cuMemAddressReserve" (*mut u64, usize, usize, u64, u64);
        address_free = "cuMemAddressFree" (u64, usize);
        create = "cuMemCreate" (*mut u64, usize, *const AllocationProp, u64);
        release = "cuMemRelease" (u64);
        map = "cuMemMap" (u64, usize, usize, u64, u64);
        unmap = "cuMemUnmap" (u64, usize);
        set_access = "cuMemSetAccess" (u64, usize, *const AccessDesc, usize);
        export = "cuMemExportToShareableHandle" (*mut c_void, u64, i32, u64);
        import = "cuMemImportFromShareableHandle" (*mut u64, *mut c_void, i32);
        host_register = "cuMemHostRegister" (*mut c_void, usize, u32);
        host_unregister = "cuMemHostUnregister" (*mut c_void);
        stream_create = "cuStreamCreate" (*mut *mut c_void, u32);
        stream_destroy = "cuStreamDestroy" (*mut c_void);
        copy_to_device = "cuMemcpyHtoDAsync" (u64, *const c_void, usize, *mut c_void);
        copy_to_host = "cuMemcpyDtoHAsync" (*mut c_void, u64, usize, *mut c_void);
        fill = "cuMemsetD8Async" (u64, u8, usize, *mut c_void);
        event_create = "cuEventCreate" (*mut *mut c_void, u32);
        event_record = "cuEventRecord" (*mut c_void, *mut c_void);
        event_query = "cuEventQuery" (*mut c_void);
        event_destroy = "cuEventDestroy" (*mut c_void);
    }
}

entry_points! {
    /// What drivers since CUDA 12.8 (570) have.
    CheckpointCalls {
        state = "cuCheckpointProcessGetState" (i32, *mut i32);
        lock = "cuCheckpointProcessLock" (i32, *mut LockArgs);
        checkpoint = "cuCheckpointProcessCheckpoint" (i32, *mut EmptyArgs);
        restore = "cuCheckpointProcessRestore" (i32, *mut c_void);
        unlock = "cuCheckpointProcessUnlock" (i32, *mut EmptyArgs);
    }
}

/// The loaded library.
pub(super) struct Library {
    /// Never unloaded: the driver has threads and exit handlers of its own.
    library: ManuallyDrop<libloading::Library>,
    pub(super) calls: Calls,
    pub(super) checkpoint: Option<CheckpointCalls>,
    /// Whether the driver knows custom storage, which changes the restore arguments.
    pub(super) has_storage: bool,
    /// CUDA version of the driver, 1000 * major + 10 * minor.
    pub(super) version: i32,
}

impl Library {
    /// Loads the library, initialises the driver and finds the entry points.
    pub(super) fn load(path: &Path) -> Result<Self> {
        // SAFETY: loading runs the library's initialisers; this is libcuda or a test's fake of it,
        // which are made to be loaded so. The name comes from the administrator, not from a user.
        let library = unsafe { libloading::Library::new(path) }.map_err(|error| {
            let why = format!("no CUDA driver: {}: {error}", path.display());
            Error::device("dlopen", code::NO_DEVICE, why)
        })?;
        let library = ManuallyDrop::new(library);
        type Init = unsafe extern "C" fn(u32) -> CuResult;
        type Version = unsafe extern "C" fn(*mut i32) -> CuResult;
        let init: Init = symbol(&library, "cuInit")?;
        let get_version: Version = symbol(&library, "cuDriverGetVersion")?;
        let get: GetProcAddress = symbol(&library, "cuGetProcAddress_v2")?;
        // SAFETY: the signature is that of cuda.h; flags must be 0.
        plain("cuInit", unsafe { init(0) })?;
        let mut version = 0;
        // SAFETY: the pointer is valid for the call.
        plain("cuDriverGetVersion", unsafe {
            get_version(&raw mut version)
        })?;
        let base = |name: &str| find(get, name, BASE_VERSION);
        let calls = Calls::find(&base)?;
        let checkpoint = (version >= CHECKPOINT_VERSION)
            .then(|| {
                let wanted = version.min(PAIRS_VERSION);
                CheckpointCalls::find(&|name: &str| find(get, name, wanted))
            })
            .transpose()?;
        let has_storage = version >= STORAGE_VERSION
            && find(get, "cuCheckpointOperationComplete", STORAGE_VERSION).is_ok();
        Ok(Self {
            library,
            calls,
            checkpoint,
            has_storage,
            version,
        })
    }

    /// The error of a call, or nothing.
    pub(super) fn check(&self, call: &str, result: CuResult) -> Result<()> {
        if result == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: the pointer is valid for the call; the driver fills in a static string or fails.
        let known = unsafe { (self.calls.error_string)(result, &raw mut text) } == 0;
        let why = if known && !text.is_null() {
            // SAFETY: not null, and a NUL-terminated string of the driver that is never freed.
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned()
        } else {
            "unknown error".to_owned()
        };
        Err(Error::device(call, result, why))
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}, version {}", *self.library, self.version)
    }
}

/// Before the error texts can be asked for.
fn plain(call: &str, result: CuResult) -> Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(Error::device(call, result, "the driver does not start"))
    }
}

fn symbol<T: Copy>(library: &libloading::Library, name: &str) -> Result<T> {
    // SAFETY: `T` is the function's type in cuda.h, written by the callers above.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|_| {
        let why = format!("the CUDA driver has no {name}; it is older than 12.0");
        Error::Unsupported(why)
    })
}

fn find(get: GetProcAddress, name: &str, version: i32) -> Result<*mut c_void> {
    let missing = |result| {
        Error::device(
            name,
            code::NOT_SUPPORTED,
            format!("the driver has no {name} ({result})"),
        )
    };
    let text = CString::new(name).map_err(|_| Error::Invalid(name.to_owned()))?;
    let (mut address, mut status) = (null_mut(), 0);
    // SAFETY: the string and both pointers are valid for the call; flags 0 is the default.
    let result = unsafe { get(text.as_ptr(), &raw mut address, version, 0, &raw mut status) };
    if result != 0 || address.is_null() {
        Err(missing(result))
    } else {
        Ok(address)
    }
}
