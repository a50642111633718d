//! Moving snapshots between disk and device: reads, checks and copies overlap on reusable slots.
//! It must never copy unchecked bytes, and on its path never allocate, pin or map anything.

mod batch;
mod gather;
mod options;
mod plan;
mod pool;
mod pull;
mod range;
mod resident;
mod restore;
mod ring;

pub use options::{Backend, Options, Placement, Report};
pub use pool::HostPool;
pub use pull::{PullReport, check_device, save};
pub use range::{DeviceRange, Loaded, Window, load, load_resident};
pub use resident::Resident;
pub use restore::restore;
pub use ring::{Cancel, Ring};
