"""After the faults: do the store, the nodes and the machine tell the same story (I5)?

Must never look at what a service believes; only at what is stored, shown by agents, and running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from inferx.store.objects import ObjectStore
from tests.chaos.cluster import Cluster
from tests.chaos.processes import workers

SETTLE_S = 10.0
Look = Callable[[], Awaitable[list[str]]]


class Agreement:
    """Each look returns sentences about what differs."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def until_none(self, look: Look, settle_s: float = SETTLE_S) -> list[str]:
        """What still differs after the time to settle."""
        deadline = time.monotonic() + settle_s
        while (found := await look()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return found

    async def differences(self) -> list[str]:
        """Pods of the store against pods on nodes."""
        stored = await self._stored()
        shown = {
            obj.meta.name
            for node in self._cluster.nodes
            for obj in await self._cluster.shown(node, "pod")
            if obj.spec.status.state not in ("Terminated", "Failed")
        }
        return [
            *(f"I5 pod {name} is recorded and on no node" for name in stored - shown),
            *(f"I5 pod {name} is on a node and not recorded" for name in shown - stored),
        ]

    async def leftovers(self) -> list[str]:
        """Whatever is left once every function was deleted."""
        left = await self.differences()
        left += [f"I5 pod {name} is still recorded" for name in await self._stored()]
        for service in self._cluster.of("nodeagent"):
            left += [f"I5 worker {pid} runs" for pid in workers(service)]
        for node in self._cluster.nodes:
            for obj in await self._cluster.shown(node, "node"):
                if any(obj.spec.vram_used_mb):
                    left.append(f"I5 {obj.meta.name} holds {obj.spec.vram_used_mb} MB")
        return left

    async def _stored(self) -> set[str]:
        found, _ = await self._cluster.with_store(lambda store: ObjectStore(store).list("pod"))
        pods = [stored.object() for stored in found]
        return {pod.meta.name for pod in pods if pod.spec.status.state != "Failed"}
