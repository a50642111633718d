//! What each verb of the core promises, told as small stories.

mod crowd;
mod fairness;
mod leases;
mod pods;
mod pods_max;
mod shares;
mod snapshots;
mod story;
mod warmth;
mod ways;
