//! Leases and tickets: who gets slots, and why not.

use scheduler_core::messages::{Answer, Effect, Fact, Outcome};
use scheduler_core::model::{Config, Policy};
use scheduler_core::pod::State;
use scheduler_core::queue::TicketId;

use crate::story::{World, one_slot};

#[test]
fn a_burst_of_first_calls_starts_one_pod() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let asks: Vec<Answer> = (0..32)
        .map(|at| world.ask_with("f", &format!("r{at}"), 1, 30_000))
        .collect();
    assert!(asks.iter().all(|ask| matches!(ask, Answer::Queued(_))));
    let order = world.start();
    assert_eq!(order.alloc.devices, [0]);
    assert_eq!(
        (order.alloc.vram_mib, order.alloc.context_overhead_mib),
        (14_000, 400)
    );
    world.started(&order.pod);
    assert_eq!(world.grants().len(), 32);
    assert_eq!(world.core.pods()[0].leased, 32);
}

#[test]
fn the_same_request_gets_the_same_ticket_and_lease() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let first = world.ask_with("f", "same", 0, 30_000);
    assert_eq!(world.ask_with("f", "same", 0, 30_000), first);
    let order = world.start();
    world.started(&order.pod);
    let lease = world.grants()[0].1;
    let Answer::Leased(again) = world.ask_with("f", "same", 0, 30_000) else {
        panic!("the lease is given again");
    };
    assert_eq!(again.lease.0, lease);
    assert!(world.give_back(lease));
    assert!(!world.give_back(lease), "a second give-back is recognised");
}

#[test]
fn a_returned_slot_goes_to_the_oldest_ticket() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    let lease = world.running("f");
    world.wait(10);
    let (first, second) = (world.queued("f"), world.queued("f"));
    assert!(world.give_back(lease));
    let grants = world.grants();
    assert_eq!(
        grants.iter().map(|grant| grant.0).collect::<Vec<_>>(),
        [first]
    );
    assert_eq!(grants[0].2, "warm");
    assert!(world.give_back(grants[0].1));
    assert_eq!(world.grants()[0].0, second);
}

#[test]
fn gateways_share_the_only_pod() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    let (first, second) = (world.queued("f"), world.queued("f"));
    let order = world.start();
    world.started(&order.pod);
    let granted: Vec<TicketId> = world.grants().iter().map(|grant| grant.0).collect();
    assert_eq!(granted, [first, second]);
}

#[test]
fn too_large_a_function_is_refused_at_once_with_the_reason() {
    let mut world = World::new(2);
    world.function("f", 1, 90_000, Policy::default());
    let Answer::Refused(refusal) = world.ask("f") else {
        panic!("it can never start")
    };
    assert_eq!(refusal.code, "no_capacity");
    assert!(
        refusal.message.contains("too_little_gpu_memory: 1"),
        "{}",
        refusal.message
    );
}

#[test]
fn what_is_wrong_with_a_node_is_told_to_whoever_waits_for_it() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.queued("f");
    let order = world.start();
    world.observe(Fact::StartResult(Outcome {
        code: "unavailable".into(),
        ..World::outcome(&order.pod, Some("Docker does not answer"))
    }));
    world.core.effects();
    world.ask_with("f", "r9", 0, 500);
    world.wait(500);
    let effects = world.core.effects();
    let [Effect::Refuse { refusal, .. }] = effects.as_slice() else {
        panic!("not one refusal: {effects:?}")
    };
    assert_eq!(refusal.code, "no_capacity");
    let why = "; on node one: Docker does not answer";
    assert!(refusal.message.ends_with(why), "{}", refusal.message);
}

#[test]
fn a_ticket_ends_at_its_deadline_with_the_reason() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.function("g", 1, 14_000, Policy::default());
    world.running("f");
    let Answer::Queued(ticket) = world.ask_with("g", "x", 0, 500) else {
        panic!("queued")
    };
    assert_eq!(world.core.next_wakeup_ms(), Some(500));
    world.wait(500);
    let effects = world.core.effects();
    let [
        Effect::Refuse {
            ticket: refused,
            refusal,
        },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert_eq!((*refused, refusal.code), (ticket, "no_capacity"));
    assert!(
        refusal.message.contains("too_little_gpu_memory: 1"),
        "{}",
        refusal.message
    );
}

#[test]
fn a_full_queue_refuses() {
    let mut world = World::new(1);
    let policy = Policy {
        queue_len: 2,
        ..Policy::default()
    };
    world.function("f", 1, 14_000, policy);
    world.queued("f");
    world.queued("f");
    let Answer::Refused(refusal) = world.ask("f") else {
        panic!("the queue is full")
    };
    assert_eq!(refusal.code, "queue_full");
}

#[test]
fn adopted_pods_are_free_once_every_gateway_has_spoken() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.core.expect(0, &[1, 2]);
    world.shown("f", "old1", State::Ready);
    let queued = world.queued("f");
    assert_eq!(world.grants(), [], "either gateway may hold it");
    assert!(!world.core.refresh(0, 1), "it has to say what it holds");
    world.core.connect(0, 1);
    world.core.heard(0, 1);
    assert_eq!(world.grants(), []);
    world.core.connect(0, 2);
    assert!(world.core.announce(0, 2, 77, "old1", 1));
    assert!(world.core.holds(2, 77) && !world.core.holds(1, 77));
    world.core.heard(0, 2);
    world.core.check(0);
    let grants = world.grants();
    assert_eq!(
        (grants.len(), grants[0].0),
        (1, queued),
        "slots nobody announced are free"
    );
}

#[test]
fn adopted_pods_wait_for_a_silent_gateway_only_as_long_as_its_leases_live() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.core.expect(0, &[1]);
    world.shown("f", "old1", State::Ready);
    world.queued("f");
    world.wait(2_999);
    assert_eq!(world.grants(), []);
    world.wait(1);
    assert_eq!(world.grants().len(), 1);
}

#[test]
fn a_pod_that_is_claimed_before_it_is_shown_holds_up_no_other() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    world.core.expect(0, &[1]);
    world.shown("f", "old1", State::Ready);
    let (first, second) = (world.queued("f"), world.queued("f"));
    world.core.connect(0, 1);
    assert!(!world.core.announce(0, 1, 77, "old2", 1), "not known yet");
    world.core.heard(0, 1);
    let grants = world.grants();
    assert_eq!((grants.len(), grants[0].0), (1, first));
    world.shown("f", "old2", State::Ready);
    world.core.heard(0, 1);
    assert_eq!(world.grants(), [], "calls of the gateway may run there");
    world.core.connect(0, 1);
    assert!(world.core.announce(0, 1, 77, "old2", 1), "it is known now");
    world.core.heard(0, 1);
    assert_eq!(world.grants(), [], "and leased");
    assert!(world.give_back(77));
    let grants = world.grants();
    assert_eq!((grants.len(), grants[0].0), (1, second));
}

#[test]
fn a_claimed_pod_is_free_when_its_gateway_claims_it_no_longer() {
    let claimed = |world: &mut World| {
        world.function("f", 1, 14_000, one_slot());
        world.core.expect(0, &[1]);
        world.core.connect(0, 1);
        assert!(!world.core.announce(0, 1, 77, "old1", 1));
        world.core.heard(0, 1);
        world.shown("f", "old1", State::Ready);
        world.core.heard(0, 1);
        world.queued("f");
        assert_eq!(world.grants(), []);
    };
    let mut world = World::new(1);
    claimed(&mut world);
    world.core.connect(0, 1);
    world.core.heard(0, 1);
    assert_eq!(world.grants().len(), 1);
    let mut world = World::new(1);
    claimed(&mut world);
    world.core.replace(0, 1);
    assert_eq!(world.grants().len(), 1, "the gateway is gone");
    let mut world = World::new(1);
    claimed(&mut world);
    world.wait(3_000);
    assert_eq!(world.grants().len(), 1, "its leases have run out");
}

#[test]
fn a_lease_that_was_given_back_cannot_be_announced_any_more() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    world.core.expect(0, &[1]);
    world.shown("f", "old1", State::Ready);
    assert!(!world.give_back(77), "not known yet");
    world.core.connect(0, 1);
    let late = world.core.announce(0, 1, 77, "old1", 1);
    assert!(!late, "it was sent before the lease was given back");
    world.core.heard(0, 1);
    assert!(matches!(world.ask("f"), Answer::Leased(_)));
}

#[test]
fn a_lease_that_its_gateway_never_names_ends() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, one_slot());
    let lease = world.running("f");
    let (gateway, lives_ms) = (1, Config::default().lease_ttl_ms);
    let heartbeats = |world: &mut World, lease_ids: &[u64]| {
        for _ in 0..lives_ms / 1_000 {
            assert_eq!(world.grants(), [], "it is in use, for all that is known");
            world.wait(1_000);
            assert!(world.core.refresh(world.now, gateway));
            world.core.names(world.now, gateway, lease_ids);
        }
    };
    heartbeats(&mut world, &[lease]);
    let queued = world.queued("f");
    heartbeats(&mut world, &[]);
    let grants = world.grants();
    assert_eq!((grants.len(), grants[0].0), (1, queued));
    assert!(!world.give_back(lease));
}

#[test]
fn without_gateways_adopted_pods_are_free_at_once() {
    let mut world = World::new(1);
    world.function("f", 1, 14_000, Policy::default());
    world.core.expect(0, &[]);
    world.shown("f", "old1", State::Ready);
    assert!(matches!(world.ask("f"), Answer::Leased(_)));
}
