//! Moving snapshots between disk and device: reads, checks and copies overlap on reusable slots.
//! It must never copy unchecked bytes, and on its path never allocate, pin or map anything.

mod plan;
mod pull;
mod range;
mod restore;
mod ring;

pub use pull::{PullReport, check_device, save};
pub use range::{DeviceRange, Loaded, Window, load};
pub use restore::{Options, Placement, Report, restore};
pub use ring::{Cancel, Ring};
