//! What a tenant may have of the plane: calls in a second, calls at a time, tokens in a minute.
//! Must never let one tenant's refusals cost another anything, nor lose count of a call.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::reply::Reject;

/// How much of a second's calls may come at once.
const BURST_SECONDS: f64 = 0.5;

/// The limits of one tenant; None is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TenantLimits {
    /// Calls in a second.
    pub request_rate: Option<f64>,
    /// Calls at a time, waiting ones included.
    pub concurrency: Option<u32>,
    /// Tokens in a minute, as the answers' `usage` says.
    pub tokens_per_minute: Option<u64>,
    /// How many gateways share these limits; 0 is 1.
    pub gateways: u32,
    /// This gateway's place among them, from 0.
    pub rank: u32,
}

impl TenantLimits {
    fn is_none(&self) -> bool {
        self.request_rate.is_none()
            && self.concurrency.is_none()
            && self.tokens_per_minute.is_none()
    }

    /// This gateway's part of what can be divided.
    fn part(&self, whole: f64) -> f64 {
        whole / f64::from(self.gateways.max(1))
    }

    /// This gateway's part of the calls at a time; the first ranks take what is left over. It is
    /// never 0: of more gateways than calls, each lets one in.
    fn places(&self, whole: u32) -> u32 {
        let gateways = self.gateways.max(1);
        let place = whole / gateways + u32::from(self.rank < whole % gateways);
        if whole == 0 { 0 } else { place.max(1) }
    }

    /// A limit as a refusal names it.
    fn named(&self, limit: &str) -> String {
        match self.gateways {
            0 | 1 => limit.to_owned(),
            gateways => format!("{limit}, shared by {gateways} gateways"),
        }
    }
}

/// A token bucket that may go below nothing, for costs that are known only afterwards.
#[derive(Debug)]
struct Bucket {
    level: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Bucket {
    /// What was left, or owed, in the bucket before stays so.
    fn new(per_second: f64, most: f64, before: Option<&Mutex<Self>>) -> Self {
        let level = before.map_or(most, |bucket| {
            let mut bucket = lock(bucket);
            bucket.refill();
            bucket.level.min(most)
        });
        Self {
            level,
            most,
            per_second,
            at: Instant::now(),
        }
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let earned = (now - self.at).as_secs_f64() * self.per_second;
        self.level = (self.level + earned).min(self.most);
        self.at = now;
    }

    /// Takes `cost` when at least `needed` is there; otherwise says when it will be.
    fn take(&mut self, needed: f64, cost: f64) -> Result<(), Duration> {
        self.refill();
        if self.level >= needed {
            self.level -= cost;
            return Ok(());
        }
        let seconds = (needed - self.level) / self.per_second;
        Err(Duration::from_secs_f64(seconds.clamp(0.001, 3600.0)))
    }
}

#[derive(Debug)]
struct Gate {
    limits: TenantLimits,
    rate: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
    active: Arc<AtomicU32>,
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// `before` is what held until now: its calls and what it counted go on.
    fn new(limits: TenantLimits, before: Option<&Self>) -> Self {
        let rate = limits.request_rate.map(|rate| {
            let rate = limits.part(rate).max(0.0001);
            let most = (rate * BURST_SECONDS).max(1.0);
            let before = before.and_then(|gate| gate.rate.as_ref());
            Mutex::new(Bucket::new(rate, most, before))
        });
        let tokens = limits.tokens_per_minute.map(|count| {
            let count = limits.part(count as f64).max(1.0);
            let before = before.and_then(|gate| gate.tokens.as_ref());
            Mutex::new(Bucket::new(count / 60.0, count, before))
        });
        let active = before.map(|gate| gate.active.clone()).unwrap_or_default();
        Self {
            limits,
            rate,
            tokens,
            active,
        }
    }
}

/// One call of a tenant that has limits; ends with the call.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
}

impl Permit {
    /// The call took so many tokens.
    pub(crate) fn spend(&self, tokens: u64) {
        if let Some(bucket) = &self.gate.tokens {
            let mut bucket = lock(bucket);
            bucket.refill();
            bucket.level -= tokens as f64;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The limits of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    any: AtomicBool,
    tenants: RwLock<HashMap<Box<str>, Arc<Gate>>>,
}

impl Limits {
    /// Sets what a tenant may have; its calls that are under way stay counted.
    pub(crate) fn set(&self, tenant: &str, limits: TenantLimits) {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        let known = tenants.get(tenant);
        if known.is_some_and(|gate| gate.limits == limits) {
            return;
        }
        if limits.is_none() {
            tenants.remove(tenant);
        } else {
            let gate = Arc::new(Gate::new(limits, known.map(Arc::as_ref)));
            tenants.insert(tenant.into(), gate);
        }
        self.any.store(!tenants.is_empty(), Ordering::Release);
    }

    /// Lets in a call of the function `tenant/namespace/name`, or names the limit it runs into:
    /// (1) calls at a time, (2) tokens in the minute, (3) calls in the second.
    pub(crate) fn admit(&self, key: &str) -> Result<Option<Permit>, Reject> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(None);
        }
        let tenant = key.split('/').next().unwrap_or_default();
        let gate = {
            let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            match tenants.get(tenant) {
                Some(gate) => gate.clone(),
                None => return Ok(None),
            }
        };
        // (1)
        let active = gate.active.fetch_add(1, Ordering::AcqRel) + 1;
        let permit = Permit { gate };
        let gate = &permit.gate;
        if let Some(most) = gate.limits.concurrency
            && active > gate.limits.places(most)
        {
            let limit = gate.limits.named(&format!("max_concurrency ({most})"));
            return Err(refused(tenant, &limit, Duration::from_secs(1)));
        }
        // (2)
        if let Some(bucket) = &gate.tokens
            && let Err(wait) = lock(bucket).take(1.0, 0.0)
        {
            let count = gate.limits.tokens_per_minute.unwrap_or_default();
            let limit = format!("max_tokens_per_minute ({count})");
            let limit = gate.limits.named(&limit);
            return Err(refused(tenant, &limit, wait));
        }
        // (3)
        if let Some(bucket) = &gate.rate
            && let Err(wait) = lock(bucket).take(1.0, 1.0)
        {
            let rate = gate.limits.request_rate.unwrap_or_default();
            let limit = gate.limits.named(&format!("max_request_rate ({rate}/s)"));
            return Err(refused(tenant, &limit, wait));
        }
        Ok(Some(permit))
    }
}

fn refused(tenant: &str, limit: &str, wait: Duration) -> Reject {
    let message = format!("tenant {tenant} is at its limit {limit}");
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    Reject::new(429, "tenant_limit", message).retry_after(wait_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(tenant: &str, limit: TenantLimits) -> Limits {
        let limits = Limits::default();
        limits.set(tenant, limit);
        limits
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_to_within_its_burst() {
        let rate = TenantLimits {
            request_rate: Some(20.0),
            ..TenantLimits::default()
        };
        let limits = limits("t", rate);
        let mut passed = 0;
        for _ in 0..60_000 {
            passed += u32::from(limits.admit("t/n/f").is_ok());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!((1200..=1260).contains(&passed), "{passed} calls in 60 s");
        while limits.admit("t/n/f").is_ok() {}
        let error = limits.admit("t/n/f").expect_err("at the limit");
        assert_eq!((error.status, &*error.code), (429, "tenant_limit"));
        assert!(error.message.contains("max_request_rate (20/s)"));
        assert!(error.retry_after_ms.is_some_and(|ms| ms <= 50));
        assert!(limits.admit("t-large/n/f").is_ok_and(|it| it.is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn gateways_share_a_rate_and_a_change_gives_nothing_away() {
        let rate = |gateways| TenantLimits {
            request_rate: Some(20.0),
            gateways,
            ..TenantLimits::default()
        };
        let limits = limits("t", rate(1));
        let mut passed = 0;
        for step in 0..60_000_u32 {
            // Gateways come and go every second.
            limits.set("t", rate(1 + step / 1000 % 2));
            passed += u32::from(limits.admit("t/n/f").is_ok());
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!((870..=945).contains(&passed), "{passed} calls in 60 s");
        while limits.admit("t/n/f").is_ok() {}
        let error = limits.admit("t/n/f").expect_err("at the limit");
        let named = "max_request_rate (20/s), shared by 2 gateways";
        assert!(error.message.contains(named), "{}", error.message);
    }

    #[test]
    fn places_of_all_gateways_are_the_limit() {
        for whole in 0..20 {
            for gateways in 1..6 {
                let places = (0..gateways).map(|rank| {
                    TenantLimits {
                        gateways,
                        rank,
                        ..TenantLimits::default()
                    }
                    .places(whole)
                });
                let all: u32 = places.sum();
                let expected = if whole == 0 { 0 } else { whole.max(gateways) };
                assert_eq!(all, expected, "{whole} between {gateways}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_at_a_time_and_tokens_are_counted() {
        let limit = TenantLimits {
            concurrency: Some(2),
            tokens_per_minute: Some(600),
            ..TenantLimits::default()
        };
        let limits = limits("t", limit);
        let first = limits.admit("t/n/f").expect("free").expect("limited");
        let second = limits.admit("t/n/g").expect("free");
        let error = limits.admit("t/n/f").expect_err("two at a time");
        assert!(error.message.contains("max_concurrency (2)"));
        drop(second);
        let third = limits.admit("t/n/f").expect("free again");
        limits.set(
            "t",
            TenantLimits {
                concurrency: Some(1),
                ..limit
            },
        );
        assert!(
            limits.admit("t/n/f").is_err(),
            "calls under way stay counted"
        );
        drop((first, third));
        let call = limits.admit("t/n/f").expect("free").expect("limited");
        call.spend(1200);
        drop(call);
        let error = limits.admit("t/n/f").expect_err("too many tokens");
        assert!(error.message.contains("max_tokens_per_minute (600)"));
        assert!(
            error
                .retry_after_ms
                .is_some_and(|ms| (50_000..70_000).contains(&ms))
        );
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(limits.admit("t/n/f").is_ok());
    }
}
