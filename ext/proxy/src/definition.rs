//! What Python says about a function: its revision, how its calls wait, and its names as a model.
//! Must never hold anything that changes with a call.

use std::time::Duration;

/// What a function's policy says about waiting and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Calls that one worker serves at a time.
    pub parallel: u32,
    /// Most calls that wait.
    pub queue_len: usize,
    /// Longest wait.
    pub queue_timeout: Duration,
    /// Share of waiting calls, of all slots, that is accepted before another worker is asked for.
    pub wait_ratio: f64,
    /// Rest after which a worker is given back.
    pub scalein_timeout: Duration,
}

/// What a function is at one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// Revision of the function object.
    pub revision: i64,
    /// How its calls wait and scale.
    pub policy: Policy,
    /// Names under which it is a model, besides its own.
    pub model_names: Vec<String>,
    /// The name that its worker gives the model, when it insists on one.
    pub served_model: Option<String>,
    /// Why calls are refused, when its tenant or namespace is disabled.
    pub disabled: Option<String>,
    /// Whether calls need no credential.
    pub public: bool,
}
