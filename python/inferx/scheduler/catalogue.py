"""The durable record of snapshots: one object for each function and node with the task's state.

Must never decide anything: the core says how a task stands, and the agents' disks what is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from inferx.domain import codec
from inferx.domain.meta import Key
from inferx.domain.objects import Snapshot
from inferx.errors import AlreadyExists, Conflict, InferxError, NotFound, StaleEpoch, Unavailable
from inferx.rpc import convert
from inferx.rpc import ixmeta_pb2 as pb
from inferx.store.informer import Informer
from inferx.store.presence import State

RETRY_S = 0.5
# Nodes that have not told by then are gone, and what is recorded of them with them.
SWEEP_AFTER_S = 90.0
_AGAIN = (AlreadyExists, Conflict, Unavailable)
_log = logging.getLogger(__name__)


class Catalogue:
    """Snapshot objects in the store, written under `epoch` behind the core's news.

    Only the latest state of a task is written, so what waits is bounded by the tasks. `stale` is
    called when the store refuses a write because another scheduler leads.
    """

    def __init__(self, state: State, stale: Callable[[InferxError], None]) -> None:
        self.epoch = 0
        self._state = state
        self._stale = stale
        self._informer: Informer | None = None
        self._wanted: dict[Key, Snapshot] = {}
        self._pending: dict[Key, None] = {}
        self._woken = asyncio.Event()

    def follow(self, informer: Informer) -> None:
        """Read what is recorded."""
        self._informer = informer

    def note(self, news: Iterable[dict[str, Any]]) -> None:
        """Tasks as they are now, from the core."""
        for task in news:
            key = (task["tenant"], task["namespace"], name_of(task["funcname"], task["node"]))
            if "state" in task:
                self._wanted[key] = Snapshot(
                    funcname=task["funcname"],
                    fprevision=task["revision"],
                    node=task["node"],
                    state=task["state"],
                    size_mb=task["size_mib"],
                    failures=task["failures"],
                    reason=task["reason"],
                    tier=task["tier"],
                )
            else:
                self._wanted.pop(key, None)
            self._pending[key] = None
            self._woken.set()

    async def run(self) -> None:
        """Write what changes; runs until cancelled."""
        sweep_at: float | None = time.monotonic() + SWEEP_AFTER_S
        while True:
            try:
                left_s = None if sweep_at is None else max(0.0, sweep_at - time.monotonic())
                async with asyncio.timeout(left_s):
                    await self._woken.wait()
            except TimeoutError:
                sweep_at = None
                self._sweep()
            self._woken.clear()
            try:
                later = await self._write_pending()
            except Exception:
                # What it was about is not tried again before it changes; the others are.
                _log.exception("recording snapshots")
                later = True
            if later:
                await asyncio.sleep(RETRY_S)
                self._woken.set()

    def _sweep(self) -> None:
        """What a former scheduler recorded, and nobody told this one of, is over."""
        recorded = [] if self._informer is None else self._informer.list()
        for obj in recorded:
            if obj.key not in self._wanted:
                self._pending[obj.key] = None

    async def _write_pending(self) -> bool:
        """Whether something could not be written yet."""
        for key in list(self._pending):
            del self._pending[key]
            try:
                await self._write(key)
            except _AGAIN as error:
                _log.info("snapshot %s is recorded later: %s", "/".join(key), error.message)
                self._pending.setdefault(key)
                return True
            except NotFound as error:  # its namespace was deleted meanwhile
                _log.info("snapshot %s is not recorded: %s", "/".join(key), error.message)
            except StaleEpoch as error:
                self._stale(error)
            except InferxError as error:
                _log.error("snapshot %s cannot be recorded: %s", "/".join(key), error.message)
        return False

    async def _write(self, key: Key) -> None:
        """Bring one object in line; the informer knows what is recorded, maybe a moment late."""
        known = None if self._informer is None else self._informer.get(key)
        wanted = self._wanted.get(key)
        if wanted is None:
            await self._delete(key)
            return
        if known is not None and known.spec == wanted:
            return
        message = convert.to_proto(codec.new("snapshot", key, wanted.to_raw()))
        message.src_epoch = self.epoch
        if known is None:
            await self._state.objects.call("Create", pb.CreateRequestMessage(obj=message))
        else:
            update = pb.UpdateRequestMessage(obj=message, expect_rev=known.revision)
            await self._state.objects.call("Update", update)

    async def _delete(self, key: Key) -> None:
        tenant, namespace, name = key
        request = pb.DeleteRequestMessage(
            obj_type="snapshot",
            tenant=tenant,
            namespace=namespace,
            name=name,
            src_epoch=self.epoch,
        )
        try:
            await self._state.objects.call("Delete", request)
        except NotFound:
            _log.debug("snapshot %s is gone from the store already", name)


def name_of(function: str, node: str) -> str:
    """A name that no other function and node share: the last part has always the same length."""
    return f"{function}.{hashlib.blake2s(node.encode(), digest_size=4).hexdigest()}"
