//! Figures of one run: shares of start tiers, waits, and what the GPUs were held for.
//! It must never round: printing does that.

/// What one run of the node scenario cost and gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Calls served.
    pub calls: usize,
    /// Shares of calls by what they waited for, percent: first start ever, file, host pool,
    /// nothing.
    pub cold_pct: f64,
    /// See `cold_pct`.
    pub file_pct: f64,
    /// See `cold_pct`.
    pub host_pct: f64,
    /// See `cold_pct`.
    pub warm_pct: f64,
    /// Time from arrival to execution, seconds.
    pub wait_mean_s: f64,
    /// 95th percentile of the same.
    pub wait_p95_s: f64,
    /// 99th percentile of the same.
    pub wait_p99_s: f64,
    /// Time that workers executed over the time they held GPU memory (starting, executing, idle),
    /// percent.
    pub busy_over_held_pct: f64,
    /// The two parts of the above, worker-seconds.
    pub busy_s: f64,
    /// See `busy_s`.
    pub held_s: f64,
    /// Snapshots read from file ahead of need.
    pub fetches: usize,
    /// Workers resumed ahead of need.
    pub prewarms: usize,
}

/// The value below which `share` of the sorted values lie (nearest rank); 0 when there are none.
#[must_use]
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    if sorted.is_empty() {
        return 0;
    }
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}
