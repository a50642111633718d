//! The steps of the simulated node: what each event does.
//! It must never let time go back or a worker run two calls.

use std::cmp::Reverse;

use crate::keepalive::{FunctionIx, Tier};

use super::super::pool::Place;
use super::{Decision, Event, Node, StartTier, State, Worker};

impl Node<'_> {
    /// Handles everything before (`at_ms`, `rank`).
    pub(super) fn run_until(&mut self, at_ms: u64, rank: u8) {
        while let Some(Reverse((time_ms, event_rank, _, event))) = self.events.peek().copied() {
            if (time_ms, event_rank) >= (at_ms, rank) {
                break;
            }
            self.events.pop();
            self.now_ms = time_ms;
            match event {
                Event::Ready(worker) => self.ready(worker),
                Event::Done(worker, number) => self.done(worker, number),
                Event::Fetched => self.fetching = false,
                Event::Deadline(worker, generation) => self.deadline(worker, generation),
                Event::Prewarm(function) => self.prewarm(function),
            }
            if event_rank == 0 {
                self.fetch();
            }
        }
        if self.open {
            self.now_ms = at_ms;
        }
    }

    pub(super) fn at(&mut self, time_ms: u64, event: Event) {
        self.sequence += 1;
        self.events
            .push(Reverse((time_ms, event.rank(), self.sequence, event)));
    }

    pub(super) fn note(&mut self, decision: Decision) {
        self.run.decisions.push((self.now_ms, decision));
    }

    /// A call arrives: a worker with a free slot takes it, else it waits for a start.
    pub(super) fn arrive(&mut self, number: usize) {
        let call = self.trace.calls[number];
        let ix = call.function.0 as usize;
        self.policy.arrived(self.now_ms, call.function, call.tenant);
        let idle = self.idle_workers(call.function).last().copied();
        if let Some(worker) = self.busy_with_slot(call.function).or(idle) {
            self.serve(worker, number);
        } else {
            self.waiting[ix].push_back(number);
            let blocked = self.blocked.iter().filter(|f| **f == call.function).count();
            let starting = self.starting(call.function);
            let coming = (starting.len() + blocked) * self.config.parallel;
            if coming < self.waiting[ix].len() {
                self.tiers[number] = self.tier(call.function);
                self.start_or_block(call.function);
            } else {
                self.tiers[number] = starting.first().copied().unwrap_or(StartTier::Host);
            }
        }
        self.ask_again();
        self.fetch();
    }

    pub(super) fn busy_with_slot(&self, function: FunctionIx) -> Option<usize> {
        let free = |worker: &&usize| match self.workers[**worker].state {
            State::Busy(calls, _) => calls < self.config.parallel,
            _ => false,
        };
        self.live[function.0 as usize].iter().find(free).copied()
    }

    /// Idle workers of `function`, the one idle for the shortest time last.
    pub(super) fn idle_workers(&self, function: FunctionIx) -> Vec<usize> {
        let mut idle: Vec<(u64, usize)> = self.live[function.0 as usize]
            .iter()
            .filter_map(|worker| match self.workers[*worker].state {
                State::Idle { since_ms } => Some((since_ms, *worker)),
                _ => None,
            })
            .collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, worker)| worker).collect()
    }

    /// What the workers of `function` that are starting start from.
    pub(super) fn starting(&self, function: FunctionIx) -> Vec<StartTier> {
        let tier = |worker: &usize| match self.workers[*worker].state {
            State::Starting(tier) => Some(tier),
            _ => None,
        };
        self.live[function.0 as usize]
            .iter()
            .filter_map(tier)
            .collect()
    }

    pub(super) fn serve(&mut self, worker: usize, number: usize) {
        let call = self.trace.calls[number];
        self.waits_ms[number] = self.now_ms - call.at_ms;
        let worker_state = &mut self.workers[worker];
        worker_state.state = match worker_state.state {
            State::Busy(calls, since_ms) => State::Busy(calls + 1, since_ms),
            _ => State::Busy(1, self.now_ms),
        };
        worker_state.generation += 1;
        self.at(self.now_ms + call.exec_ms, Event::Done(worker, number));
    }

    pub(super) fn tier(&self, function: FunctionIx) -> StartTier {
        match self.pool.place(self.now_ms, function) {
            Place::Never | Place::Creating(_) => StartTier::Cold,
            Place::File => StartTier::File,
            Place::Host(whole_ms) if whole_ms > self.now_ms => StartTier::File,
            Place::Host(_) => StartTier::Host,
        }
    }

    /// Starts a worker; without room an idle worker of another function is parked, or the start
    /// waits.
    pub(super) fn start_or_block(&mut self, function: FunctionIx) {
        if self.live_count < self.config.workers_max() || self.park_victim() {
            self.start(function);
        } else {
            self.blocked.push_back(function);
        }
    }

    pub(super) fn park_victim(&mut self) -> bool {
        let with_idle = |function: &FunctionIx| !self.idle_workers(*function).is_empty();
        let candidates: Vec<FunctionIx> = (0..self.live.len() as u32)
            .map(FunctionIx)
            .filter(with_idle)
            .collect();
        if candidates.is_empty() {
            return false;
        }
        let out = self.policy.victim(self.now_ms, Tier::Gpu, &candidates);
        let worker = self.idle_workers(candidates[out])[0];
        self.leave(worker);
        true
    }

    pub(super) fn start(&mut self, function: FunctionIx) {
        let (config, now_ms) = (self.config, self.now_ms);
        let tier = self.tier(function);
        let cost_ms = match self.pool.place(now_ms, function) {
            Place::Never => {
                self.pool.create(function, now_ms + config.cold_start_ms);
                config.cold_start_ms
            }
            Place::Creating(ready_ms) => config
                .cold_start_ms
                .min(ready_ms - now_ms + config.host_start_ms),
            Place::File => {
                let whole_ms = now_ms + config.file_start_ms.saturating_sub(config.host_start_ms);
                self.admit(function, whole_ms);
                config.file_start_ms
            }
            Place::Host(whole_ms) => {
                let rest_ms = whole_ms.saturating_sub(now_ms) + config.host_start_ms;
                rest_ms.min(config.file_start_ms.max(config.host_start_ms))
            }
        };
        let worker = self.workers.len();
        self.workers.push(Worker {
            function,
            born_ms: now_ms,
            busy_ms: 0,
            state: State::Starting(tier),
            generation: 0,
        });
        self.live[function.0 as usize].push(worker);
        self.live_count += 1;
        self.at(now_ms + cost_ms, Event::Ready(worker));
    }

    /// Puts `function` into the host pool, throwing another one out when it is full and the policy
    /// wants that.
    pub(super) fn admit(&mut self, function: FunctionIx, whole_ms: u64) {
        if self.pool.holds(function) || self.pool.capacity() == 0 {
            return;
        }
        if self.pool.full() {
            let candidates = self.pool.resident().to_vec();
            if !self.policy.admits(self.now_ms, function, &candidates) {
                return;
            }
            let out = candidates[self.policy.victim(self.now_ms, Tier::Host, &candidates)];
            self.evict(out);
        }
        self.pool.insert(function, whole_ms);
    }

    pub(super) fn evict(&mut self, function: FunctionIx) {
        self.pool.evict(function);
        self.note(Decision::Evict(function));
    }

    pub(super) fn ready(&mut self, worker: usize) {
        let function = self.workers[worker].function;
        if self.workers[worker].state == State::Starting(StartTier::Cold) {
            self.pool.written(function);
            self.admit(function, self.now_ms);
        }
        self.free(worker);
    }

    pub(super) fn done(&mut self, worker: usize, number: usize) {
        let call = self.trace.calls[number];
        if let State::Busy(calls, since_ms) = self.workers[worker].state {
            if calls > 1 {
                self.workers[worker].state = State::Busy(calls - 1, since_ms);
            } else {
                self.workers[worker].busy_ms += self.now_ms - since_ms;
                self.workers[worker].state = State::Idle {
                    since_ms: self.now_ms,
                };
            }
        }
        self.policy
            .completed(self.now_ms, call.function, call.tenant);
        self.free(worker);
        self.ask_again();
    }

    /// A worker has free slots: the oldest waiting calls take them, else it idles until its
    /// deadline.
    pub(super) fn free(&mut self, worker: usize) {
        let function = self.workers[worker].function;
        let calls = |state: State| {
            if let State::Busy(calls, _) = state {
                calls
            } else {
                0
            }
        };
        while calls(self.workers[worker].state) < self.config.parallel
            && let Some(number) = self.waiting[function.0 as usize].pop_front()
        {
            self.unblock(function);
            self.serve(worker, number);
        }
        if calls(self.workers[worker].state) > 0 {
            return;
        }
        self.workers[worker].state = State::Idle {
            since_ms: self.now_ms,
        };
        self.workers[worker].generation += 1;
        if self.blocked.is_empty() {
            self.ask_deadline(worker);
        } else {
            self.leave(worker);
        }
    }

    /// A call that waited for room was served by another worker: its start is needed no more.
    pub(super) fn unblock(&mut self, function: FunctionIx) {
        let needed = self.waiting[function.0 as usize].len();
        let blocked = self.blocked.iter().filter(|f| **f == function).count();
        if (self.starting(function).len() + blocked) * self.config.parallel
            >= needed + self.config.parallel
            && let Some(place) = self.blocked.iter().rposition(|f| *f == function)
        {
            self.blocked.remove(place);
        }
    }
}
