"""A live copy of one kind of objects, fed by List+Watch of any IxMetaService.

Must never serve as a place to write, and never show nothing merely because a stream broke.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import grpc.aio

from inferx.domain.meta import Key, Object
from inferx.errors import InferxError
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc

ADDED, MODIFIED, DELETED = "added", "modified", "deleted"
Callback = Callable[[str, Object[Any]], None]

SLICE = 16  # objects that are reported before others have their turn
_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 2.0
_INIT_TIMEOUT_S = 30.0
_EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009 (the stubs do not know it)
_log = logging.getLogger(__name__)


class Informer:
    """The objects of `kind` (of one tenant or namespace) as `source` shows them.

    `source` is an address (host:port) or a channel. A broken stream is reopened with backoff; the
    copy stays, `connected` is False meanwhile, and the new list is compared with it: what is gone
    is reported as deleted. Every `verify_s` seconds the copy is compared with a fresh list, since
    a store may lose an event; `repairs` counts differences found that way.
    """

    def __init__(
        self,
        source: str | grpc.aio.Channel,
        kind: str,
        tenant: str = "",
        namespace: str = "",
        *,
        verify_s: float = 300.0,
        on_connection: Callable[[bool], None] | None = None,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self.connected = False
        self.fell_silent = False  # how the last connection ended: unheard, rather than closed
        self.repairs = 0
        self._owned = client.channel(source) if isinstance(source, str) else None
        channel = self._owned if isinstance(source, str) else source
        self._stub = ixmeta_pb2_grpc.IxMetaServiceStub(channel)  # type: ignore[no-untyped-call]
        self._request = ixmeta_pb2.ListRequestMessage(
            obj_type=kind, tenant=tenant, namespace=namespace, batched=True
        )
        self._objects: dict[Key, Object[Any]] = {}
        self._touched: set[Key] = set()  # changed by the stream since the last comparison began
        self._callbacks: list[Callback] = []
        # Of each subscriber that is still being told what there is: what it will hear of.
        self._untold: dict[Callback, set[Key]] = {}
        self._on_connection = on_connection
        self._verify_s = verify_s
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; `await informer.synced.wait()` waits for the first complete list."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"informer-{self.kind}")

    async def stop(self) -> None:
        """End the stream and close the channel if it is the informer's own."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._connection(False)
        if self._owned is not None:
            await self._owned.close(None)

    def get(self, key: Key) -> Object[Any] | None:
        """The object called (tenant, namespace, name), or None."""
        return self._objects.get(key)

    def list(self) -> list[Object[Any]]:
        """All objects, in no particular order."""
        return [*self._objects.values()]

    def subscribe(self, callback: Callback) -> None:
        """Call `callback(event, object)` for every change ("added", "modified", "deleted").

        Objects already known are reported as added at once. Callbacks run on the event loop and
        must not block; a deleted object is the last one known.
        """
        self._callbacks.append(callback)
        for obj in self.list():
            self._call(callback, ADDED, obj)

    async def subscribe_in_slices(self, callback: Callback) -> None:
        """Like `subscribe`, but everything else goes on while the known objects are reported, and
        what changes meanwhile is told as it is then. Returns when all have been reported."""
        untold = self._untold[callback] = set(self._objects)
        self._callbacks.append(callback)
        try:
            while untold:
                for _ in range(min(SLICE, len(untold))):
                    self._call(callback, ADDED, self._objects[untold.pop()])
                await asyncio.sleep(0)
        finally:
            del self._untold[callback]

    def unsubscribe(self, callback: Callback) -> None:
        """Call it no longer."""
        self._callbacks.remove(callback)

    def _call(self, callback: Callback, event: str, obj: Object[Any]) -> None:
        try:
            callback(event, obj)
        except Exception:
            _log.exception("a subscriber failed on %s of %s", event, obj.meta)

    def _tell(self, event: str, obj: Object[Any]) -> None:
        for callback in self._callbacks:
            untold = self._untold.get(callback, ())
            if obj.key not in untold:
                self._call(callback, event, obj)
            elif event == DELETED:
                self._untold[callback].remove(obj.key)  # it was never heard of

    def _connection(self, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            if self._on_connection is not None:
                self._on_connection(connected)

    async def _run(self) -> None:
        backoff_s = _BACKOFF_MIN_S
        while True:
            healthy = False
            try:
                healthy = await self._session()
                self.fell_silent = False
            except grpc.aio.AioRpcError as error:
                healthy = self.connected
                if healthy:
                    self.fell_silent = client.fell_silent(error)
                _log.info("watch of %s broke: %s", self.kind, client.typed(error))
            except InferxError as error:
                _log.warning("watch of %s: %s", self.kind, error)
            except Exception:
                # Whatever it was: a copy that is followed no more would be taken for the truth.
                _log.exception("watch of %s", self.kind)
            self._connection(False)
            backoff_s = _BACKOFF_MIN_S if healthy else min(backoff_s * 2, _BACKOFF_MAX_S)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311

    async def _session(self) -> bool:
        """One stream from its list to its end; True when it got past the list."""
        call = self._stub.Watch(self._request)
        seen: set[Key] = set()
        try:
            async with asyncio.timeout(_INIT_TIMEOUT_S):
                while True:
                    event = await call.read()
                    if event is _EOF:
                        return False
                    if event.event_type == ixmeta_pb2.INIT_DONE:
                        break
                    for message in event.batch or (event.obj,):
                        seen.add(_key(message))
                        self._apply(message, live=False)
        except TimeoutError:
            call.cancel()
            _log.warning("watch of %s: no complete list in %.0f s", self.kind, _INIT_TIMEOUT_S)
            return False
        for key in [key for key in self._objects if key not in seen]:
            self._forget(key)
        self._connection(True)
        self.synced.set()
        self._touched.clear()
        verifier = asyncio.create_task(self._verify())
        try:
            while (event := await call.read()) is not _EOF:
                self._touched.add(_key(event.obj))
                if event.event_type == ixmeta_pb2.DELETED:
                    self._deleted(event.obj)
                else:
                    self._apply(event.obj, live=True)
        finally:
            verifier.cancel()
            call.cancel()
        return True

    def _apply(self, message: ixmeta_pb2.Obj, live: bool) -> bool:
        """Take in one object; whether that changed the copy."""
        key = _key(message)
        known = self._objects.get(key)
        # Within a stream revisions only grow; a fresh list may come from a restarted source.
        stale = live and known is not None and message.revision < known.revision
        if known is not None and message.revision and (stale or message.revision == known.revision):
            return False
        try:
            obj = convert.from_proto(message)
        except InferxError as error:
            _log.error("%s %s cannot be read and is left out: %s", self.kind, key, error)
            return False
        if known == obj:
            return False
        self._objects[key] = obj
        self._tell(ADDED if known is None else MODIFIED, obj)
        return True

    def _deleted(self, message: ixmeta_pb2.Obj) -> None:
        known = self._objects.get(_key(message))
        if known is not None and not 0 < message.revision < known.revision:
            self._forget(known.key)

    def _forget(self, key: Key) -> None:
        self._tell(DELETED, self._objects.pop(key))

    async def _verify(self) -> None:
        """Compare the copy with a list, again and again, and mend what a lost event left wrong."""
        while True:
            await asyncio.sleep(self._verify_s * random.uniform(0.8, 1.2))  # noqa: S311
            before = dict(self._objects)
            self._touched.clear()
            try:
                answer = await client.call(self._stub.List, self._request, _INIT_TIMEOUT_S)
            except InferxError as error:
                _log.info("comparison of %s put off: %s", self.kind, error)
                continue
            listed = {_key(message): message for message in answer.objs}
            repaired = 0
            # What changed while the list travelled is settled by the stream, not by the list.
            for key in (before.keys() | listed.keys()) - self._touched:
                message, known = listed.get(key), before.get(key)
                if message is not None:
                    repaired += self._apply(message, live=True)
                elif known is not None and known.revision <= answer.revision:
                    self._forget(key)
                    repaired += 1
            if repaired:
                self.repairs += repaired
                _log.warning("the watch of %s had lost %d changes; mended", self.kind, repaired)


def _key(message: ixmeta_pb2.Obj) -> Key:
    return (message.tenant, message.namespace, message.name)
