"""Followers of a running cluster: the store's history (I4) and the nodes' memory (I1).

Must never change anything.
"""

from __future__ import annotations

import asyncio
import json

from inferx.errors import Compacted, InferxError, Unavailable
from inferx.scheduler.intents import EPOCH_ANNOTATION
from inferx.store.protocol import Event
from tests.chaos.cluster import LEADER_KEY, Cluster

_PODS = "/registry/pod/"
LOOK_EVERY_S = 0.5


class Watch:
    """`problems` are broken invariants; `leaders` counts the epochs seen, `looks` the samples."""

    def __init__(self, cluster: Cluster) -> None:
        self.problems: list[str] = []
        self.leaders = 0
        self.looks = 0
        self._cluster = cluster
        self._epoch = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin."""
        self._tasks = [
            asyncio.create_task(self._follow_store()), asyncio.create_task(self._follow_nodes())
        ]  # fmt: skip

    async def stop(self) -> None:
        """End; raises what a follower could not go on with."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _follow_store(self) -> None:
        """I4: whoever creates a pod's record holds the lead at that very revision."""
        while True:
            try:
                store = await self._cluster.store()
            except InferxError:
                await asyncio.sleep(0.1)
                continue
            try:
                entry = await store.get(LEADER_KEY)
                self._epoch = 0 if entry is None else entry.create_revision
                _, revision = await store.scan(_PODS)
                async for events in store.watch("/registry/", revision):
                    for event in events:
                        self._event(event)
            except (Compacted, Unavailable):
                await asyncio.sleep(0.1)
            finally:
                await store.close()

    def _event(self, event: Event) -> None:
        if event.key == LEADER_KEY:
            self._epoch = 0 if event.entry is None else event.entry.create_revision
            self.leaders += self._epoch > 0
            if event.entry is not None and event.entry.create_revision != event.revision:
                self.problems.append(f"I4 the leader's object was written twice: {event.revision}")
        elif event.key.startswith(_PODS) and event.entry is not None:
            if event.entry.create_revision != event.revision:
                return
            annotations = json.loads(event.entry.value).get("annotations", {})
            epoch = int(annotations.get(EPOCH_ANNOTATION, "0"))
            if epoch != self._epoch:
                self.problems.append(
                    f"I4 {event.key} was created by epoch {epoch} while {self._epoch} led"
                )

    async def _follow_nodes(self) -> None:
        """I1: what a node's ledger counts fits its GPUs."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for node in self._cluster.nodes:
                for obj in await self._cluster.shown(node, "node"):
                    self.looks += 1
                    gpus = obj.spec.resources.gpus
                    for gpu, used in zip(gpus, obj.spec.vram_used_mb, strict=True):
                        # A victim's room counts twice until it has left; see the ledger.
                        held = await self._held(node, gpu.index)
                        if min(used, held) > gpu.vram_mb:
                            self.problems.append(f"I1 {obj.meta.name} GPU {gpu.index}: {used} MB")

    async def _held(self, node: object, index: int) -> int:
        pods = await self._cluster.shown(node, "pod")  # type: ignore[arg-type]
        held = ("Loading", "Ready", "Resuming")
        return sum(
            obj.spec.alloc.vram_mb_per_device
            for obj in pods
            if obj.spec.status.state in held
            and obj.spec.alloc.gpu is not None
            and index in obj.spec.alloc.gpu.devices
        )
