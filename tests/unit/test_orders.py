"""Orders to an agent that is a real gRPC server; what the core hears of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from inferx._ext import SchedulerCore, SchedulerServer
from inferx.domain import codec
from inferx.rpc import client, na_pb2_grpc
from inferx.scheduler.intents import Intents
from inferx.scheduler.links import Links
from inferx.scheduler.orders import Orders
from inferx.scheduler.places import Places
from tests.helpers.fake_agent import FakeAgent
from tests.helpers.state_client import until

POD = {
    "tenant": "t", "namespace": "n", "funcname": "f", "revision": 1, "pod_id": "p1", "node": "n1",
    "alloc": {}, "save": False, "terminate": [], "park": [],
}  # fmt: skip
START = {**POD, "effect": "start", "order": 1}
END = {**POD, "effect": "terminate", "order": 2}


class Record:
    """Stands for `Intents` and `Links`: the record of a start is written when a test says so."""

    def __init__(self, stub: Any) -> None:
        self.written = asyncio.Event()
        self._stub = stub

    async def place(self, effect: dict[str, Any]) -> None:
        """Wait for the test."""
        await self.written.wait()

    def stub(self, name: str) -> Any:
        """The one agent."""
        return self._stub


class Kit:
    """Orders, their agent, and the facts for the core."""

    def __init__(self, agent: FakeAgent, record: Record) -> None:
        self.agent = agent
        self.record = record
        self.facts: list[dict[str, Any]] = []
        self.leads = True
        spec = {"spec": {"image": "i", "resources": {"CPU": 100, "Mem": 100}}}
        function = codec.new("function", ("t", "n", "f"), spec)
        function = codec.parse_manifest({**codec.dump_manifest(function), "revision": 1})[0]
        self.orders = Orders(
            cast(Links, record), lambda key: function, self.facts.append, lambda error: None,
            cast(Intents, record), Places(SchedulerServer(SchedulerCore("ab"), 10_000, {}, [])),
            lambda: self.leads,
        )  # fmt: skip


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    agent = FakeAgent()
    node = await agent.start()
    channel = client.channel(f"127.0.0.1:{node.podmgr_port}")
    stub: Any = na_pb2_grpc.NodeAgentServiceStub
    kit = Kit(agent, Record(stub(channel)))
    yield kit
    await kit.orders.stop()
    await channel.close(None)
    await agent.stop()


async def test_a_start_that_no_agent_knows_of_is_reported_as_gone_when_it_is_overtaken(
    kit: Kit,
) -> None:
    kit.orders.carry_out(START)
    await asyncio.sleep(0)  # it waits for its record now
    kit.orders.carry_out(END)
    await until(lambda: len(kit.facts) == 2)
    start, end = kit.facts
    assert (start["kind"], start["ok"], start["gone"], start["order"]) == (
        "start_result", False, True, 1,
    )  # fmt: skip
    assert (end["kind"], end["ok"], end["order"]) == ("terminate_result", True, 2)
    assert kit.agent.asked == [("terminate", "p1")]
    assert not kit.orders.starting("p1")


async def test_a_start_that_its_agent_may_know_of_is_reported_without_saying_that_it_is_gone(
    kit: Kit,
) -> None:
    kit.record.written.set()
    kit.agent.gate.clear()
    kit.orders.carry_out(START)
    await until(lambda: ("create", "p1") in kit.agent.asked)
    kit.orders.carry_out(END)
    await until(lambda: len(kit.facts) == 2)
    start, end = kit.facts
    assert (start["kind"], start["ok"], start["gone"]) == ("start_result", False, False)
    assert (end["kind"], end["ok"]) == ("terminate_result", True)


async def test_both_given_in_the_same_moment_are_both_reported(kit: Kit) -> None:
    kit.orders.carry_out(START)
    kit.orders.carry_out(END)  # the start has not run a single step
    await until(lambda: len(kit.facts) == 2)
    assert [fact["kind"] for fact in kit.facts] == ["start_result", "terminate_result"]
    assert kit.facts[0]["gone"]


async def test_the_core_hears_how_a_pod_was_really_started(kit: Kit) -> None:
    kit.record.written.set()
    kit.orders.carry_out(START)
    await until(lambda: len(kit.facts) == 1)
    resume = {**POD, "effect": "resume"}
    for order, way in enumerate(("resume", "snapshot", "cold", ""), start=2):
        kit.agent.resumes_as = way
        kit.orders.carry_out({**resume, "order": order})
        await until(lambda order=order: kit.facts[-1]["order"] == order)
    # An agent of an earlier version does not say; then it is as ordered.
    told = [fact["start"] for fact in kit.facts]
    assert told == ["cold", "resume", "snapshot", "cold", None]


async def test_an_orderly_stop_reports_nothing(kit: Kit) -> None:
    kit.orders.carry_out(START)
    await asyncio.sleep(0)
    await kit.orders.stop()
    assert kit.facts == []


async def test_a_scheduler_that_leads_no_longer_orders_nothing(kit: Kit) -> None:
    kit.record.written.set()
    kit.leads = False  # it was frozen past its lease, and wakes up
    for effect in ("start", "resume", "park", "terminate"):
        kit.orders.carry_out({**POD, "effect": effect, "pod_id": f"p-{effect}", "order": 1})
    await until(lambda: len(kit.facts) == 4)
    assert {fact["code"] for fact in kit.facts} == {"unavailable"}
    assert kit.agent.asked == []


async def test_a_start_of_a_kind_that_is_not_known_counts_as_ordered(kit: Kit) -> None:
    """The core would refuse the word, and never hear that the pod is ready."""
    kit.agent.resumes_as = "teleported"
    kit.record.written.set()
    kit.orders.carry_out(START)
    await until(lambda: len(kit.facts) == 1)
    kit.orders.carry_out({**POD, "effect": "resume", "order": 2})
    await until(lambda: len(kit.facts) == 2)
    fact = kit.facts[-1]
    assert (fact["kind"], fact["ok"], fact["start"]) == ("start_result", True, None)
