//! Where both sides meet at the core: calls of gateways here, facts and heartbeats from Python.
//!
//! The core is behind a lock that nobody holds across a call to Python or a wait. Two locks are
//! always taken in the same order: the hall, then the core. Python's verbs take the core alone and
//! then `settle`, so an answer to a ticket lies in the core until its caller stands in the hall.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::panicking;
use std::time::Duration;

use scheduler_core::messages::{Answer, Ask, Effect};
use scheduler_core::model::FuncKey;
use scheduler_core::queue::TicketId;
use scheduler_core::shared::{Shared, Timed};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::bell::Bell;
use crate::clock::now_ms;
use crate::hall::{Hall, News};
use crate::held::{Held, Waiting};
use crate::refused::Refused;
use crate::tally::Tally;

/// Python hears of changes at most so often; orders are told at once.
const CHANGES_EVERY: Duration = Duration::from_millis(50);
const FAR: Duration = Duration::from_secs(3600);

/// Where a pod listens.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Place {
    pub ip: u32,
    pub port: u16,
}

/// What the desk says to who asks for slots.
pub(crate) enum Told {
    Granted(Arc<Held>),
    Wait(Waiting),
    Refused(Refused),
}

/// The core with everything that surrounds it in this process.
pub struct Desk {
    core: Arc<Shared>,
    hall: Mutex<Hall>,
    places: Mutex<HashMap<String, Place>>,
    /// What was granted and refused.
    pub tally: Tally,
    bell: Bell,
    epoch: AtomicI64,
    leads_until_ms: AtomicU64,
    ready: AtomicBool,
    /// When the core wants to be woken, `u64::MAX` = never; written under the core's lock.
    alarm_ms: AtomicU64,
    alarm: Notify,
}

impl Desk {
    /// A desk that serves nobody before it leads and is ready.
    pub fn new(core: Arc<Shared>, tally: Tally) -> io::Result<Arc<Desk>> {
        Ok(Arc::new(Desk {
            core,
            hall: Mutex::default(),
            places: Mutex::default(),
            tally,
            bell: Bell::new()?,
            epoch: AtomicI64::new(0),
            leads_until_ms: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            alarm_ms: AtomicU64::new(u64::MAX),
            alarm: Notify::new(),
        }))
    }

    // ---- the lead ----

    /// This process leads under `epoch` until then, unless it says so again; 0 = no longer.
    pub fn lead(&self, epoch: i64, until_ms: u64) {
        self.epoch.store(epoch, Ordering::Release);
        self.leads_until_ms.store(until_ms, Ordering::Release);
    }

    /// The core is filled.
    pub fn open(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// An error unless this process leads, by its own clock.
    pub(crate) fn require_lead(&self) -> Result<(), Refused> {
        if now_ms() < self.leads_until_ms.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Refused::for_now("this scheduler does not lead"))
    }

    pub(crate) fn require_open(&self) -> Result<(), Refused> {
        self.require_lead()?;
        if self.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Refused::for_now("this scheduler is taking over"))
    }

    // ---- verbs of gateways ----

    /// Slots, a place in the queue, or a refusal. `wait_ms` 0 = as long as the policy says.
    pub(crate) fn lease(self: &Arc<Desk>, mut ask: Ask, wait_ms: u64) -> Told {
        self.with(|hall, core, now_ms| {
            if hall.closed {
                return Told::Refused(Refused::stopping());
            }
            if wait_ms > 0 {
                ask.deadline_ms = now_ms + wait_ms;
            }
            match core.lease(now_ms, ask) {
                Answer::Leased(grant) => Told::Granted(hall.hold(self, grant)),
                Answer::Refused(refusal) => Told::Refused(refusal.into()),
                Answer::Queued(ticket) => {
                    let (number, answer) = hall.wait(ticket);
                    let desk = self.clone();
                    Told::Wait(Waiting {
                        desk,
                        ticket,
                        number,
                        answer,
                    })
                }
            }
        })
    }

    /// Ends a lease; false when it is not live.
    pub(crate) fn give_back(self: &Arc<Desk>, lease_id: u64, ok: bool) -> bool {
        self.with(|_, core, now_ms| core.give_back(now_ms, lease_id, ok))
    }

    /// The answer of that number is out or lost. A lease that was in no other goes back with it.
    pub(crate) fn answered(self: &Arc<Desk>, lease_id: u64, number: u64, delivered: bool) {
        if delivered {
            lock(&self.hall).arrived(lease_id, number);
            return;
        }
        self.with(|hall, core, now_ms| {
            if hall.arrived(lease_id, number) {
                core.give_back(now_ms, lease_id, true);
            }
        });
    }

    /// Somebody stopped waiting; the last one takes the ticket along.
    pub(crate) fn leave(self: &Arc<Desk>, ticket: TicketId, number: u64) {
        self.with(|hall, core, now_ms| {
            if hall.leave(ticket, number) {
                core.cancel(now_ms, ticket);
            }
        });
    }

    /// Whether the core has heard of the function in this revision.
    pub(crate) fn knows(&self, key: &FuncKey, revision: i64) -> bool {
        let _watch = Watch(self);
        lock(&self.core).knows(key, revision)
    }

    /// Has Python read a function from the store.
    pub(crate) fn learn(self: &Arc<Desk>, key: FuncKey) -> oneshot::Receiver<Result<(), Refused>> {
        self.with(|hall, _, _| hall.learn(key))
    }

    /// Tells Python of a refusal, for its log.
    pub(crate) fn tell_refused(self: &Arc<Desk>, request_id: String, key: FuncKey, why: Refused) {
        self.with(|hall, _, _| hall.refused(request_id, key, why));
    }

    /// Tells Python of something that an operator should know.
    pub(crate) fn warn(self: &Arc<Desk>, text: String) {
        self.with(|hall, _, _| hall.warn(text));
    }

    /// One step at the core, and what follows from it for those who wait, Python and the clock.
    fn with<T>(self: &Arc<Desk>, step: impl FnOnce(&mut Hall, &mut Timed, u64) -> T) -> T {
        let _watch = Watch(self);
        let (result, granted, ring) = {
            let mut hall = lock(&self.hall);
            let mut core = lock(&self.core);
            let now_ms = core.at(now_ms());
            let result = step(&mut hall, &mut core, now_ms);
            let granted = hall.sort(core.effects(), self);
            let changed = !std::mem::replace(&mut hall.changed, true);
            let alarm_ms = core.next_wakeup_ms().unwrap_or(u64::MAX);
            if alarm_ms < self.alarm_ms.load(Ordering::Relaxed) {
                self.alarm_ms.store(alarm_ms, Ordering::Relaxed);
                self.alarm.notify_one();
            } else if changed {
                self.alarm.notify_one();
            }
            (result, granted, hall.is_waited_for())
        };
        // Without a taker a lease goes back, for which the locks have to be free.
        drop(granted);
        if ring {
            self.bell.ring();
        }
        result
    }

    // ---- time ----

    /// Wakes the core when it wants to be, and Python when something has changed. Ends when the
    /// desk is closed.
    pub(crate) async fn keep_time(self: Arc<Desk>) {
        let mut told = Instant::now();
        loop {
            let (wakeup, changed) = {
                let _watch = Watch(&self);
                let hall = lock(&self.hall);
                let core = lock(&self.core);
                if hall.closed {
                    return;
                }
                let wakeup = core.next_wakeup_ms();
                let alarm_ms = wakeup.unwrap_or(u64::MAX);
                self.alarm_ms.store(alarm_ms, Ordering::Relaxed);
                (wakeup, hall.changed)
            };
            let wait = wakeup.map_or(FAR, |at| Duration::from_millis(at.saturating_sub(now_ms())));
            let mut due = Instant::now() + wait.min(FAR);
            if changed {
                due = due.min(told + CHANGES_EVERY);
            }
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.alarm.notified() => {}
            }
            if wakeup.is_some_and(|at| at <= now_ms()) {
                self.with(|_, core, now_ms| core.tick(now_ms));
            }
            if changed && told.elapsed() >= CHANGES_EVERY {
                told = Instant::now();
                self.bell.ring();
            }
        }
    }

    // ---- what Python asks for and tells ----

    /// Becomes readable when there are orders, news or changes; also when a thread has panicked.
    pub fn bell_fd(&self) -> i32 {
        self.bell.fd()
    }

    /// True when a panic left the core in an unknown state: this process must not lead with it.
    pub fn is_broken(&self) -> bool {
        self.core.is_poisoned() || self.hall.is_poisoned()
    }

    /// After verbs of Python's own: those who waited are answered, the orders come back.
    pub fn settle(self: &Arc<Desk>) -> Vec<Effect> {
        self.with(|_, _, _| ());
        lock(&self.hall).take_orders()
    }

    /// Everything that came up since the bell was last answered.
    pub fn answer_bell(self: &Arc<Desk>) -> (Vec<Effect>, Vec<News>) {
        self.bell.answer();
        let mut hall = lock(&self.hall);
        (hall.take_orders(), hall.take_news())
    }

    /// The outcome of a `Learn`.
    pub fn learned(&self, number: u64, outcome: Result<(), Refused>) {
        lock(&self.hall).learned(number, &outcome);
    }

    /// Where a pod listens from now on; None = it is gone.
    pub fn place(&self, pod_id: &str, place: Option<Place>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        match place {
            Some(place) => places.insert(pod_id.to_owned(), place),
            None => places.remove(pod_id),
        };
    }

    pub(crate) fn place_of(&self, pod_id: &str) -> Option<Place> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.get(pod_id).copied()
    }

    /// Whoever waits is sent away, and whoever comes.
    pub fn close(&self) {
        lock(&self.hall).close();
        self.alarm.notify_one();
    }
}

/// Rings when the step that it watches panics, so that Python learns of the broken core.
struct Watch<'a>(&'a Desk);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if panicking() {
            self.0.bell.ring();
        }
    }
}

/// A panic while the lock was held goes on in whoever comes next: such a core serves nobody.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("an earlier step at the core panicked")
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use scheduler_core::Core;
    use scheduler_core::model::Config;

    use super::*;

    fn desk() -> Arc<Desk> {
        let core = Core::new(Config::default());
        let core = Arc::new(Shared::new(Timed::new(core)));
        Desk::new(core, Tally::new(vec![1.0])).expect("a descriptor is free")
    }

    fn function() -> FuncKey {
        FuncKey {
            tenant: "t".to_owned(),
            namespace: "n".to_owned(),
            name: "f".to_owned(),
        }
    }

    #[test]
    fn a_panic_at_the_core_is_told_and_final() {
        let desk = desk();
        let core = desk.core.clone();
        let verb = std::thread::spawn(move || {
            let _held = core.lock();
            panic!("an invariant is broken (this test says so)");
        });
        assert!(verb.join().is_err());
        assert!(desk.is_broken());
        assert!(!desk.bell.is_rung());
        let next = catch_unwind(AssertUnwindSafe(|| desk.give_back(1, true)));
        assert!(next.is_err(), "nobody goes on with such a core");
        assert!(desk.bell.is_rung());
    }

    #[test]
    fn only_the_leader_serves_and_only_in_time() {
        let desk = desk();
        let why = |desk: &Desk| desk.require_open().map_err(|why| why.message);
        assert_eq!(why(&desk), Err("this scheduler does not lead".to_owned()));
        desk.lead(3, now_ms() + 60_000);
        assert_eq!(why(&desk), Err("this scheduler is taking over".to_owned()));
        desk.open();
        assert_eq!(why(&desk), Ok(()));
        desk.lead(3, now_ms());
        assert_eq!(why(&desk), Err("this scheduler does not lead".to_owned()));
    }

    #[test]
    fn callers_share_a_reading_that_has_not_begun() {
        let desk = desk();
        let key = function();
        let numbers = |desk: &Arc<Desk>| -> Vec<u64> {
            let news = desk.answer_bell().1.into_iter();
            news.filter_map(|one| match one {
                News::Learn(learn) => Some(learn.number),
                _ => None,
            })
            .collect()
        };
        let mut early = [desk.learn(key.clone()), desk.learn(key.clone())];
        let begun = numbers(&desk);
        let mut late = desk.learn(key);
        let again = numbers(&desk);
        assert_eq!((begun.len(), again.len()), (1, 1));
        desk.learned(begun[0], Ok(()));
        assert!(early.iter_mut().all(|one| one.try_recv().is_ok()));
        assert!(late.try_recv().is_err(), "its own reading is still out");
        desk.learned(again[0], Ok(()));
        assert!(late.try_recv().is_ok());
    }

    #[test]
    fn who_asks_for_a_function_at_the_end_is_sent_away() {
        let desk = desk();
        let key = function();
        let mut early = desk.learn(key.clone());
        desk.close();
        let mut late = desk.learn(key);
        assert!(matches!(early.try_recv(), Ok(Err(_))));
        assert!(matches!(late.try_recv(), Ok(Err(_))));
    }

    #[test]
    fn orders_and_refusals_are_told_once() {
        let desk = desk();
        let key = function();
        for _ in 0..2_000 {
            let why = Refused::new("queue_full", "too many wait");
            desk.tell_refused(String::new(), key.clone(), why);
        }
        assert!(desk.bell.is_rung());
        let (orders, news) = desk.answer_bell();
        assert!(orders.is_empty() && !desk.bell.is_rung());
        let untold = news.iter().filter_map(|one| match one {
            News::Untold(count) => Some(*count),
            _ => None,
        });
        assert_eq!(untold.sum::<u64>() + news.len() as u64 - 1, 2_000);
        assert!(desk.answer_bell().1.is_empty());
    }
}
