"""How one worker leaves its GPU and comes back: sleep mode, its own hooks, driver, memory tiers.

Must never call a worker back that has not got all of its memory again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from inferx.agent.driver import Driver
from inferx.agent.link import WorkerLink
from inferx.agent.runtimes.protocol import Worker
from inferx.agent.sleepmode import SleepMode
from inferx.agent.tiers.accountant import Tier
from inferx.agent.vram import Vram, close_all
from inferx.errors import BadRequest, InferxError, Unavailable

HOOK_TIMEOUT_S = 30.0
TIERS = {"Mem": Tier.PINNED, "File": Tier.FILE, "Blob": Tier.BLOB}


class Lost(InferxError):
    """The worker has left its GPU and cannot come back; it has to be ended."""


@dataclass(frozen=True)
class Saved:
    """GPU memory that a snapshot has besides its files."""

    base: str  # of the ids in the tiers
    regions: Sequence[Mapping[str, Any]]


class GpuSide:
    """`url` is where the server listens; `driver` gives None where the devices are simulated."""

    def __init__(
        self,
        pod_id: str,
        folder: Path,
        vram: Vram,
        client: httpx.AsyncClient,
        url: Callable[[], str],
        driver: Callable[[], Driver | None],
    ) -> None:
        # Pod ids may have dots, ids in a store not.
        self.base = "pod-" + hashlib.sha256(pod_id.encode()).hexdigest()[:32]
        self.vram = vram
        self._driver = driver
        self._link = WorkerLink(folder, self._serve)
        self._sleep = SleepMode(client)
        self._url = url

    def open(self) -> None:
        """Be there for a worker that is about to start, or runs already."""
        self._link.open()

    def close(self) -> None:
        """The worker is gone, or not ours any more; its device memory is given back."""
        self._link.close()
        self.vram.release()

    @property
    def record(self) -> dict[str, Any]:
        """What the next agent needs to know of it."""
        return {
            "regions": [asdict(region) for region in self.vram.described],
            "asleep": self._sleep.asleep,
        }

    @property
    def saved_bytes(self) -> int:
        """What `keep` would take on the disk at most."""
        return sum(region.mib << 20 for region in self.vram.described if region.saved)

    # ---- leaving ----

    async def leave(self, worker: Worker, why: str) -> str:
        """Let the worker give its GPU up, running on without it; remarks for people to read.

        Raises InferxError when it cannot; it may have begun, so `come_back` has to be called.
        """
        remarks = [await self._sleep.sleep(self._url())]
        try:
            await self._link.ask({"do": "quiesce", "why": why}, timeout_s=HOOK_TIMEOUT_S)
        except Unavailable as error:
            if self.vram.described or why == "snapshot":
                raise  # it may still write to what is about to be taken from it
            remarks.append(error.message)
        driver = self._driver()
        if driver is not None:
            await driver.take_off(worker.pids())
        return "; ".join(remark for remark in remarks if remark)

    async def keep(self, base: str, identity: Mapping[str, Any], *, free: bool) -> Saved | None:
        """Save the memory of a worker that has left; None when there is none."""
        await self.vram.keep(base, identity, free=free)
        regions = [asdict(region) for region in self.vram.described]
        return Saved(base, regions) if regions else None

    def sink(self, standby: str) -> None:
        """Let what was kept go down to the tier of the function's `standby.gpu`."""
        self.vram.sink(self.base, TIERS[standby])

    # ---- coming back ----

    async def restore(self, saved: Saved | None = None) -> Tier | None:
        """The memory of a parked worker, or that of a snapshot, on the GPU again."""
        if saved is not None:
            self.vram.remember(saved.regions)
        return await self.vram.restore(saved.base if saved is not None else self.base)

    async def come_back(self, worker: Worker) -> None:
        """Let the worker go on with what it has on the GPU; raises InferxError when it cannot."""
        driver = self._driver()
        if driver is not None:
            await driver.put_back(worker.pids())
        regions, descriptors = self.vram.exported()
        try:
            command = {"do": "resume", "regions": regions}
            answer = await self._link.ask(command, descriptors, timeout_s=HOOK_TIMEOUT_S)
            if answer is None and regions:
                raise Unavailable("the worker does not listen any more for its memory")
        finally:
            close_all(descriptors)
        await self._sleep.wake(self._url())

    async def adopt(
        self, worker: Worker, record: Mapping[str, Any], state: str, tenant: str
    ) -> None:
        """Go on with the worker that a former agent left in that state of its pod.

        Raises InferxError when its memory is lost.
        """
        self.open()
        self._sleep.asleep = bool(record.get("asleep"))
        if state == "Standby":
            self.vram.remember(record.get("regions", ()))
            await self.vram.find_again(self.base, tenant)
            return
        await worker.thaw()
        await self._adopt_mapped(record)
        if state not in ("Creating", "Loading"):
            await self.come_back(worker)

    async def forget(self) -> None:
        """Drop the copies of a worker that runs again, or never will."""
        await self.vram.forget(self.base)

    # ---- inside ----

    async def _adopt_mapped(self, record: Mapping[str, Any]) -> None:
        """Take over the memory that a running worker has mapped."""
        answer = await self._link.ask({"do": "state"}, timeout_s=HOOK_TIMEOUT_S)
        if answer is None:
            if record.get("regions"):
                raise Unavailable("the worker does not answer for its GPU memory")
            return
        state, descriptors = answer
        try:
            self.vram.adopt(state.get("regions", ()), descriptors)
        except (KeyError, TypeError) as error:
            raise Unavailable(f"the worker's answer is not understood: {error!r}") from error
        finally:
            await asyncio.to_thread(close_all, descriptors)
        if state.get("unmapped"):
            raise Unavailable("the worker had left its GPU when the former agent ended")

    def _serve(self, request: Mapping[str, Any]) -> int | None:
        if request["do"] == "allocate":
            return self.vram.allocate(request)
        if request["do"] == "free":
            self.vram.free(str(request["name"]))
            return None
        raise BadRequest(f"{request['do']!r} is not known")
