//! The structures of libcuda, as cuda.h of CUDA 13.0 and 13.4 lay them out; sizes are asserted.
//! It must never call anything: these are plain values.

use std::ffi::c_void;

/// A result of the driver; 0 is success.
pub(super) type CuResult = i32;

/// CU_MEM_ALLOCATION_TYPE_PINNED
pub(super) const ALLOCATION_PINNED: i32 = 1;
/// CU_MEM_LOCATION_TYPE_DEVICE
pub(super) const LOCATION_DEVICE: i32 = 1;
/// CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
pub(super) const HANDLE_POSIX_FD: i32 = 1;
/// CU_MEM_ACCESS_FLAGS_PROT_READ
pub(super) const ACCESS_READ: i32 = 1;
/// CU_MEM_ACCESS_FLAGS_PROT_READWRITE
pub(super) const ACCESS_READ_WRITE: i32 = 3;
/// CU_MEMHOSTREGISTER_PORTABLE
pub(super) const REGISTER_PORTABLE: u32 = 1;
/// CU_STREAM_NON_BLOCKING
pub(super) const STREAM_NON_BLOCKING: u32 = 1;
/// CU_EVENT_DISABLE_TIMING
pub(super) const EVENT_DISABLE_TIMING: u32 = 2;
/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
pub(super) const ATTRIBUTE_MAJOR: i32 = 75;
/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
pub(super) const ATTRIBUTE_MINOR: i32 = 76;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Location {
    pub(super) kind: i32,
    pub(super) id: i32,
}

/// CUmemAllocationProp
#[repr(C)]
pub(super) struct AllocationProp {
    pub(super) kind: i32,
    pub(super) handle_types: i32,
    pub(super) location: Location,
    pub(super) win32_metadata: *mut c_void,
    pub(super) flags: [u8; 8],
}

/// CUmemAccessDesc
#[repr(C)]
pub(super) struct AccessDesc {
    pub(super) location: Location,
    pub(super) flags: i32,
}

/// CUcheckpointLockArgs
#[repr(C)]
#[derive(Default)]
pub(super) struct LockArgs {
    /// 0 waits for ever.
    pub(super) timeout_ms: u32,
    pub(super) reserved0: u32,
    pub(super) reserved1: [u64; 7],
}

/// CUcheckpointCheckpointArgs and CUcheckpointUnlockArgs: nothing but zeros.
#[repr(C)]
#[derive(Default)]
pub(super) struct EmptyArgs {
    pub(super) reserved: [u64; 8],
}

/// CUcheckpointGpuPair
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UuidPair {
    pub(super) old: [u8; 16],
    pub(super) new: [u8; 16],
}

/// CUcheckpointRestoreArgs of CUDA 13.0. Before 13.0 all of it is reserved and must be zero.
#[repr(C)]
pub(super) struct RestoreArgs {
    pub(super) pairs: *mut UuidPair,
    pub(super) pair_count: u32,
    pub(super) reserved: [u8; 52 - size_of::<*mut c_void>()],
    pub(super) reserved1: u64,
}

/// CUcheckpointRestoreArgs of CUDA 13.4: the same head, then where custom storage is returned.
#[repr(C)]
pub(super) struct RestoreArgsStorage {
    pub(super) pairs: *mut UuidPair,
    pub(super) pair_count: u32,
    pub(super) pad: u32,
    /// Null: the driver keeps the bytes itself, as before.
    pub(super) storage_out: *mut *mut c_void,
    pub(super) reserved: [u64; 5],
}

/// Which of the two restore layouts the driver reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreLayout {
    /// Before CUDA 13.0: no GPU pairs.
    Reserved,
    /// CUDA 13.0 to 13.3: GPU pairs.
    Pairs,
    /// From CUDA 13.4: GPU pairs and custom storage.
    Storage,
}

const _: () = {
    assert!(size_of::<AllocationProp>() == 32);
    assert!(size_of::<AccessDesc>() == 12);
    assert!(size_of::<LockArgs>() == 64);
    assert!(size_of::<EmptyArgs>() == 64);
    assert!(size_of::<UuidPair>() == 32);
    assert!(size_of::<RestoreArgs>() == 64);
    assert!(size_of::<RestoreArgsStorage>() == 64);
    assert!(std::mem::offset_of!(RestoreArgs, pair_count) == 8);
    assert!(std::mem::offset_of!(RestoreArgs, reserved1) == 56);
    assert!(std::mem::offset_of!(RestoreArgsStorage, pair_count) == 8);
    assert!(std::mem::offset_of!(RestoreArgsStorage, storage_out) == 16);
};
