"""The ways to a worker, the quickest first: from the function's snapshot, else from nothing.

Must never let a worker pass that has not proved itself, nor let a snapshot cost a start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferx.agent.gpuside import GpuSide, Lost, Saved
from inferx.agent.identity import Subject
from inferx.agent.runtimes.protocol import Checkpoints, Runtime, Worker, WorkerSpec
from inferx.agent.snapshots import Snapshots
from inferx.errors import InferxError, Unavailable

log = logging.getLogger("inferx.agent.pod")


@dataclass(frozen=True)
class Steps:
    """What the ladder asks of its pod: `load` brings GPU memory back, `hold` makes a worker the
    pod's own, `wake` lets it go on with that memory, `prove` waits for its probe, `drop` ends it
    and forgets it, `note` says what is going on."""

    hold: Callable[[Worker], Worker]
    load: Callable[[Saved | None], Coroutine[Any, Any, None]]
    wake: Callable[[Worker], Coroutine[Any, Any, None]]
    prove: Callable[[Worker], Coroutine[Any, Any, None]]
    drop: Callable[[], Coroutine[Any, Any, None]]
    note: Callable[[str], None]
    ending: asyncio.Event


class Ladder:
    """One pod's way; `remarks` are the reasons why it was not the quickest one."""

    def __init__(
        self, pod_id: str, runtime: Runtime, snapshots: Snapshots | None, steps: Steps
    ) -> None:
        self._pod_id = pod_id
        self._checkpoints = runtime.checkpoints
        self._snapshots = snapshots
        self._steps = steps
        self._remarks: list[str] = []

    def say(self, what: str = "") -> str:
        """What is shown as the pod's reason: the step, and what went wrong on the way to it."""
        return "; ".join(part for part in (what, *self._remarks) if part)

    def remark(self, what: str, error: InferxError) -> None:
        """Note why a way was not taken."""
        text = what + error.message.partition("\n")[0]
        log.warning("pod %s: %s", self._pod_id, text)
        self._remarks.append(text)

    async def restored(self, subject: Subject, spec: WorkerSpec) -> bool:
        """Whether a worker from the function's snapshot runs and has proved itself; otherwise
        nothing is left of it, and the reason is among the remarks.

        Raises only when the pod is told to end meanwhile, or when what failed cannot be ended.
        """
        snapshots, checkpoints, steps = self._snapshots, self._checkpoints, self._steps
        if snapshots is None or checkpoints is None:
            return False
        try:
            image = await snapshots.find(subject)
        except InferxError as error:
            self.remark("", error)
            return False
        if image is None:
            return False
        steps.note("restoring its snapshot")
        try:
            await self._come_back(checkpoints, spec, image, snapshots.memory_of(subject))
        except InferxError as error:
            if steps.ending.is_set():
                raise
            self.remark("its snapshot failed: ", error)
            await snapshots.failed(subject, error)
            await steps.drop()
            return False
        snapshots.used(subject)
        return True

    async def make_room(self, needed_bytes: int) -> None:
        """Let old snapshots go for a standby's memory, as far as the budget can hold it."""
        if self._snapshots is not None and needed_bytes:
            with contextlib.suppress(Unavailable):  # it may fit into the pinned pool
                await self._snapshots.make_room(needed_bytes)

    def wants_snapshot(self, subject: Subject, permitted: bool | None) -> bool:
        """Whether the pod's worker should be saved before it serves."""
        return self._snapshots is not None and self._snapshots.wants(subject, permitted)

    async def save(self, subject: Subject, worker: Worker, gpu: GpuSide, *, must: bool) -> None:
        """Save the worker; with `must`, or when it cannot serve any more, a failure is raised."""
        if self._snapshots is None:
            return
        try:
            await self._snapshots.save(subject, worker, gpu)
        except InferxError as error:
            if must or worker.exited.done() or isinstance(error, Lost):
                raise
            self.remark("no snapshot: ", error)

    async def _come_back(
        self, checkpoints: Checkpoints, spec: WorkerSpec, image: Path, memory: Saved | None
    ) -> None:
        """The process and its GPU memory, side by side."""
        steps = self._steps
        restored, loaded = await asyncio.gather(
            checkpoints.restore(spec, image), steps.load(memory), return_exceptions=True
        )
        if isinstance(restored, BaseException):
            raise restored
        worker = steps.hold(restored)
        if loaded is not None:
            raise loaded
        await steps.wake(worker)
        await steps.prove(worker)
