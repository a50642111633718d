"""Processes taken off a GPU by its driver, and put back: CUDA's checkpoint calls, in their order.

Must never run a process on that is in an unknown state: whoever gets Broken has to kill it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Sequence

from inferx._ext import DeviceError, Gpu
from inferx.errors import InferxError, InvalidState, NotSupported

log = logging.getLogger("inferx.agent.driver")

LOCK_TIMEOUT_MS = 10_000
LOCK_TRIES = 2  # a process that just initialises CUDA is ready the second time
NOT_READY, UNSUPPORTED = 600, 801


class Broken(InferxError):
    """A process is stuck or failed; nothing but killing it helps."""


class Driver:
    """`holders` tells which processes the device is held by, as far as anybody can tell."""

    def __init__(self, gpu: Gpu, holders: Callable[[], Collection[int]] = tuple) -> None:
        self._gpu = gpu
        self._holders = holders

    def check(self) -> None:
        """Raise NotSupported when this driver cannot checkpoint processes."""
        try:
            self._gpu.process_state(os.getpid())
        except DeviceError as error:
            if error.args[1] == UNSUPPORTED:
                raise NotSupported(f"the GPU's driver is too old: {error.args[0]}") from error

    async def take_off(self, pids: Sequence[int]) -> None:
        """Move all GPU state of the processes to the host; they hold no GPU then.

        Raises InvalidState, the processes running on; Broken when they cannot.
        """
        await asyncio.to_thread(self._take_off, pids)

    async def put_back(self, pids: Sequence[int]) -> None:
        """The way back, for all processes that were taken off; raises Broken.

        All are restored before one runs on: they may share memory.
        """
        await asyncio.to_thread(self._put_back, pids)

    # ---- in a thread ----

    def _take_off(self, pids: Sequence[int]) -> None:
        users = [pid for pid in pids if self._state(pid) is not None]
        try:
            for pid in users:
                if self._state(pid) == "running":
                    self._lock(pid)
            for pid in users:
                if self._state(pid) == "locked":
                    self._call("checkpointed", self._gpu.process_checkpoint, pid)
        except InferxError as error:
            self._put_back(users)
            raise InvalidState(f"the GPU cannot be given up: {error.message}") from error
        left = sorted(set(self._holders()) & set(pids))
        if left:  # for example one that the driver does not know how to checkpoint
            self._put_back(users)
            raise InvalidState(f"the GPU cannot be given up: processes {left} hold it all the same")

    def _put_back(self, pids: Sequence[int]) -> None:
        users = [pid for pid in pids if self._state(pid) is not None]
        try:
            for pid in users:
                if self._state(pid) == "checkpointed":
                    self._call("restored", self._gpu.process_restore, pid)
            for pid in users:
                if self._state(pid) == "locked":
                    self._call("unlocked", self._gpu.process_unlock, pid)
        except InferxError as error:
            raise Broken(error.message) from error
        broken = [pid for pid in users if self._state(pid) != "running"]
        if broken:
            raise Broken(f"processes {broken} do not run on: the driver calls them failed")

    def _lock(self, pid: int) -> None:
        for left in reversed(range(LOCK_TRIES)):
            try:
                self._gpu.process_lock(pid, LOCK_TIMEOUT_MS)
                return
            except DeviceError as error:
                if error.args[1] != NOT_READY or not left:
                    raise InferxError(f"process {pid} is not locked: {error.args[0]}") from error

    def _call(self, what: str, call: Callable[[int], None], pid: int) -> None:
        try:
            call(pid)
        except DeviceError as error:
            raise InferxError(f"process {pid} is not {what}: {error.args[0]}") from error

    def _state(self, pid: int) -> str | None:
        """None for a process that does not use CUDA."""
        try:
            return self._gpu.process_state(pid)
        except DeviceError as error:
            if error.args[1] == UNSUPPORTED:
                raise NotSupported(f"the GPU's driver is too old: {error.args[0]}") from error
            return None
