//! How the agents of the simulation carry orders out.

use scheduler_core::messages::{Outcome, PodRef, StartOrder};
use scheduler_core::model::StartKind;
use scheduler_core::pod::State;

use super::agent::AgentPod;
use super::{Happening, Kind, World};

impl World {
    pub(super) fn agent_of(&self, pod: &PodRef) -> usize {
        let mut agents = self.agents.iter();
        agents
            .position(|agent| agent.name == pod.node)
            .expect("orders go to known nodes")
    }

    fn answer(&mut self, kind: Kind, pod: &PodRef, error: Option<(&str, bool)>) {
        let outcome = Outcome {
            pod_id: pod.pod_id.clone(),
            ok: error.is_none(),
            code: error.map(|(code, _)| code.to_owned()).unwrap_or_default(),
            reason: error
                .map(|(code, _)| format!("because of {code}"))
                .unwrap_or_default(),
            gone: error.is_some_and(|(_, gone)| gone),
            order: pod.order,
            start: (kind == Kind::Start && error.is_none() && self.has_snapshot(pod))
                .then_some(StartKind::Snapshot),
        };
        let delay_ms = self.random.below(40);
        self.after(delay_ms, Happening::Result { kind, outcome });
    }

    /// Shows a pod on its node's stream, which keeps the order but may lag.
    pub(super) fn tell(&mut self, at: usize, pod_id: &str) {
        let lag_ms = self.random.below(60);
        let agent = &mut self.agents[at];
        agent.stream_ms = agent.stream_ms.max(self.now + lag_ms);
        let delay_ms = agent.stream_ms - self.now;
        let happening = match agent.fact(pod_id) {
            Some(fact) => Happening::Told(fact),
            None => Happening::Gone(pod_id.to_owned()),
        };
        self.after(delay_ms, happening);
    }

    pub(super) fn begin(&mut self, kind: Kind, order: StartOrder) {
        let at = self.agent_of(&order.pod);
        let pod = &order.pod;
        if !self.agents[at].up || self.random.chance(2) {
            return self.answer(kind, pod, Some(("unavailable", false)));
        }
        if let Err(error) = self.may_begin(at, kind, &order) {
            return self.answer(kind, pod, Some(error));
        }
        for victim in &order.terminate {
            self.agents[at].pods.remove(&victim.pod_id);
            self.tell(at, &victim.pod_id);
        }
        for victim in &order.park {
            self.agents[at].set(victim, State::Parking);
            self.tell(at, &victim.pod_id);
            self.agents[at].set(victim, State::Standby);
            self.tell(at, &victim.pod_id);
        }
        let state = if kind == Kind::Start {
            State::Creating
        } else {
            State::Resuming
        };
        let (key, revision, alloc) = (pod.key.clone(), pod.revision, order.alloc.clone());
        let new = AgentPod {
            key,
            revision,
            state,
            alloc,
            save: order.save,
        };
        self.agents[at].pods.insert(pod.pod_id.clone(), new);
        self.tell(at, &pod.pod_id);
        let loading_ms = if kind == Kind::Start { 600 } else { 60 };
        let delay_ms = self.random.below(loading_ms);
        self.after(
            delay_ms,
            Happening::Loaded {
                kind,
                pod: order.pod,
            },
        );
    }

    fn may_begin(
        &self,
        at: usize,
        kind: Kind,
        order: &StartOrder,
    ) -> Result<(), (&'static str, bool)> {
        let agent = &self.agents[at];
        let id = &order.pod.pod_id;
        match (kind, agent.pods.get(id)) {
            (Kind::Start, None) => {}
            (Kind::Start, Some(_)) => return Err(("invalid_state", false)),
            (_, None) => return Err(("not_found", true)),
            (_, Some(pod)) if pod.state != State::Standby => return Err(("invalid_state", false)),
            _ => {}
        }
        let parkable = |pod: &PodRef| {
            agent
                .pods
                .get(&pod.pod_id)
                .is_some_and(|pod| pod.state == State::Ready)
        };
        if !order.park.iter().all(parkable) {
            return Err(("invalid_state", kind == Kind::Start));
        }
        let leaving = order.terminate.iter().chain(&order.park);
        let leaving: Vec<&str> = leaving.map(|pod| pod.pod_id.as_str()).collect();
        if let Err(why) = agent.admit(id, &order.alloc, &leaving) {
            assert!(self.disturbed, "the core gave away what is taken: {why}");
            return Err(("no_capacity", kind == Kind::Start));
        }
        Ok(())
    }

    pub(super) fn loaded(&mut self, kind: Kind, pod: &PodRef) {
        let at = self.agent_of(pod);
        let starting = |state| matches!(state, State::Creating | State::Resuming);
        let known = self.agents[at].pods.get(&pod.pod_id);
        if !known.is_some_and(|known| starting(known.state)) {
            // Ended meanwhile. Who ended it by an order has stopped listening, or hears of it late.
            let pods = self.core.pods();
            let ours = pods.iter().find(|ours| ours.pod_id == pod.pod_id);
            let awaited = ours.is_some_and(|ours| ours.state.is_starting());
            if awaited || self.random.chance(50) {
                self.answer(kind, pod, Some(("start_failed", true)));
            }
            return;
        }
        if self.random.chance(12) && !self.calm {
            self.agents[at].pods.remove(&pod.pod_id);
            self.tell(at, &pod.pod_id);
            return self.answer(kind, pod, Some(("start_failed", kind == Kind::Start)));
        }
        self.agents[at].set(pod, State::Ready);
        self.tell(at, &pod.pod_id);
        self.answer(kind, pod, None);
        self.save_worker(at, pod);
    }

    pub(super) fn park(&mut self, pod: &PodRef) {
        let at = self.agent_of(pod);
        if !self.agents[at].up || self.random.chance(2) {
            return self.answer(Kind::Park, pod, Some(("unavailable", false)));
        }
        match self.agents[at]
            .pods
            .get(&pod.pod_id)
            .map(|known| known.state)
        {
            None => self.answer(Kind::Park, pod, Some(("not_found", true))),
            Some(State::Ready) => {
                self.agents[at].set(pod, State::Parking);
                self.tell(at, &pod.pod_id);
                let delay_ms = self.random.below(50);
                self.after(delay_ms, Happening::Parked(pod.clone()));
            }
            Some(State::Standby) => self.answer(Kind::Park, pod, None),
            Some(_) => self.answer(Kind::Park, pod, Some(("invalid_state", false))),
        }
    }

    pub(super) fn parked(&mut self, pod: &PodRef) {
        let at = self.agent_of(pod);
        let known = self.agents[at]
            .pods
            .get(&pod.pod_id)
            .map(|known| known.state);
        if known == Some(State::Parking) {
            self.agents[at].set(pod, State::Standby);
            self.tell(at, &pod.pod_id);
            self.answer(Kind::Park, pod, None);
        } else {
            self.answer(Kind::Park, pod, Some(("not_found", known.is_none())));
        }
    }

    pub(super) fn terminate(&mut self, pod: &PodRef) {
        let at = self.agent_of(pod);
        self.withdraw_start(pod);
        if !self.agents[at].up || self.random.chance(5) {
            return self.answer(Kind::Terminate, pod, Some(("unavailable", false)));
        }
        if self.agents[at].pods.remove(&pod.pod_id).is_some() {
            self.tell(at, &pod.pod_id);
        }
        self.answer(Kind::Terminate, pod, None);
    }

    /// An order to end a pod does not overtake the one that makes it, except once in a while.
    fn withdraw_start(&mut self, pod: &PodRef) {
        let makes = |happening: &Happening| match happening {
            Happening::Begin { order, .. } => order.pod.pod_id == pod.pod_id,
            _ => false,
        };
        if !self.queue.values().any(makes) {
            return;
        }
        if self.random.chance(10) {
            self.disturbed = true;
        } else {
            let at: Vec<_> = self.queue.iter().filter(|(_, next)| makes(next)).collect();
            let at: Vec<_> = at.into_iter().map(|(at, _)| *at).collect();
            for at in at {
                if let Some(Happening::Begin { kind, order }) = self.queue.remove(&at) {
                    // Who withdrew it has stopped listening, unless it was told of another life.
                    let gone = kind == Kind::Start;
                    self.answer(kind, &order.pod, Some(("conflict", gone)));
                }
            }
        }
    }
}
