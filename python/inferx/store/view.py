"""Objects that one process holds in memory and shows to others as an IxMetaService.

Must never be a source of truth: writes are refused, and nothing survives the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from inferx.domain.codec import dump_manifest
from inferx.domain.meta import Key, Meta, Object
from inferx.errors import BadRequest, Compacted, NotFound
from inferx.rpc import convert, ixmeta_pb2, ixmeta_pb2_grpc
from inferx.store.initial import initial_events
from inferx.store.select import Selector

_Place = tuple[str, Key]


class _Watcher:
    """What one watching client has not been sent yet: the newest event of each object."""

    def __init__(self) -> None:
        self.pending: dict[_Place, ixmeta_pb2.WEvent] = {}
        self.wake = asyncio.Event()

    def push(self, place: _Place, event: ixmeta_pb2.WEvent) -> None:
        waiting = self.pending.pop(place, None)
        if waiting is not None and waiting.event_type == ixmeta_pb2.ADDED:
            if event.event_type == ixmeta_pb2.DELETED:
                return  # the client has never heard of it
            event = ixmeta_pb2.WEvent(event_type=ixmeta_pb2.ADDED, obj=event.obj)
        elif waiting is not None and event.event_type == ixmeta_pb2.ADDED:
            event = ixmeta_pb2.WEvent(event_type=ixmeta_pb2.MODIFIED, obj=event.obj)
        self.pending[place] = event
        self.wake.set()


class ObjectView(ixmeta_pb2_grpc.IxMetaServiceServicer):
    """`put` and `remove` change the view; List, Watch and Get show it.

    Revisions are the view's own and grow across restarts (they start at the unix time in
    microseconds). Register with
    `lambda server: add_IxMetaServiceServicer_to_server(view, server)`.
    """

    def __init__(self, version: str = "", kinds: tuple[str, ...] = ("node", "pod")) -> None:
        self._version = version
        self._kinds = kinds
        self._objects: dict[_Place, ixmeta_pb2.Obj] = {}
        self._labels: dict[_Place, dict[str, Any]] = {}
        self._watchers: dict[_Watcher, ixmeta_pb2.ListRequestMessage] = {}
        self._revision = time.time_ns() // 1000

    @property
    def watchers(self) -> int:
        """How many clients follow the view now."""
        return len(self._watchers)

    def put(self, obj: Object[Any]) -> None:
        """Show this content of an object; nothing happens when it is shown already."""
        place = (obj.kind, obj.key)
        manifest = dump_manifest(obj)
        message = convert.message_of(manifest, 0)
        shown = self._objects.get(place)
        if shown is not None:
            message.revision = message.channel_rev = shown.revision
            if message == shown:
                return
        self._revision += 1
        message.revision = message.channel_rev = self._revision
        self._objects[place] = message
        kind = ixmeta_pb2.ADDED if shown is None else ixmeta_pb2.MODIFIED
        self._tell(place, manifest, ixmeta_pb2.WEvent(event_type=kind, obj=message))

    def remove(self, kind: str, key: Key) -> None:
        """Stop showing an object; nothing happens when it is not shown."""
        shown = self._objects.pop((kind, key), None)
        if shown is None:
            return
        self._revision += 1
        message = ixmeta_pb2.Obj()
        message.CopyFrom(shown)
        message.revision = message.channel_rev = self._revision
        event = ixmeta_pb2.WEvent(event_type=ixmeta_pb2.DELETED, obj=message)
        self._tell((kind, key), convert.manifest_of(shown), event)

    def _tell(self, place: _Place, manifest: dict[str, Any], event: ixmeta_pb2.WEvent) -> None:
        for watcher, request in self._watchers.items():
            if _wanted(request, place) and _selector(request).matches(manifest):
                watcher.push(place, event)

    def _select(self, request: ixmeta_pb2.ListRequestMessage) -> list[ixmeta_pb2.Obj]:
        if request.obj_type not in self._kinds:
            raise BadRequest(f"obj_type: {request.obj_type!r} is not one of {self._kinds}")
        selector = _selector(request)
        return [
            message
            for place, message in self._objects.items()
            if _wanted(request, place)
            and (not selector or selector.matches(convert.manifest_of(message)))
        ]

    async def Version(self, request: Any, context: Any) -> ixmeta_pb2.VersionResponseMessage:
        """The process's version."""
        return ixmeta_pb2.VersionResponseMessage(version=self._version)

    async def Get(
        self, request: ixmeta_pb2.GetRequestMessage, context: Any
    ) -> ixmeta_pb2.GetResponseMessage:
        """One object."""
        key = (request.tenant, request.namespace, request.name)
        found = self._objects.get((request.obj_type, key))
        if found is None:
            raise NotFound(f"{Meta(request.obj_type, *key)} does not exist")
        return ixmeta_pb2.GetResponseMessage(obj=found)

    async def List(
        self, request: ixmeta_pb2.ListRequestMessage, context: Any
    ) -> ixmeta_pb2.ListResponseMessage:
        """The objects now; older revisions are not kept."""
        if request.revision not in (0, self._revision):
            raise Compacted(f"only the current revision {self._revision} is kept")
        return ixmeta_pb2.ListResponseMessage(revision=self._revision, objs=self._select(request))

    async def Watch(
        self, request: ixmeta_pb2.ListRequestMessage, context: Any
    ) -> AsyncIterator[ixmeta_pb2.WEvent]:
        """The objects now, INIT_DONE, then changes; a slow client gets only the newest of each."""
        objects = self._select(request)
        if request.revision not in (0, self._revision):
            raise Compacted(f"changes after {request.revision} are not kept; watch from 0")
        watcher = _Watcher()
        self._watchers[watcher] = request
        started_at = self._revision
        try:
            if request.revision == 0:
                for initial in initial_events(objects, started_at, request):
                    yield initial
            while True:
                await watcher.wake.wait()
                watcher.wake.clear()
                events, watcher.pending = watcher.pending, {}
                for event in events.values():
                    yield event
        finally:
            del self._watchers[watcher]


def _wanted(request: ixmeta_pb2.ListRequestMessage, place: _Place) -> bool:
    kind, (tenant, namespace, _) = place
    return (
        kind == request.obj_type
        and request.tenant in ("", tenant)
        and request.namespace in ("", namespace)
    )


def _selector(request: ixmeta_pb2.ListRequestMessage) -> Selector:
    return Selector(request.label_selector, request.field_selector)
