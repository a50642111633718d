"""The state service: the only writer of objects. Admission, then one guarded transaction.

Must never keep state of its own; every answer comes from the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from inferx.config import NodeConfig
from inferx.domain import codec, references
from inferx.domain.meta import SYSTEM, Key, Meta, Object, check_name
from inferx.domain.objects import KINDS, Tenant
from inferx.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Disabled,
    Forbidden,
    InvalidState,
    NotFound,
    StaleEpoch,
    TenantLimit,
)
from inferx.rpc import convert, ixmeta_pb2, ixmeta_pb2_grpc
from inferx.rpc.server import Server, serve, set_warnings
from inferx.store import open_store
from inferx.store.beats import Beats
from inferx.store.crashpoint import CrashPoint, crashing
from inferx.store.initial import initial_events
from inferx.store.migrate import migrate
from inferx.store.objects import ObjectStore
from inferx.store.protocol import At, Empty, Guard, GuardFailed, Put, Quiet
from inferx.store.select import Selector

VERSION = "inferx-statesvc/0.1"
LEASE_MS_MIN = 500
LEASE_MS_MAX = 600_000
_ATTEMPTS = 8  # writes that collide with others are admitted anew this often
_log = logging.getLogger(__name__)


class Admission:
    """What may be written. Answers with guards that keep the answer true until the commit."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def write(
        self, obj: Object[Any], creating: bool, epoch: int = 0
    ) -> tuple[list[Guard], list[str]]:
        """Guards and warnings for writing `obj`; raises what forbids it.

        With `epoch` the writer is a scheduler that holds only while it leads.
        """
        guards = await self.leading(epoch) if epoch else []
        tenant: Tenant | None = None
        for parent in references.parents(obj.meta):
            stored = await self._objects.get(parent.kind, parent.key)
            name = f"{parent.kind} {parent.key[2]!r}"
            if stored is None:
                raise NotFound(f"{obj.meta}: {name} does not exist")
            spec = stored.object().spec
            if spec.disable and obj.kind not in ("pod", "snapshot"):
                raise Disabled(f"{obj.meta}: {name} is disabled")
            guards.append(At(self._objects.key(parent.kind, parent.key), stored.revision))
            if isinstance(spec, Tenant):
                tenant = spec
        if creating and obj.kind == "function" and tenant is not None:
            guards += await self._function_count(obj.meta, tenant)
        return guards, await self._missing_policy(obj)

    async def leading(self, epoch: int) -> list[Guard]:
        """The epoch is the revision that created the leader's object; nobody writes it again."""
        leader = await self._objects.get("scheduler", references.SCHEDULER_KEY)
        current = 0 if leader is None else leader.revision
        if current != epoch:
            raise StaleEpoch(f"the writer's epoch {epoch} is over; the current one is {current}")
        return [At(self._objects.key("scheduler", references.SCHEDULER_KEY), epoch)]

    async def _function_count(self, meta: Meta, tenant: Tenant) -> list[Guard]:
        allowed = tenant.limit.max_funccount
        if allowed is None:
            return []
        functions, revision = await self._objects.list("function", meta.tenant)
        if len(functions) >= allowed:
            raise TenantLimit(
                f"{meta}: tenant {meta.tenant!r} has {len(functions)} functions and may have "
                f"{allowed} (max_funccount)"
            )
        return [Quiet(self._objects.prefix("function", meta.tenant), revision)]

    async def _missing_policy(self, obj: Object[Any]) -> list[str]:
        candidates = references.linked_policies(obj)
        for key in candidates:
            if await self._objects.get("funcpolicy", key) is not None:
                return []
        if not candidates:
            return []
        _, namespace, name = candidates[0]
        tenants = " or ".join(repr(key[0]) for key in candidates)
        return [
            f"object.spec.policy.Link: no funcpolicy {namespace}/{name} in tenant {tenants}; "
            "the defaults apply until there is one"
        ]

    async def delete(self, kind: str, key: Key, epoch: int = 0) -> list[Guard]:
        """Guards for deleting; raises what forbids it."""
        leading = await self.leading(epoch) if epoch else []
        if references.is_built_in(kind, key):
            raise Forbidden(f"{Meta(kind, *key)} is built in and cannot be deleted")
        guards: list[Guard] = leading
        left: list[str] = []
        for child, tenant, namespace in references.children(kind, key):
            found, _ = await self._objects.list(child, tenant, namespace)
            if found:
                left.append(f"{len(found)} {child}{'s' if len(found) > 1 else ''}")
            guards.append(Empty(self._objects.prefix(child, tenant, namespace)))
        if left:
            raise InvalidState(f"{Meta(kind, *key)} still has {', '.join(left)}; delete them first")
        return guards


class StateService(ixmeta_pb2_grpc.IxMetaServiceServicer):
    """IxMetaService over a store, every known kind readable and writable."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._admission = Admission(objects)

    async def bootstrap(self) -> None:
        """Make the tenant `system` and its namespace if they are not there."""
        for kind in ("tenant", "namespace"):
            manifest = codec.dump_manifest(
                codec.new(kind, (SYSTEM, SYSTEM, SYSTEM), {"spec": {}, "status": {}})
            )
            try:
                await self._objects.create(manifest)
            except AlreadyExists:
                continue

    # ---- reads ----

    async def Version(self, request: Any, context: Any) -> ixmeta_pb2.VersionResponseMessage:
        """The service's name and version; also a cheap sign of life."""
        return ixmeta_pb2.VersionResponseMessage(version=VERSION)

    async def Uid(self, request: Any, context: Any) -> ixmeta_pb2.UidResponseMessage:
        """A number that no other call gets, larger than all before."""
        key = self._objects.key("uid", (SYSTEM, SYSTEM, "last"))
        return ixmeta_pb2.UidResponseMessage(
            uid=await self._objects.store.commit((), [Put(key, b"{}")])
        )

    async def Get(
        self, request: ixmeta_pb2.GetRequestMessage, context: Any
    ) -> ixmeta_pb2.GetResponseMessage:
        """One object, now or as of a revision."""
        _check_kind(request.obj_type)
        key = (request.tenant, request.namespace, request.name)
        stored = await self._objects.get(request.obj_type, key, request.revision)
        if stored is None:
            raise NotFound(f"{Meta(request.obj_type, *key)} does not exist")
        return ixmeta_pb2.GetResponseMessage(obj=stored.message())

    async def List(
        self, request: ixmeta_pb2.ListRequestMessage, context: Any
    ) -> ixmeta_pb2.ListResponseMessage:
        """Objects of a kind (of a tenant, of a namespace), now or as of a revision."""
        selector = _check_list(request)
        found, revision = await self._objects.list(
            request.obj_type, request.tenant, request.namespace, request.revision, selector
        )
        return ixmeta_pb2.ListResponseMessage(
            revision=revision, objs=[stored.message() for stored in found]
        )

    async def Watch(
        self, request: ixmeta_pb2.ListRequestMessage, context: Any
    ) -> AsyncIterator[ixmeta_pb2.WEvent]:
        """Changes after a revision; from 0, the objects now, INIT_DONE, then changes."""
        selector = _check_list(request)
        where = (request.obj_type, request.tenant, request.namespace)
        revision = request.revision
        if revision == 0:
            found, revision = await self._objects.list(*where, 0, selector)
            messages = (stored.message() for stored in found)
            for event in initial_events(messages, revision, request):
                yield event
        async for change in self._objects.watch(*where, revision, selector):
            yield ixmeta_pb2.WEvent(event_type=change.type, obj=change.stored.message())

    # ---- writes ----

    async def Create(
        self, request: ixmeta_pb2.CreateRequestMessage, context: Any
    ) -> ixmeta_pb2.CreateResponseMessage:
        """Write a new object."""
        obj, warnings = _parse(request.obj)
        epoch = _check_revision(request.obj.src_epoch, "src_epoch")
        for attempt in range(_ATTEMPTS):
            guards, missing = await self._admission.write(obj, True, epoch)
            try:
                manifest = codec.dump_manifest(obj)
                revision = await self._objects.create(manifest, guards, request.lease)
            except GuardFailed as error:
                _last_attempt(attempt, obj.meta, error)
                continue
            set_warnings(context, warnings + missing)
            _log.info("created %s at %d", obj.meta, revision)
            return ixmeta_pb2.CreateResponseMessage(revision=revision)
        raise AssertionError("unreachable")

    async def Update(
        self, request: ixmeta_pb2.UpdateRequestMessage, context: Any
    ) -> ixmeta_pb2.UpdateResponseMessage:
        """Replace an object last written at `expect_rev`, 0 = whatever it is now."""
        obj, warnings = _parse(request.obj)
        epoch = _check_revision(request.obj.src_epoch, "src_epoch")
        expect_rev = _check_revision(request.expect_rev, "expect_rev")
        for attempt in range(_ATTEMPTS):
            guards, missing = await self._admission.write(obj, False, epoch)
            try:
                manifest = codec.dump_manifest(obj)
                revision = await self._objects.update(manifest, expect_rev, guards, request.lease)
            except GuardFailed as error:
                _last_attempt(attempt, obj.meta, error)
                continue
            set_warnings(context, warnings + missing)
            _log.info("updated %s at %d", obj.meta, revision)
            return ixmeta_pb2.UpdateResponseMessage(revision=revision)
        raise AssertionError("unreachable")

    async def Delete(
        self, request: ixmeta_pb2.DeleteRequestMessage, context: Any
    ) -> ixmeta_pb2.DeleteResponseMessage:
        """Remove an object last written at `expect_rev`, 0 = whatever it is now."""
        _check_kind(request.obj_type)
        kind = request.obj_type
        key = (request.tenant, request.namespace, request.name)
        expect_rev = _check_revision(request.expect_rev, "expect_rev")
        epoch = _check_revision(request.src_epoch, "src_epoch")
        for attempt in range(_ATTEMPTS):
            guards = await self._admission.delete(kind, key, epoch)
            try:
                revision = await self._objects.delete(kind, key, expect_rev, guards)
            except GuardFailed as error:
                _last_attempt(attempt, Meta(kind, *key), error)
                continue
            _log.info("deleted %s at %d", Meta(kind, *key), revision)
            return ixmeta_pb2.DeleteResponseMessage(revision=revision)
        raise AssertionError("unreachable")


class LeaseService(ixmeta_pb2_grpc.IxLeaseServiceServicer):
    """IxLeaseService over a store: what keeps the objects of living processes."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats

    async def Grant(
        self, request: ixmeta_pb2.GrantLeaseRequest, context: Any
    ) -> ixmeta_pb2.GrantLeaseResponse:
        """A new lease."""
        if not LEASE_MS_MIN <= request.ttl_ms <= LEASE_MS_MAX:
            raise BadRequest(f"ttl_ms: {request.ttl_ms} is not {LEASE_MS_MIN} to {LEASE_MS_MAX}")
        lease, ttl_ms = await self._beats.grant(request.ttl_ms)
        return ixmeta_pb2.GrantLeaseResponse(lease=lease, ttl_ms=ttl_ms)

    async def Keep(
        self, request: ixmeta_pb2.KeepLeaseRequest, context: Any
    ) -> ixmeta_pb2.KeepLeaseResponse:
        """Renew; `NotFound` when it has ended."""
        return ixmeta_pb2.KeepLeaseResponse(ttl_ms=await self._beats.keep(request.lease))

    async def End(
        self, request: ixmeta_pb2.EndLeaseRequest, context: Any
    ) -> ixmeta_pb2.EndLeaseResponse:
        """End it now, with the objects under it."""
        await self._beats.end(request.lease)
        return ixmeta_pb2.EndLeaseResponse()


def _last_attempt(attempt: int, meta: Meta, error: GuardFailed) -> None:
    """After the last attempt the collision is the caller's to know."""
    if attempt + 1 == _ATTEMPTS:
        raise Conflict(f"{meta}: others keep changing it or its surroundings: {error}")


def _parse(message: ixmeta_pb2.Obj) -> tuple[Object[Any], list[str]]:
    _check_kind(message.kind)
    if message.ByteSize() > codec.MANIFEST_BYTES_MAX:
        raise BadRequest(f"object larger than {codec.MANIFEST_BYTES_MAX} bytes")
    manifest = convert.manifest_of(message)
    manifest["revision"] = 0
    return codec.read_manifest(manifest)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise BadRequest(f"unknown type {kind!r}; known are {', '.join(sorted(KINDS))}")


def _check_revision(revision: int, what: str) -> int:
    if revision < 0:
        raise BadRequest(f"{what}: must not be negative, got {revision}")
    return revision


def _check_list(request: ixmeta_pb2.ListRequestMessage) -> Selector:
    _check_kind(request.obj_type)
    _check_revision(request.revision, "revision")
    for name in ("tenant", "namespace"):
        if getattr(request, name):
            check_name(getattr(request, name), name)
    if request.namespace and not request.tenant:
        raise BadRequest("namespace: give the tenant too")
    return Selector(request.label_selector, request.field_selector)


class Running:
    """A started state service; `port` is where it listens."""

    def __init__(self, objects: ObjectStore, server: Server, beats: Beats) -> None:
        self._objects = objects
        self._beating = asyncio.create_task(beats.run(), name="beats")
        self._server = server
        self.port = server.port

    async def waits_for(self) -> str | None:
        """None when the store answers; raises what it says otherwise."""
        await self._objects.get("tenant", (SYSTEM, SYSTEM, SYSTEM))
        return None

    async def stop(self, grace_s: float = 2.0) -> None:
        """Drain the calls, then close the store."""
        await self._server.stop(grace_s)
        self._beating.cancel()
        await asyncio.gather(self._beating, return_exceptions=True)
        await self._objects.store.close()


async def start(config: NodeConfig) -> Running:
    """Open the configured store and serve it."""
    store = await open_store(config)
    beats = Beats(store, config.etcd.prefix)
    store = crashing(store, CrashPoint(config.crash_after_writes))
    objects = ObjectStore(store, config.etcd.prefix)
    try:
        await migrate(store, config.etcd.prefix)
        service, leases = StateService(objects), LeaseService(beats)
        await service.bootstrap()
        add: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
        add_leases: Any = ixmeta_pb2_grpc.add_IxLeaseServiceServicer_to_server
        server = await serve(
            f"{config.host_ip}:{config.statesvc_port}",
            [
                lambda target: add(service, target),
                lambda target: add_leases(leases, target),
            ],
        )
    except BaseException:
        await store.close()
        raise
    return Running(objects, server, beats)
