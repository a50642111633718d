"""Routes of objects: create, update, read, delete and list through the state service.

Must never write to a store; the state service is the only writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc.aio
from starlette.requests import Request
from starlette.responses import Response

from inferx.auth import Place
from inferx.domain.codec import dump_manifest, parse_manifest
from inferx.domain.meta import SYSTEM, Key, Object
from inferx.domain.objects import KINDS
from inferx.domain.redaction import HIDDEN, hidden_names, redacted, restored
from inferx.errors import BadRequest, Forbidden, NotFound
from inferx.gateway.access import Access, GuardedRoute, caller_of, place_of, visible
from inferx.gateway.auditing import Auditor
from inferx.gateway.backends import ask, write
from inferx.gateway.functions import Functions
from inferx.gateway.mounts import check_mounts
from inferx.gateway.replies import body, names, number, reply, segments
from inferx.rpc import convert, ixmeta_pb2, ixmeta_pb2_grpc

WRITABLE = frozenset({"tenant", "namespace", "function", "funcpolicy"})
HOMELESS = frozenset({"tenant", "node", "scheduler"})
STATE = "state service"
_NAME_PARTS = ("type", "tenant", "namespace", "name")


def check_kind(kind: str, *, writing: bool = False) -> str:
    """`kind` when it exists and, for writing, when it is not the platform's own."""
    if kind not in KINDS:
        raise BadRequest(f"type: unknown type {kind!r}; known are {', '.join(sorted(KINDS))}")
    if writing and kind not in WRITABLE:
        raise Forbidden(f"type: objects of type {kind!r} are written by the platform itself")
    return kind


class ObjectRoutes:
    """`/object/...` and `/objects/...`."""

    def __init__(
        self,
        functions: Functions,
        state: grpc.aio.Channel,
        access: Access,
        auditor: Auditor,
        mount_roots: Sequence[str] = (),
    ) -> None:
        self._auditor = auditor
        self._mount_roots = mount_roots
        self._functions = functions
        self._access = access
        self._stub = ixmeta_pb2_grpc.IxMetaServiceStub(state)  # type: ignore[no-untyped-call]

    def routes(self) -> list[GuardedRoute]:
        """The routes of this part."""
        route, path = self._access.route, "/object/{path:path}"
        return [
            route(path, self.create, ["PUT"], _written_action, _written_place),
            route(path, self.update, ["POST"], _written_action, _written_place),
            route(path, self.delete, ["DELETE"], _deleted_action, _named_place),
            route(path, self.read, ["GET"], _read_action, _named_place),
            route("/objects/{path:path}", self.list, ["GET"], "object.list", _listed_place),
        ]

    async def create(self, request: Request) -> Response:
        """PUT: a new object."""
        obj, warnings = await _manifest(request)
        check_mounts(caller_of(request), obj, self._mount_roots)
        _check_not_hidden(obj)
        message = ixmeta_pb2.CreateRequestMessage(obj=convert.to_proto(obj))
        answer, more = await write(STATE, self._stub.Create, message)
        self._auditor.changed(request, "create", _at(obj, answer.revision))
        return await self._written(obj, answer.revision, warnings + more, 201)

    async def update(self, request: Request) -> Response:
        """POST: replaces an object that was last written at the envelope's `revision`, if given.

        What is stored already is left as it is: a new revision would end a function's workers and
        snapshots, and only the stored object has the secrets to compare with.
        """
        obj, warnings = await _manifest(request)
        check_mounts(caller_of(request), obj, self._mount_roots)
        before = await self._stored(obj.kind, obj.key)
        if hidden_names(dump_manifest(obj)):
            obj, _ = parse_manifest(restored(dump_manifest(obj), before))
        _check_not_hidden(obj)
        if before is not None and _is_stored(obj, before):
            return await self._written(obj, before["revision"], warnings, 200)
        message = ixmeta_pb2.UpdateRequestMessage(
            expect_rev=obj.revision, obj=convert.to_proto(obj)
        )
        answer, more = await write(STATE, self._stub.Update, message)
        self._auditor.changed(request, "update", _at(obj, answer.revision), before)
        return await self._written(obj, answer.revision, warnings + more, 200)

    async def _written(
        self, obj: Object[Any], revision: int, warnings: list[str], status: int
    ) -> Response:
        await self._functions.seen(obj.kind, obj.key, revision)
        manifest = redacted(_at(obj, revision))
        if warnings:
            manifest["warnings"] = list(dict.fromkeys(warnings))
        return reply(manifest, status)

    async def read(self, request: Request) -> Response:
        """GET: one object, now or as of `?revision=`."""
        kind, tenant, namespace, name = names(request, *_NAME_PARTS)
        message = ixmeta_pb2.GetRequestMessage(
            obj_type=check_kind(kind),
            tenant=tenant,
            namespace=namespace,
            name=name,
            revision=number(request.query_params.get("revision", "0"), "revision"),
        )
        answer = await ask(STATE, self._stub.Get, message)
        return reply(redacted(convert.manifest_of(answer.obj)))

    async def _stored(self, kind: str, key: Key) -> dict[str, Any] | None:
        """The object as it is now, for the difference and for what was read as ***."""
        tenant, namespace, name = key
        message = ixmeta_pb2.GetRequestMessage(
            obj_type=kind, tenant=tenant, namespace=namespace, name=name
        )
        try:
            return convert.manifest_of((await ask(STATE, self._stub.Get, message)).obj)
        except NotFound:
            return None

    async def delete(self, request: Request) -> Response:
        """DELETE: removes an object, if `?revision=` is given only at that revision."""
        kind, tenant, namespace, name = names(request, *_NAME_PARTS)
        message = ixmeta_pb2.DeleteRequestMessage(
            obj_type=check_kind(kind, writing=True),
            tenant=tenant,
            namespace=namespace,
            name=name,
            expect_rev=number(request.query_params.get("revision", "0"), "revision"),
        )
        before = await self._stored(kind, (tenant, namespace, name))
        answer = await ask(STATE, self._stub.Delete, message)
        if before is not None:
            self._auditor.changed(request, "delete", before, before)
        await self._functions.seen(kind, (tenant, namespace, name), None)
        return reply({"revision": answer.revision})

    async def list(self, request: Request) -> Response:
        """GET: all objects of a type, of a tenant, of a namespace."""
        kind, tenant, namespace = _listed(request)
        message = ixmeta_pb2.ListRequestMessage(
            obj_type=check_kind(kind),
            tenant=tenant,
            namespace=namespace,
            label_selector=request.query_params.get("label_selector", ""),
            field_selector=request.query_params.get("field_selector", ""),
        )
        answer = await ask(STATE, self._stub.List, message)
        caller = caller_of(request)
        shown = [obj for obj in answer.objs if visible(caller, obj.kind, _key(obj))]
        return reply([redacted(convert.manifest_of(obj)) for obj in shown])


def _at(obj: Object[Any], revision: int) -> dict[str, Any]:
    return {**dump_manifest(obj), "revision": revision}


def _is_stored(obj: Object[Any], before: dict[str, Any]) -> bool:
    """Whether an update would change nothing; a revision that is not the stored one conflicts."""
    stored, _ = parse_manifest(before)
    return obj.revision in (0, stored.revision) and _at(obj, 0) == _at(stored, 0)


def _check_not_hidden(obj: Object[Any]) -> None:
    """A value that was read as *** must not become the value."""
    hidden = hidden_names(dump_manifest(obj)) if obj.kind == "function" else []
    if hidden:
        raise BadRequest(f"object.spec.envs: {hidden[0]!r} is {HIDDEN}, and no value is stored")


def _key(obj: ixmeta_pb2.Obj) -> Key:
    return (obj.tenant, obj.namespace, obj.name)


def _listed(request: Request) -> tuple[str, str, str]:
    """Type, tenant and namespace of a list; "" = all."""
    expected = ("type", "tenant", "namespace")
    count = min(max(len(segments(request)) - 1, 1), 3)
    kind, tenant, namespace = [*names(request, *expected[:count]), "", ""][:3]
    return kind, tenant, namespace


def _listed_place(request: Request) -> Place:
    kind, tenant, namespace = _listed(request)
    if check_kind(kind) in HOMELESS:
        # They all live in one place; which of them are shown depends on what they are.
        return Place(title=f"objects of type {kind}")
    if kind == "namespace" and namespace == SYSTEM:
        return Place(tenant, "", f"namespaces of {tenant}")
    return Place(tenant, namespace)


def _read_action(request: Request) -> str:
    return f"{check_kind(names(request, *_NAME_PARTS)[0])}.read"


def _deleted_action(request: Request) -> str:
    return f"{check_kind(names(request, *_NAME_PARTS)[0], writing=True)}.write"


def _named_place(request: Request) -> Place:
    kind, tenant, namespace, name = names(request, *_NAME_PARTS)
    return place_of(kind, tenant, namespace, name)


async def _written_action(request: Request) -> str:
    obj, _ = await _manifest(request)
    return f"{obj.kind}.write"


async def _written_place(request: Request) -> Place:
    obj, _ = await _manifest(request)
    return place_of(obj.kind, *obj.key)


async def _manifest(request: Request) -> tuple[Object[Any], list[str]]:
    """The object in a request's body; the path may repeat its type and names, or leave them out."""
    cached: tuple[Object[Any], list[str]] | None = getattr(request.state, "manifest", None)
    if cached is not None:
        return cached
    obj, warnings = parse_manifest(await body(request))
    check_kind(obj.kind, writing=True)
    given = segments(request)[1:]
    actual = [obj.kind, *obj.key]
    if given and given != actual[: len(given)]:
        raise BadRequest(f"the path names {'/'.join(given)}, the body {'/'.join(actual)}")
    request.state.manifest = (obj, warnings)
    return obj, warnings
