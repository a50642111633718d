"""The Rust core and the reference model, step by step on the same random story."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from inferx._ext import SchedulerCore
from tests.helpers.core_reference import IDLE_PARK_MS, Deed, Function, Lease, Pod, Reference

FUNCTIONS = [
    Function("one", parallel=1, max_replica=2, queue_len=3),
    Function("few", parallel=3, max_replica=1, queue_len=2),
    Function("many", parallel=4, max_replica=3, queue_len=5),
    Function("none", parallel=2, max_replica=0, queue_len=2),
]
GPU_MIB = 24_000


class CoreAgainstReference(RuleBasedStateMachine):
    """Every rule does the same to both and compares answers and deeds."""

    requests: Bundle[tuple[str, tuple[int, str], int]] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.core = SchedulerCore("abc123", IDLE_PARK_MS, lease_ttl_ms=10**9)
        self.model = Reference()
        self.pods: dict[int, str] = {}
        self.orders: dict[int, int] = {}
        self.lease_ids: dict[int, int] = {}
        self.asked = 0
        gpus = [(index, "A", GPU_MIB) for index in range(32)]
        self.observe(
            "node", name="n", ready=True, keeps_snapshots=True,
            cpu_millis=10**6, mem_mib=10**6, gpus=gpus,
        )  # fmt: skip
        for known in FUNCTIONS:
            function = Function(known.name, known.parallel, known.max_replica, known.queue_len)
            self.model.functions[known.name] = function
            policy = {"parallel": known.parallel, "max_replica": known.max_replica}
            self.observe(
                "function", tenant="t", namespace="n", name=known.name, revision=1,
                cpu_millis=10, mem_mib=10, gpu_count=1, vram_mib=GPU_MIB,
                queue_len=known.queue_len, standby_per_node=0, wait_ratio_milli=0, **policy,
            )  # fmt: skip
        self.compare()

    def observe(self, kind: str, **fact: Any) -> None:
        self.core.observe(self.model.now_ms, {"kind": kind, **fact})

    # ---- what happens ----

    @rule(
        target=requests,
        name=st.sampled_from([*(known.name for known in FUNCTIONS), "unknown"]),
        gateway=st.integers(1, 2),
        slots=st.integers(0, 5),
        wait_ms=st.integers(1, 20_000),
    )
    def ask(
        self, name: str, gateway: int, slots: int, wait_ms: int
    ) -> tuple[str, tuple[int, str], int]:
        self.asked += 1
        request = (gateway, f"r{self.asked}")
        self.lease(name, request, slots, wait_ms)
        return (name, request, slots)

    @rule(request=requests)
    def ask_again(self, request: tuple[str, tuple[int, str], int]) -> None:
        self.lease(*request, 10_000)

    def lease(self, name: str, request: tuple[int, str], slots: int, wait_ms: int) -> None:
        now_ms = self.model.now_ms
        answer = self.core.lease(now_ms, "t", "n", name, 1, *request, slots, now_ms + wait_ms)
        expected = self.model.lease(name, request, slots, wait_ms)
        if isinstance(expected[1], Lease):
            lease = expected[1]
            assert answer[0] == "leased"
            assert answer[2:4] == (self.pods[lease.pod.number], lease.slots)
            known = self.lease_ids.setdefault(lease.number, answer[1])
            assert known == answer[1], "the same request has the same lease"
        elif name == "none" and expected[0] == "refused":
            assert answer[0] == "refused"
        else:
            assert answer[:2] == expected
        self.compare()

    @precondition(lambda self: self.model.leases)
    @rule(data=st.data(), ok=st.booleans())
    def give_back(self, data: st.DataObject, ok: bool) -> None:
        lease = data.draw(st.sampled_from(self.model.leases))
        lease_id = self.lease_ids.pop(lease.number)
        assert self.core.give_back(self.model.now_ms, lease_id, ok)
        assert not self.core.give_back(self.model.now_ms, lease_id, ok)
        self.model.give_back(lease, ok)
        self.compare()

    @precondition(lambda self: self.model.tickets)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.model.tickets))
        assert self.core.cancel(self.model.now_ms, ticket.number)
        assert not self.core.cancel(self.model.now_ms, ticket.number)
        self.model.cancel(ticket)
        self.compare()

    @precondition(lambda self: self.in_state("starting"))
    @rule(data=st.data(), ok=st.sampled_from([True, True, True, False]))
    def started(self, data: st.DataObject, ok: bool) -> None:
        pod = data.draw(st.sampled_from(self.in_state("starting")))
        why = {"code": "start_failed", "reason": "no weights", "gone": True}
        self.result("start_result", pod, ok=ok, **({} if ok else why))
        self.model.started(pod, ok)
        self.compare()

    @precondition(lambda self: self.in_state("ending"))
    @rule(data=st.data())
    def ended(self, data: st.DataObject) -> None:
        pod = data.draw(st.sampled_from(self.in_state("ending")))
        self.result("terminate_result", pod, ok=True)
        self.model.ended(pod)
        self.compare()

    @precondition(lambda self: self.in_state("open"))
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        pod = data.draw(st.sampled_from(self.in_state("open")))
        assert self.core.kill(self.model.now_ms, self.pods[pod.number])
        self.model.kill(pod)
        self.compare()

    @rule(name=st.sampled_from(["one", "few", "many"]), what=st.sampled_from(["Done", "Fail", ""]))
    def snapshot(self, name: str, what: str) -> None:
        function = self.model.functions[name]
        {"Done": self.model.saved, "Fail": self.model.not_saved, "": self.model.removed}[what](
            function
        )
        place = {"tenant": "t", "namespace": "n", "name": name, "node": "n"}
        if what == "":
            self.observe("snapshot_gone", **place)
        else:
            state = "Done" if what == "Done" else "ScheduleFail"
            failures = function.task.told
            self.observe("snapshot", **place, revision=1, state=state, failures=failures)
        self.compare()

    @rule(pause_ms=st.sampled_from([1, 300, 1_000, 4_999, 5_000, 30_000, 700_000]))
    def time_passes(self, pause_ms: int) -> None:
        now_ms = self.model.now_ms + pause_ms
        while (at_ms := self.core.next_wakeup_ms()) is not None and at_ms < now_ms:
            self.core.tick(at_ms)
            self.model.tick(at_ms)
            self.compare()
        self.core.tick(now_ms)
        self.model.tick(now_ms)
        self.compare()

    # ---- comparing ----

    def in_state(self, state: str) -> list[Pod]:
        return [pod for pod in self.model.pods if pod.state == state]

    def result(self, kind: str, pod: Pod, **outcome: Any) -> None:
        order = self.orders[pod.number]
        self.observe(kind, pod_id=self.pods[pod.number], order=order, **outcome)

    def compare(self) -> None:
        """The core's effects are the model's deeds; new pods and leases get their names."""
        effects, deeds = self.core.effects(), self.model.deeds
        self.model.deeds = []
        unnamed = [pod for pod in self.model.pods if pod.number not in self.pods]
        for effect in effects:
            if effect["effect"] == "start":
                pod = next(p for p in unnamed if p.function.name == effect["funcname"])
                unnamed.remove(pod)
                self.pods[pod.number] = effect["pod_id"]
        numbers = {pod_id: number for number, pod_id in self.pods.items()}
        assert sorted(map(repr, (deed_of(e, numbers) for e in effects))) == sorted(map(repr, deeds))
        for effect in effects:
            if "order" in effect:
                self.orders[numbers[effect["pod_id"]]] = effect["order"]
            if effect["effect"] == "grant":
                self.name_lease(effect, numbers)

    def name_lease(self, effect: dict[str, Any], numbers: dict[str, int]) -> None:
        pod = numbers[effect["pod_id"]]
        unnamed = [
            lease
            for lease in self.model.leases
            if lease.number not in self.lease_ids and lease.pod.number == pod
        ]
        # Granted in the order of the tickets, as the effects are.
        self.lease_ids[unnamed[0].number] = effect["lease_id"]

    @invariant()
    def both_say_the_same(self) -> None:
        self.core.check(self.model.now_ms)
        known = {pod["pod_id"]: pod for pod in self.core.pods()}
        assert set(known) == {self.pods[pod.number] for pod in self.model.pods}
        for pod in self.model.pods:
            assert known[self.pods[pod.number]]["leased"] == pod.leased
        stats = self.core.stats()
        assert (stats["tickets"], stats["leases"]) == (
            len(self.model.tickets),
            len(self.model.leases),
        )
        assert stats["gpu_mib_used"] == GPU_MIB * len(self.model.pods)
        told = [f.task.state for f in self.model.functions.values() if f.task.state]
        counts = stats["snapshot_tasks"].items()
        assert {state: count for state, count in counts if count} == Counter(told)


def deed_of(effect: dict[str, Any], numbers: dict[str, int]) -> Deed:
    """An effect in the words of the model."""
    match effect["effect"]:
        case "grant":
            return ("grant", effect["ticket"], numbers[effect["pod_id"]], effect["slots"])
        case "refuse":
            return ("refuse", effect["ticket"])
        case "start":
            return ("start", effect["funcname"], effect["save"])
        case other:
            return (other, numbers[effect["pod_id"]])


TestCoreAgainstReference = CoreAgainstReference.TestCase
TestCoreAgainstReference.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None
)
