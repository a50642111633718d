"""What every runtime offers the agent: start a worker, adopt one, and hold it in the hand.

Must never mention a particular runtime's tools.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from inferx.domain.cluster import Alloc
from inferx.domain.function import FunctionSpec


@dataclass(frozen=True)
class Exit:
    """How a worker ended; `code` None and `signal` None when nobody could see it."""

    code: int | None = None
    signal: int | None = None
    note: str = ""  # what else is known about the reason

    def __str__(self) -> str:
        how = "exited"
        if self.signal is not None:
            names = {number.value: number.name for number in signal.Signals}
            how = f"killed by {names.get(self.signal, f'signal {self.signal}')}"
        elif self.code is not None:
            how = f"exited with code {self.code}"
        return f"{how} ({self.note})" if self.note else how


@dataclass(frozen=True)
class WorkerSpec:
    """One worker to start: what to run, where, and what it may use."""

    pod_id: str
    launch: FunctionSpec
    alloc: Alloc
    folder: Path  # the pod's own folder; its log lies here
    host: str  # where it has to listen
    port: int

    @property
    def link(self) -> Path:
        """The folder of the sockets that it shares with the agent, if there is one."""
        return self.folder / "link"


class Worker(Protocol):
    """A running worker."""

    exited: asyncio.Future[Exit]
    host: str  # its address, as seen from this node

    @property
    def notes(self) -> tuple[str, ...]:
        """Limits that this runtime could not enforce, as sentences for the pod's status."""

    @property
    def record(self) -> Mapping[str, Any]:
        """What `Runtime.adopt` needs to find it again, as JSON."""

    def pids(self) -> list[int]:
        """Its processes, as this machine numbers them."""

    async def freeze(self) -> None:
        """Stop all of it from running, keeping its memory."""

    async def thaw(self) -> None:
        """Let it run on."""

    async def stop(self, grace_s: float) -> None:
        """Ask it to end, kill it after `grace_s`; returns when all of it is gone.

        Raises InferxError when something of it cannot be killed.
        """

    def let_go(self) -> None:
        """Forget it without ending it; it runs on without the agent."""


class Checkpoints(Protocol):
    """The part of a runtime that saves running workers to files and brings them back."""

    def identity(self, launch: FunctionSpec) -> Mapping[str, Any]:
        """What else an image depends on, as keys of a snapshot's identity: kernel, tool, image."""

    async def save(self, worker: Worker, target: Path) -> None:
        """Write the worker's image into the empty folder `target`; the worker runs on.

        Raises InferxError with the reason, the worker running on as if nothing had happened;
        what cannot work and a disk that is too full are found before the worker is paused.
        """

    async def restore(self, spec: WorkerSpec, image: Path) -> Worker:
        """A new worker from an image, which may be in use by others; raises StartFailed."""


class Runtime(Protocol):
    """A way to run workers."""

    name: str
    listen_host: str  # where workers have to listen to be reached
    checkpoints: Checkpoints | None

    def check(self, launch: FunctionSpec) -> None:
        """Raise BadRequest when this runtime cannot run such a function."""

    def port_for(self, launch: FunctionSpec, taken: Container[int]) -> int:
        """The port that the function's next worker listens on; `taken` ones belong to others."""

    async def start(self, spec: WorkerSpec) -> Worker:
        """Start it; raises StartFailed with the reason."""

    async def adopt(self, folder: Path, record: Mapping[str, Any]) -> Worker | None:
        """The running worker of a record, or None when it is gone (nothing is left of it then).

        An empty record means that it was never written: the worker of that folder is looked for.
        Raises Unavailable when it cannot be known whether it runs.
        """

    async def close(self) -> None:
        """Give up what it holds itself, such as connections; the workers run on."""
