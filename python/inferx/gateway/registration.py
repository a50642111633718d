"""This gateway's object in the store: a new leader waits for gateways that have one, for no others.

Must be there before the first lease of a worker, and must not outlive the leases by much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inferx.config import NodeConfig
from inferx.domain import codec
from inferx.domain.meta import SYSTEM
from inferx.domain.objects import Gateway
from inferx.store.presence import Presence, State

LIVES_MS = 10_000  # as long as leases do at the scheduler


class Registration:
    """`lapsed` is called when the object may have disappeared: the leases are over then, too."""

    def __init__(self, config: NodeConfig, gateway_id: int, lapsed: Callable[[], None]) -> None:
        self._state = State(config.state_svc_addrs)
        raw = Gateway(gateway_id, f"{config.host_ip}:{config.gateway_port}").to_raw()
        obj = codec.new("gateway", (SYSTEM, SYSTEM, f"g{gateway_id:016x}"), raw)
        self._presence = Presence(self._state, obj, LIVES_MS, lapsed)
        self._running = asyncio.create_task(self._presence.run(), name="registration")

    async def done(self) -> None:
        """Wait until the object is there."""
        await self._presence.present.wait()

    async def stop(self) -> None:
        """Remove the object; to be called when every lease was given back."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._presence.withdraw()
        await self._state.close()
