"""The ways to a worker, the quickest first: from the function's snapshot, else from nothing.

Must never let a worker pass that has not proved itself, nor let a snapshot cost a start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from inferx.agent.identity import Subject
from inferx.agent.runtimes.protocol import Runtime, Worker, WorkerSpec
from inferx.agent.snapshots import Snapshots
from inferx.errors import InferxError

log = logging.getLogger("inferx.agent.pod")


@dataclass(frozen=True)
class Steps:
    """What the ladder asks of its pod: `hold` makes a worker the pod's own, `prove` waits for its
    probe, `drop` ends it and forgets it, `note` says what is going on."""

    hold: Callable[[Worker], Worker]
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
            self._remark("", error)
            return False
        if image is None:
            return False
        steps.note("restoring its snapshot")
        try:
            await steps.prove(steps.hold(await checkpoints.restore(spec, image)))
        except InferxError as error:
            if steps.ending.is_set():
                raise
            self._remark("its snapshot failed: ", error)
            await snapshots.failed(subject, error)
            await steps.drop()
            return False
        snapshots.used(subject)
        return True

    def wants_snapshot(self, subject: Subject, permitted: bool | None) -> bool:
        """Whether the pod's worker should be saved before it serves."""
        return self._snapshots is not None and self._snapshots.wants(subject, permitted)

    async def save(self, subject: Subject, worker: Worker, *, must: bool) -> None:
        """Save the worker; with `must`, or when it has ended, a failure is raised."""
        if self._snapshots is None:
            return
        try:
            await self._snapshots.save(subject, worker)
        except InferxError as error:
            if must or worker.exited.done():
                raise
            self._remark("no snapshot: ", error)

    def _remark(self, what: str, error: InferxError) -> None:
        text = what + error.message.partition("\n")[0]
        log.warning("pod %s: %s", self._pod_id, text)
        self._remarks.append(text)
