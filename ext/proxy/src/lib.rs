//! The HTTP data plane: from a client's connection to a worker's and back, without Python.
//! Must never decide about placement or standby; it asks for workers and gives them back.

mod account;
mod auth;
mod budget;
mod call;
mod client;
mod config;
mod control;
mod definition;
mod deliver;
mod dispatch;
mod door;
mod events;
mod exchange;
mod framing;
mod headers;
mod http2;
mod limits;
mod listener;
mod openai;
mod plane;
mod progress;
mod pump;
#[cfg(feature = "python")]
pub mod py;
mod reply;
mod route;
mod service;
mod socket;
mod stats;
mod tally;
mod tls;
mod tunnel;
mod upstream;
mod usage;

pub use auth::{Credential, Verdict};
pub use config::Config;
pub use definition::{Definition, Policy};
pub use door::{Door, DoorCall, Part};
pub use events::Event;
pub use limits::TenantLimits;
pub use plane::{NewWorker, Plane};
pub use reply::Reject;
pub use stats::Start;
pub use tally::Tally;
