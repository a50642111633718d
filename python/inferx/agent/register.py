"""Keeps the node's object at the state service, under a lease that says that the agent lives.

Must never give up, and never delay pods: the node works without a state service.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from inferx.domain import codec
from inferx.domain.cluster import Node
from inferx.domain.meta import SYSTEM
from inferx.store.crashpoint import CrashPoint
from inferx.store.presence import Presence, State

# The scheduler sees a dead agent within five seconds by its connection (`scheduler/links.py`);
# this is for when nobody is there to see it. Longer is cheaper: at this length a thousand nodes
# renew 200 times a second.
LEASE_MS = 20_000


class Registrar:
    """Creates or takes over the node's object, and does so again whenever it has lapsed."""

    def __init__(
        self, addrs: Sequence[str], name: str, node: Node, crash: CrashPoint | None = None
    ) -> None:
        self._state = State(addrs, crash)
        obj = codec.new("node", (SYSTEM, SYSTEM, name), node.to_raw())
        self._presence = Presence(self._state, obj, LEASE_MS)
        self.registered = self._presence.present

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            await self._presence.run()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await self._state.close()
