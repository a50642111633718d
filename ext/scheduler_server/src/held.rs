//! A lease on its way to its caller, and a caller on its way to a lease.
//! Neither must ever leave something behind when the caller goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::panicking;

use scheduler_core::messages::Grant;
use scheduler_core::queue::TicketId;
use tokio::sync::oneshot;

use crate::desk::Desk;
use crate::refused::Refused;

/// A granted lease on its way; given back when the last one who was to get it goes without. A
/// caller that asks again under the same request id gets the lease in an answer of its own, and
/// from then on the fate of the earlier one, whose caller does not listen any more, is nothing to
/// the lease: `number` tells the answers apart.
pub(crate) struct Held {
    pub(crate) grant: Grant,
    number: u64,
    desk: Arc<Desk>,
    settled: AtomicBool,
}

impl Held {
    pub(crate) fn new(desk: Arc<Desk>, grant: Grant, number: u64) -> Arc<Held> {
        let settled = AtomicBool::new(false);
        Arc::new(Held {
            grant,
            number,
            desk,
            settled,
        })
    }

    /// A caller has it now, or it was given back.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // While a panic unwinds this thread may hold the locks, and the core is lost anyway.
        if !panicking() {
            let settled = self.settled.load(Ordering::Acquire);
            self.desk.answered(self.grant.lease.0, self.number, settled);
        }
    }
}

pub(crate) type Answer = Result<Arc<Held>, Refused>;

/// A caller's place in the queue; given up when it is dropped.
pub(crate) struct Waiting {
    pub(crate) desk: Arc<Desk>,
    pub(crate) ticket: TicketId,
    pub(crate) number: u64,
    pub(crate) answer: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// Slots, or why there are none.
    pub(crate) async fn answered(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        // Nobody is forgotten while the desk lives: an end without an answer is the end of it.
        answer.unwrap_or_else(|_| Err(Refused::stopping()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !panicking() {
            self.desk.leave(self.ticket, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use scheduler_core::Core;
    use scheduler_core::messages::{Ask, Fact, PodFact};
    use scheduler_core::model::{Config, FuncKey, Policy, Spec};
    use scheduler_core::nodes::{Capacity, Holding};
    use scheduler_core::pod::State;
    use scheduler_core::shared::{Shared, Timed};

    use super::*;
    use crate::desk::Told;
    use crate::tally::Tally;

    const GATEWAY: i64 = 1;

    fn key() -> FuncKey {
        FuncKey {
            tenant: "t".to_owned(),
            namespace: "n".to_owned(),
            name: "f".to_owned(),
        }
    }

    /// A desk with one idle pod.
    fn desk() -> (Arc<Desk>, Arc<Shared>) {
        let mut core = Core::new(Config::default());
        core.expect(0, &[]);
        let node = Fact::Node {
            name: "one".to_owned(),
            boot_id: String::new(),
            ready: true,
            keeps_snapshots: false,
            capacity: Capacity::default(),
        };
        let function = Fact::Function {
            key: key(),
            revision: 1,
            spec: Spec::default(),
            policy: Policy::default(),
        };
        let pod = Fact::Pod(PodFact {
            pod_id: "p".to_owned(),
            node: "one".to_owned(),
            key: key(),
            revision: 1,
            state: State::Ready,
            reason: String::new(),
            held: Holding::default(),
        });
        for fact in [node, function, pod] {
            core.observe(0, fact);
        }
        let core = Arc::new(Shared::new(Timed::new(core)));
        let desk = Desk::new(core.clone(), Tally::new(vec![1.0])).expect("a descriptor is free");
        (desk, core)
    }

    fn granted(desk: &Arc<Desk>, request_id: &str) -> Arc<Held> {
        let ask = Ask {
            key: key(),
            gateway: GATEWAY,
            consumer: String::new(),
            request_id: request_id.to_owned(),
            slots: 1,
            deadline_ms: 0,
        };
        match desk.lease(ask, 1_000) {
            Told::Granted(held) => held,
            _ => panic!("the pod is idle"),
        }
    }

    #[test]
    fn an_answer_that_is_not_delivered_takes_its_lease_along() {
        let (desk, core) = desk();
        let live = |lease| core.lock().expect("no panic").holds(GATEWAY, lease);
        let (lost, got) = (granted(&desk, "lost"), granted(&desk, "got"));
        let leases = (lost.grant.lease.0, got.grant.lease.0);
        got.settle();
        drop((lost, got));
        assert_eq!((live(leases.0), live(leases.1)), (false, true));
    }

    #[test]
    fn a_lease_that_is_asked_for_again_does_not_go_with_the_earlier_answer() {
        let (desk, core) = desk();
        let live = |lease| core.lock().expect("no panic").holds(GATEWAY, lease);
        let first = granted(&desk, "same");
        let again = granted(&desk, "same");
        let lease = first.grant.lease.0;
        assert_eq!(again.grant.lease.0, lease);
        drop(first);
        assert!(live(lease), "its caller has it in the second answer");
        drop(again);
        assert!(!live(lease), "nor was that one delivered");
    }
}
