//! Moving snapshots between disk and device: reads, checks and copies overlap on reusable slots.
//! It must never copy unchecked bytes, and on its path never allocate, pin or map anything.

mod batch;
mod plan;
mod pool;
mod pull;
mod range;
mod resident;
mod restore;
mod ring;

pub use pool::HostPool;
pub use pull::{PullReport, check_device, save};
pub use range::{DeviceRange, Loaded, Window, load, load_resident};
pub use resident::Resident;
pub use restore::{Backend, Options, Placement, Report, restore};
pub use ring::{Cancel, Ring};
