//! CudaDevice: libcuda, loaded at run time; the one place with unsafe code, wrapped for the rest.
//! It must never let the driver touch host memory that its owner could free or use meanwhile.
//!
//! `abi` has the structures, `calls` the entry points, `driver` one device's memory, `checkpoint`
//! the processes, `flight` copies under way. Everything outside of this module is safe code, and
//! soundness rests on three rules: a buffer belongs to its flight until the device is done with
//! it, pages are unlocked before they are freed, and device addresses lie in own reservations.
#![allow(
    unsafe_code,
    reason = "calls into libcuda; every block says why it is sound"
)]

mod abi;
mod calls;
mod checkpoint;
mod device;
mod driver;
mod flight;

pub use abi::RestoreLayout;
pub use device::CudaDevice;
