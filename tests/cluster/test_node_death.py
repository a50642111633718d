"""How soon a scheduler knows that a node is dead, and that it does not cry too early."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from inferx.scheduler.links import LOST_AFTER_S, NodeLink
from tests.helpers import agent_process

DETECTED_S = 5.0
SLACK_S = 5.0  # of a busy machine


class Followed:
    """An agent's process and a link to it; `facts` is what the core would hear."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.changed = asyncio.Event()

    async def start(self) -> None:
        self.process, node = await agent_process.start()
        self.link = NodeLink("n1", node, self._observe, lambda key: True, lambda link: None)
        await self.link.start()
        async with asyncio.timeout(20):
            await self.link.pods.synced.wait()

    def _observe(self, fact: dict[str, Any]) -> None:
        self.facts.append(fact)
        self.changed.set()

    def lost(self) -> bool:
        return any(fact["kind"] == "node_lost" for fact in self.facts)

    async def lost_after_s(self) -> float:
        """Seconds until the node is given up."""
        begun = time.monotonic()
        async with asyncio.timeout(30):
            while not self.lost():
                self.changed.clear()
                await self.changed.wait()
        return time.monotonic() - begun

    async def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
        await self.link.stop()


@pytest.fixture
async def followed() -> AsyncIterator[Followed]:
    followed = Followed()
    await followed.start()
    yield followed
    await followed.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dead_or_frozen_agent_is_detected(
    followed: Followed, number: signal.Signals
) -> None:
    followed.process.send_signal(number)
    assert await followed.lost_after_s() < DETECTED_S + SLACK_S


async def test_an_agent_that_was_killed_has_time_to_come_back(followed: Followed) -> None:
    begun = time.monotonic()
    followed.process.kill()
    while followed.link.pods.connected:
        followed.changed.clear()
        await followed.changed.wait()
    assert not followed.lost(), "its pods run on, and it may be back in a moment"
    await followed.lost_after_s()
    assert time.monotonic() - begun > LOST_AFTER_S * 0.9
