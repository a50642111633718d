//! The HTTP data plane: from a client's connection to a worker's and back, without Python.
//! Must never decide about placement or standby; it asks for workers and gives them back.

mod account;
mod auth;
mod budget;
mod call;
mod config;
mod definition;
mod dispatch;
mod events;
mod framing;
mod guard;
mod headers;
mod link;
mod listener;
mod openai;
mod plane;
#[cfg(feature = "python")]
pub mod py;
mod relay;
mod reply;
mod route;
mod service;
mod stats;
mod tunnel;
mod upstream;

pub use auth::{Credential, Verdict};
pub use config::Config;
pub use definition::{Definition, Policy};
pub use events::Event;
pub use plane::{NewWorker, Plane};
pub use reply::Reject;
pub use stats::Start;
