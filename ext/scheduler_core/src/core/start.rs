//! Carrying a plan into the books: the pod is entered, its room taken, the order written.
//! It must never choose where; `plan` and `room` did.

use super::Core;
use super::fault::Fault;
use super::messages::{Alloc, Effect, StartOrder};
use super::model::{FuncId, Op, Pod, PodIx, StartKind};
use super::outcome::new_pod;
use super::room::Room;
use crate::nodes::{Holding, Ledger, NodeId};
use crate::pod::{Event, State};

impl Core {
    pub(super) fn start(
        &mut self,
        now_ms: u64,
        func: FuncId,
        node: NodeId,
        holding: Holding,
        room: Room,
    ) {
        let function = self.functions.get_mut(&func).expect("served");
        function.learned = false;
        let (revision, spec) = (function.revision, function.spec.clone());
        let slots = function.policy.parallel.max(1);
        let id = self.new_pod_id();
        let pod = new_pod(id, func, revision, node, spec, slots, State::Init, now_ms);
        let ix = self.add_pod(pod);
        self.apply(now_ms, ix, Event::Create);
        self.pod_mut(ix).op = Some(Op::Start);
        self.counters.starts_cold += 1;
        let mut order = self.order_start(now_ms, ix, &holding, room);
        order.save = self.permit_save(now_ms, func, ix);
        self.pod_mut(ix).tier = self.tier_on(func, node);
        self.effects.push(Effect::Start(order));
    }

    pub(super) fn resume(&mut self, now_ms: u64, ix: PodIx, holding: Holding, room: Room) {
        self.apply(now_ms, ix, Event::Resume);
        let pod = self.pod_mut(ix);
        (pod.op, pod.ordered) = (Some(Op::Resume), true);
        pod.start = StartKind::Resume;
        self.counters.starts_resume += 1;
        let order = self.order_start(now_ms, ix, &holding, room);
        self.effects.push(Effect::Resume(order));
    }

    fn order_start(&mut self, now_ms: u64, ix: PodIx, more: &Holding, room: Room) -> StartOrder {
        let (terminate, park) = self.commit_room(now_ms, ix, more, room);
        let skipped = self.breaks(Fault::SkipDeduction);
        let pod = self.pods.get_mut(&ix).expect("just started");
        (pod.held_since_ms, pod.busy_ms) = (Some(now_ms), 0);
        (pod.shown, pod.died) = (false, false);
        pod.held.add(more);
        let ledger = &mut self.nodes.get_mut(&pod.node).expect("chosen").ledger;
        if !skipped {
            ledger.take(more);
        }
        let alloc = alloc_of(pod, ledger);
        let terminate = terminate.into_iter().map(|ix| self.pod_ref(ix)).collect();
        let park = park.into_iter().map(|ix| self.pod_ref(ix)).collect();
        StartOrder {
            pod: self.order_ref(ix),
            alloc,
            save: false,
            terminate,
            park,
        }
    }
}

pub(super) fn alloc_of(pod: &Pod, ledger: &Ledger) -> Alloc {
    let has = &ledger.capacity;
    let devices: Vec<u32> = pod.held.gpus.iter().map(|share| share.index).collect();
    let first = pod.held.gpus.first();
    let kind = first.and_then(|share| has.gpus.iter().find(|gpu| gpu.index == share.index));
    let overhead = has.context_overhead_mib * u64::from(pod.spec.contexts.max(1));
    let overhead = first.map_or(0, |share| overhead.min(share.mib));
    Alloc {
        cpu_millis: pod.held.cpu_millis,
        mem_mib: pod.held.mem_mib.min(pod.spec.mem_mib),
        cache_mib: pod.held.cache_mib,
        gpu_kind: kind.map(|gpu| gpu.kind.clone()).unwrap_or_default(),
        vram_mib: first.map_or(0, |share| share.mib - overhead),
        context_overhead_mib: overhead,
        devices,
    }
}
