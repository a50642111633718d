"""The agent's own view of its node and pods, served as an IxMetaService with live events.

Must never be a second source of truth: it shows what the pods' tasks and the agent publish.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from inferx._ext import __version__
from inferx.errors import BadRequest, Compacted, Forbidden, NotFound
from inferx.rpc import ixmeta_pb2 as pb
from inferx.rpc import ixmeta_pb2_grpc

KINDS = ("node", "pod")
HISTORY_MAX = 1024

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Event:
    """A change: `kind` is one of ixmeta's event types, the object as it was after it."""

    kind: int
    obj: pb.Obj


class View:
    """Objects by (kind, tenant, namespace, name) and a short history of their changes.

    Revisions start at the wall clock's milliseconds, so that they grow over restarts as well.
    """

    def __init__(self, history_max: int = HISTORY_MAX) -> None:
        self._objects: dict[Key, pb.Obj] = {}
        self.revision = time.time_ns() // 1_000_000
        self._first_kept = self.revision + 1
        self._history: deque[Event] = deque()
        self._history_max = history_max
        self._changed = asyncio.Event()

    def publish(
        self,
        key: Key,
        data: Mapping[str, Any],
        labels: Mapping[str, str],
        annotations: Mapping[str, str],
    ) -> None:
        """Put the object's current form into the view."""
        kind, tenant, namespace, name = key
        obj = pb.Obj(
            kind=kind,
            tenant=tenant,
            namespace=namespace,
            name=name,
            labels=[pb.KV(key=label, val=value) for label, value in labels.items()],
            annotations=[pb.KV(key=label, val=value) for label, value in annotations.items()],
            data=orjson.dumps(data).decode(),
        )
        self._record(pb.MODIFIED if key in self._objects else pb.ADDED, obj)
        self._objects[key] = obj

    def remove(self, key: Key) -> None:
        """Take the object out of the view; one that is not there is fine."""
        last = self._objects.pop(key, None)
        if last is not None:
            gone = pb.Obj()
            gone.CopyFrom(last)
            self._record(pb.DELETED, gone)

    def get(self, key: Key) -> pb.Obj | None:
        """The object's current form."""
        return self._objects.get(key)

    def find(self, kind: str, tenant: str, namespace: str) -> list[pb.Obj]:
        """The objects of a kind; an empty tenant or namespace means all."""
        return [
            obj
            for obj in self._objects.values()
            if obj.kind == kind and tenant in ("", obj.tenant) and namespace in ("", obj.namespace)
        ]

    def since(self, revision: int) -> list[Event]:
        """Changes after a revision; raises Compacted when they are no longer all kept."""
        if revision + 1 < self._first_kept or revision > self.revision:
            raise Compacted(f"changes after revision {revision} are not kept, list again")
        return [event for event in self._history if event.obj.revision > revision]

    async def wait_after(self, revision: int) -> None:
        """Return once something has changed after a revision."""
        while self.revision <= revision:
            await self._changed.wait()

    def _record(self, kind: int, obj: pb.Obj) -> None:
        self.revision += 1
        obj.revision = obj.channel_rev = self.revision
        self._history.append(Event(kind, obj))
        if len(self._history) > self._history_max:
            self._first_kept = self._history.popleft().obj.revision + 1
        # Wake all who wait now; who comes later waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()


class ViewServicer(ixmeta_pb2_grpc.IxMetaServiceServicer):
    """IxMetaService over a view; reading only."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def Version(self, request: Any, context: Any) -> pb.VersionResponseMessage:
        return pb.VersionResponseMessage(version=__version__)

    async def Get(self, request: pb.GetRequestMessage, context: Any) -> pb.GetResponseMessage:
        _check_kind(request.obj_type)
        key = (request.obj_type, request.tenant, request.namespace, request.name)
        obj = self._view.get(key)
        if obj is None:
            raise NotFound(f"{request.obj_type} {'/'.join(key[1:])} is not on this node")
        return pb.GetResponseMessage(obj=obj)

    async def List(self, request: pb.ListRequestMessage, context: Any) -> pb.ListResponseMessage:
        _check_kind(request.obj_type)
        objs = self._view.find(request.obj_type, request.tenant, request.namespace)
        return pb.ListResponseMessage(revision=self._view.revision, objs=objs)

    async def Watch(self, request: pb.ListRequestMessage, context: Any) -> AsyncIterator[pb.WEvent]:
        """Revision 0: all objects, InitDone, then changes. Else the changes after that revision.

        Nothing is queued per watcher: a slow one is given the history and, once it is further
        behind than that, a Compacted error that makes it list again.
        """
        _check_kind(request.obj_type)
        revision = request.revision
        if revision == 0:
            revision = self._view.revision
            for obj in self._view.find(request.obj_type, request.tenant, request.namespace):
                yield pb.WEvent(event_type=pb.ADDED, obj=obj)
            yield pb.WEvent(event_type=pb.INIT_DONE)
        while True:
            for event in self._view.since(revision):
                revision = event.obj.revision
                if _wanted(event.obj, request):
                    yield pb.WEvent(event_type=pb.EventType.Name(event.kind), obj=event.obj)
            await self._view.wait_after(revision)

    async def Create(self, request: Any, context: Any) -> pb.CreateResponseMessage:
        raise Forbidden(READ_ONLY)

    async def Update(self, request: Any, context: Any) -> pb.UpdateResponseMessage:
        raise Forbidden(READ_ONLY)

    async def Delete(self, request: Any, context: Any) -> pb.DeleteResponseMessage:
        raise Forbidden(READ_ONLY)


READ_ONLY = "a node agent's view cannot be written; objects are written at the state service"


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise BadRequest(f"obj_type: {kind!r} is not one of {', '.join(KINDS)}")


def _wanted(obj: pb.Obj, request: pb.ListRequestMessage) -> bool:
    return (
        obj.kind == request.obj_type
        and request.tenant in ("", obj.tenant)
        and request.namespace in ("", obj.namespace)
    )
