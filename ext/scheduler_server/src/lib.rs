//! The scheduler's port: answers leases and returns by itself, hands every other call to grpc.aio.
//!
//! It must never take Python's interpreter lock: a warm lease goes from the socket to the core and
//! back while Python does something else.

mod bell;
mod calls;
mod clock;
mod desk;
mod front;
mod hall;
mod held;
#[allow(missing_docs)]
pub mod messages;
#[cfg(feature = "python")]
pub mod py;
mod refused;
mod relay;
mod tally;
mod tls;

pub use desk::{Desk, Place};
pub use front::{Front, Options};
pub use hall::{Learn, News};
pub use refused::{Refused, Statuses};
pub use tally::{Tally, Waits};
pub use tls::Files;
