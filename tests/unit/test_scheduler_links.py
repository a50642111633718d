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
from tests.helpers.gateway_kit import free_ports, until


class Followed:
    """Links whose facts are kept, and a node whose agent is not there."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.links = Links(self.facts.append, lambda event, obj: None)
        first, second = free_ports(2)
        spec = {"address": "127.0.0.1", "podmgr_port": first, "state_port": second}
        raw = {"spec": spec, "status": {"state": "Ready"}}
        self.node: Object[Node] = codec.new("node", ("system", "system", "n1"), raw)

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
