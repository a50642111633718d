"""Nodes whose agents cannot be reached: lost, remembered for a while, forgotten in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from inferx.domain import codec
from inferx.domain.meta import Object
from inferx.domain.objects import Node
from inferx.scheduler import links
from inferx.scheduler.links import Links
from inferx.store.informer import ADDED, DELETED, MODIFIED
from tests.helpers.fake_agent import FakeAgent
from tests.helpers.gateway_kit import until
from tests.helpers.ports import free_ports


def unreachable(name: str) -> Object[Node]:
    """A node where nobody listens."""
    first, second = free_ports(2)
    spec = {"address": "127.0.0.1", "podmgr_port": first, "state_port": second}
    return codec.new(
        "node", ("system", "system", name), {"spec": spec, "status": {"state": "Ready"}}
    )


class Followed:
    """Links whose facts are kept, and a node whose agent is not there."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.links = Links(self.facts.append, lambda event, obj: None)
        self.node = unreachable("n1")

    def ready(self) -> set[str]:
        """Nodes that can be reached."""
        return {fact["name"] for fact in self.facts if fact["kind"] == "node" and fact["ready"]}

    async def heard(self, kind: str) -> None:
        """Wait for a fact about the node."""
        await until(lambda: any(fact["kind"] == kind for fact in self.facts), f"no {kind}")


@pytest.fixture
async def followed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Followed]:
    monkeypatch.setattr(links, "FIRST_CONTACT_S", 0.05)
    monkeypatch.setattr(links, "FORGET_AFTER_S", 0.3)
    followed = Followed()
    yield followed
    await followed.links.stop()


async def test_a_node_that_was_lost_before_its_object_ended_is_forgotten(
    followed: Followed,
) -> None:
    followed.links.node_changed(ADDED, followed.node)
    await followed.heard("node_lost")
    followed.links.node_changed(DELETED, followed.node)
    await followed.heard("node_gone")
    assert followed.links.all() == []


async def test_a_lost_node_that_registers_again_is_not_forgotten(followed: Followed) -> None:
    followed.links.node_changed(ADDED, followed.node)
    await followed.heard("node_lost")
    followed.links.node_changed(DELETED, followed.node)
    followed.links.node_changed(MODIFIED, followed.node)
    link = followed.links.get("n1")
    assert link is not None
    assert link.registered
    later = asyncio.get_running_loop().time() + 2 * links.FORGET_AFTER_S
    while asyncio.get_running_loop().time() < later:
        assert followed.links.get("n1") is link
        await asyncio.sleep(0.02)


async def test_agents_are_contacted_some_at_a_time(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that do not answer hold the others up for a moment only."""
    monkeypatch.setattr(links, "CONTACT_S", 0.05)
    agents = [FakeAgent(f"n{number}") for number in range(links.CONTACTS_AT_ONCE + 3)]
    nodes = []
    for agent in agents:
        spec = (await agent.start()).to_raw()
        nodes.append(codec.new("node", ("system", "system", agent.name), spec))
    dead = [unreachable(f"dead{number}") for number in range(links.CONTACTS_AT_ONCE)]
    for node in [*dead, *nodes]:
        followed.links.node_changed(ADDED, node)
    await asyncio.sleep(0)
    contacted = [fact["name"] for fact in followed.facts]
    assert contacted == [node.meta.name for node in dead]
    assert len(followed.links.all()) == len(dead) + len(nodes)  # all are known at once
    await until(lambda: followed.ready() == {agent.name for agent in agents}, "some are missing")
    await asyncio.gather(*(agent.stop() for agent in agents))


async def test_a_link_that_is_let_go_of_before_its_turn_is_never_followed(
    followed: Followed,
) -> None:
    agent = FakeAgent("n1")
    raw = (await agent.start()).to_raw()
    node: Object[Node] = codec.new("node", ("system", "system", "n1"), raw)
    for number in range(links.CONTACTS_AT_ONCE):
        followed.links.node_changed(ADDED, unreachable(f"dead{number}"))
    followed.links.node_changed(ADDED, followed.node)
    waiting = followed.links.get("n1")
    assert waiting is not None
    followed.links.node_changed(MODIFIED, node)
    await until(lambda: "n1" in followed.ready(), "the new address is not followed")
    assert followed.links.get("n1") is not waiting
    told = [fact for fact in followed.facts if (fact["kind"], fact["name"]) == ("node", "n1")]
    assert [fact["ready"] for fact in told] == [False, True]  # of one link, not of two
    await agent.stop()
