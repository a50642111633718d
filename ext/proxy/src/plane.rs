//! The data plane as a whole: its runtime, its tables, and the commands that change them.
//! Must never block the caller of a command, except to start and to drain.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::auth::{AuthTable, Verdict};
use crate::budget::RetryBudget;
use crate::config::Config;
use crate::definition::Definition;
use crate::dispatch::{Fence, Function, Hub, Worker};
use crate::door::Door;
use crate::events::{Event, Outbox};
use crate::limits::{Limits, TenantLimits};
use crate::listener::{self, Port};
use crate::reply::Reject;
use crate::route::Routes;
use crate::stats::{BOUNDS_MS, PlaneStats, Start};
use crate::tally::Tally;
use crate::tls::Tls;
use crate::upstream::{Address, Upstream};

/// What every request needs.
pub(crate) struct Core {
    pub config: Config,
    pub hub: Arc<Hub>,
    pub routes: Routes,
    pub auth: AuthTable,
    pub limits: Limits,
    pub control: Arc<Upstream>,
    pub tls: Option<Tls>,
    pub budget: RetryBudget,
    pub stats: PlaneStats,
    synced: AtomicBool,
    not_ready: Mutex<Option<String>>,
}

impl Core {
    /// Refuses to call a function unknown before all functions are known.
    pub(crate) fn check_synced(&self) -> Result<(), Reject> {
        if self.synced.load(Ordering::Acquire) {
            return Ok(());
        }
        let message = "the gateway is starting and does not know its functions yet";
        Err(Reject::new(503, "unavailable", message).retry_after(1000))
    }

    /// Refuses until the gateway can serve.
    pub(crate) fn check_ready(&self) -> Result<(), Reject> {
        let reason = self
            .not_ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*reason {
            Some(reason) => Err(Reject::new(503, "unavailable", reason.clone()).retry_after(1000)),
            None => Ok(()),
        }
    }
}

/// A worker as Python hands it in.
#[derive(Debug, Clone)]
pub struct NewWorker {
    /// Handle under which events speak of it; never used twice.
    pub lease_id: u64,
    /// Pod behind it, for the response header.
    pub pod_id: String,
    /// Where its server listens.
    pub address: SocketAddr,
    /// Calls that it serves at a time.
    pub slots: u32,
    /// How it came to be ready.
    pub start: Start,
    /// Revision of the function that it serves.
    pub revision: i64,
}

/// One data plane: a listener, its threads, and the tables that Python feeds.
pub struct Plane {
    core: Arc<Core>,
    leases: Mutex<HashMap<u64, Weak<Function>>>,
    running: Mutex<Option<Running>>,
    /// Whether the gateway can serve, for who waits for it.
    ready: watch::Sender<bool>,
}

struct Running {
    runtime: Runtime,
    stop: watch::Sender<bool>,
    /// None when calls come through a door only.
    address: Option<SocketAddr>,
}

impl Plane {
    /// A plane that does not listen yet.
    ///
    /// # Errors
    /// When the certificate cannot be used, or the system has no descriptor left.
    pub fn new(config: Config) -> io::Result<Self> {
        let hub = Arc::new(Hub {
            outbox: Outbox::new()?,
            parked: AtomicUsize::new(0),
            parked_max: config.parked_max,
            fence: Fence::new(),
        });
        let address = Address::Unix(config.control_socket.clone());
        let control = Arc::new(Upstream::new(address, config.pool_idle_timeout));
        let tls = config.tls.clone();
        let tls = tls.map(|(cert, key)| Tls::load(cert, key)).transpose()?;
        let auth = AuthTable::new(config.auth_key);
        let core = Arc::new(Core {
            auth,
            tls,
            limits: Limits::default(),
            config,
            hub,
            routes: Routes::default(),
            control,
            budget: RetryBudget::new(),
            stats: PlaneStats::default(),
            synced: AtomicBool::new(false),
            not_ready: Mutex::new(Some("the gateway is starting".to_owned())),
        });
        Ok(Self {
            core,
            leases: Mutex::default(),
            running: Mutex::new(None),
            ready: watch::Sender::new(false),
        })
    }

    /// Binds the port and starts to serve; returns the address bound.
    ///
    /// # Errors
    /// When the port is taken (the message names it) or the plane runs already.
    pub fn start(&self) -> io::Result<SocketAddr> {
        let mut running = self.running();
        if running.is_some() {
            return Err(io::Error::other("the data plane runs already"));
        }
        let port = Port::open(&self.core.config)?;
        let address = port.address()?;
        let runtime = self.build_runtime()?;
        let (stop, stopped) = watch::channel(false);
        let ready = self.ready.subscribe();
        runtime.spawn(listener::accept(self.core.clone(), port, ready, stopped));
        *running = Some(Running {
            runtime,
            stop,
            address: Some(address),
        });
        Ok(address)
    }

    /// A door for calls that another server reads; the plane runs without a listener of its own
    /// when it was not started before.
    ///
    /// # Errors
    /// When the system has no threads or descriptors left.
    pub fn open_door(&self) -> io::Result<Door> {
        let mut running = self.running();
        if running.is_none() {
            *running = Some(Running {
                runtime: self.build_runtime()?,
                stop: watch::channel(false).0,
                address: None,
            });
        }
        let parts = running
            .as_ref()
            .map(|it| (it.runtime.handle().clone(), it.stop.subscribe()));
        let (runtime, stop) =
            parts.ok_or_else(|| io::Error::other("the data plane does not run"))?;
        Door::new(self.core.clone(), runtime, stop)
    }

    fn build_runtime(&self) -> io::Result<Runtime> {
        let mut builder = Builder::new_multi_thread();
        if self.core.config.threads > 0 {
            builder.worker_threads(self.core.config.threads);
        }
        builder.enable_all().thread_name("inferx-proxy").build()
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<u64, Weak<Function>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address that the plane listens on, when it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.running().as_ref().and_then(|running| running.address)
    }

    /// Stops accepting and waits until the open requests have ended or the time is over.
    /// Returns true when all had ended.
    pub fn drain(&self, timeout: Duration) -> bool {
        let Some(running) = self.running().take() else {
            return true;
        };
        // Fails when nothing listens for it any more, which is what it asks for.
        let _ = running.stop.send(true);
        let core = self.core.clone();
        let drained = running.runtime.block_on(async move {
            let deadline = Instant::now() + timeout;
            while core.stats.connections_open.load(Ordering::Relaxed) > 0 {
                if Instant::now() >= deadline {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            true
        });
        running.runtime.shutdown_timeout(Duration::from_millis(200));
        drained
    }

    /// Reads the certificate and its key again; on an error those in use stay.
    ///
    /// # Errors
    /// When a file cannot be used; the message names it.
    pub fn reload_certificate(&self) -> io::Result<()> {
        self.core.tls.as_ref().map_or(Ok(()), Tls::reload)
    }

    /// Creates a function or replaces its definition; `key` is `tenant/namespace/function`.
    pub fn upsert_function(&self, key: &str, definition: Definition) {
        self.core.routes.upsert(key, definition, &self.core.hub);
    }

    /// Removes a function; its parked calls are answered. False when it was not there.
    pub fn remove_function(&self, key: &str) -> bool {
        self.core.routes.remove(key)
    }

    /// Adds a worker; false when the function is gone or has another revision by now.
    pub fn add_worker(&self, key: &str, worker: NewWorker) -> bool {
        let Some(function) = self.core.routes.find(key) else {
            return false;
        };
        let idle_max = self.core.config.pool_idle_timeout;
        let (lease_id, revision, slots) = (worker.lease_id, worker.revision, worker.slots);
        let upstream = Arc::new(Upstream::new(Address::Tcp(worker.address), idle_max));
        let worker = Arc::new(Worker {
            lease_id,
            pod_id: worker.pod_id.into(),
            start: worker.start,
            added: Instant::now(),
            failures: AtomicU32::new(0),
            upstream,
        });
        self.leases().insert(lease_id, Arc::downgrade(&function));
        if !function.add_worker(worker, slots, revision) {
            self.leases().remove(&lease_id);
            return false;
        }
        let function = Arc::downgrade(&function);
        self.spawn(watch_idle(function, lease_id));
        true
    }

    /// The scheduler was heard: leases may be used for so long from now, and no longer.
    pub fn hold_leases(&self, time: Duration) {
        if self.core.hub.fence.hold(time) {
            let functions: Vec<_> = self.leases().values().filter_map(Weak::upgrade).collect();
            functions.iter().for_each(Function::resume);
        }
    }

    /// Takes a worker out of rotation; false when it was not in.
    pub fn remove_worker(&self, lease_id: u64) -> bool {
        let function = self.leases().remove(&lease_id);
        function
            .and_then(|it| it.upgrade())
            .is_some_and(|it| it.remove_worker(lease_id))
    }

    /// Gives up slots of a worker that others wait for; see [`Function::trim_worker`].
    pub fn trim_worker(&self, lease_id: u64, most: u32) -> bool {
        let function = self.leases().get(&lease_id).and_then(Weak::upgrade);
        function.is_some_and(|it| it.trim_worker(lease_id, most))
    }

    /// Says that a lease of that revision could not be had; `late` when it was only waited for.
    pub fn fail_lease(&self, key: &str, revision: i64, error: &Reject, late: bool) {
        let Some(function) = self.core.routes.find(key) else {
            return;
        };
        if let Some(pause) = function.fail_lease(revision, error, late) {
            self.spawn(async move {
                tokio::time::sleep(pause).await;
                function.ask_again();
            });
        }
    }

    /// Says why calls of a function wait; see [`Function::explain_wait`].
    pub fn explain_wait(&self, key: &str, message: String) {
        if let Some(function) = self.core.routes.find(key) {
            function.explain_wait(message);
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(running) = self.running().as_ref() {
            running.runtime.spawn(task);
        }
    }

    /// What is to be thought of the credential of that digest, for `lifetime`.
    pub fn set_verdict(
        &self,
        digest: [u8; 32],
        verdict: Result<Verdict, Reject>,
        lifetime: Duration,
    ) {
        let answer = verdict.map(Arc::new);
        self.core.auth.settle(digest, answer, lifetime);
    }

    /// Drops the verdicts under a tag; returns how many there were.
    pub fn revoke_verdicts(&self, tag: &str) -> usize {
        self.core.auth.revoke(tag)
    }

    /// Sets what a tenant may have of this plane.
    pub fn set_tenant_limits(&self, tenant: &str, limits: TenantLimits) {
        self.core.limits.set(tenant, limits);
    }

    /// Says that all functions are known: from now on an unknown one does not exist.
    pub fn set_synced(&self) {
        self.core.synced.store(true, Ordering::Release);
    }

    /// Sets what `/readyz` answers: None for ready, otherwise the reason.
    pub fn set_not_ready(&self, reason: Option<String>) {
        let ready = reason.is_none();
        *self
            .core
            .not_ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = reason;
        // Last: who is accepted from now on must find it so.
        self.ready.send_replace(ready);
    }

    /// A descriptor that is readable while events wait.
    pub fn event_fd(&self) -> RawFd {
        self.core.hub.outbox.wake_fd()
    }

    /// All events since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        let events = self.core.hub.outbox.take_events();
        let mut leases = self.leases();
        for event in &events {
            if let Event::WorkerIdle { lease_id, .. } | Event::WorkerFailed { lease_id, .. } = event
            {
                leases.remove(lease_id);
            }
        }
        events
    }

    /// From now on access records are counted in `tally`; a second one is ignored.
    pub fn count_records_in(&self, tally: Tally) {
        self.core.hub.outbox.count_in(tally);
    }

    /// How many access records were dropped because nobody took them.
    pub fn records_lost(&self) -> u64 {
        self.core.hub.outbox.records_lost()
    }

    /// All access records since the last call, as consecutive msgpack arrays.
    pub fn take_records(&self) -> Vec<u8> {
        self.core.hub.outbox.take_records()
    }

    /// Counters and gauges as a JSON object.
    pub fn stats(&self) -> Vec<u8> {
        let core = &self.core;
        let functions: BTreeMap<String, _> = core
            .routes
            .all()
            .iter()
            .map(|it| (it.key.to_string(), it.stats.snapshot(it.gauges())))
            .collect();
        let stats = &core.stats;
        let (verdicts, refusals) = core.auth.sizes();
        let json = serde_json::json!({
            "connections": stats.connections.load(Ordering::Relaxed),
            "connections_open": stats.connections_open.load(Ordering::Relaxed),
            "requests": stats.requests.load(Ordering::Relaxed),
            "retries": stats.retries.load(Ordering::Relaxed),
            "parked": core.hub.parked.load(Ordering::Relaxed),
            "verdicts": verdicts,
            "verdicts_refused": refusals,
            "records_lost": core.hub.outbox.records_lost(),
            "bounds_ms": BOUNDS_MS,
            "functions": functions,
        });
        json.to_string().into_bytes()
    }
}

/// Offers a worker back once it has rested for the scale-in timeout of its function.
async fn watch_idle(function: Weak<Function>, lease_id: u64) {
    loop {
        let next = match function.upgrade() {
            Some(function) => function.offer_idle(lease_id),
            None => return,
        };
        match next {
            Some(at) => tokio::time::sleep_until(at).await,
            None => return,
        }
    }
}
