//! What each verb of the core promises, told as small stories.

mod leases;
mod pods;
mod story;
mod warmth;
