"""Objects that say that their writer lives: kept under a lease of the store, renewed by a clock.

Must never count a lease as held longer than the store does: time runs from before the renewal was
sent, on the monotonic clock, and ends a margin early.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from inferx.domain.meta import Object
from inferx.errors import AlreadyExists, Conflict, InferxError, NotFound, Unavailable
from inferx.rpc import convert, ixmeta_pb2_grpc
from inferx.rpc import ixmeta_pb2 as pb
from inferx.rpc.replicas import Replicas
from inferx.store.crashpoint import CrashPoint

MARGIN = 0.1  # of a lease's life: what clocks may drift apart while it lasts
RENEWALS = 4  # in one life
# In one life, while nobody answers: a thousand holders wait for the same state service, and would
# keep it from the leader, whose life is short, if all of them came as soon as it is there.
ATTEMPTS = 10
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
_log = logging.getLogger(__name__)
_lease_stub: Any = ixmeta_pb2_grpc.IxLeaseServiceStub
_object_stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub


class State:
    """Objects and leases of the state service, at any of its addresses."""

    def __init__(self, addrs: Sequence[str], crash: CrashPoint | None = None) -> None:
        written = (CrashPoint(0) if crash is None else crash).written
        self.objects = Replicas(addrs, _object_stub, written)
        self.leases = Replicas(addrs, _lease_stub, written)

    async def close(self) -> None:
        """Close all channels."""
        await self.objects.close()
        await self.leases.close()


class Lease:
    """A lease of the store; `valid()` answers without asking anybody."""

    def __init__(self, state: State, number: int, ttl_s: float, until: float) -> None:
        self._state = state
        self.number = number
        self.ttl_s = ttl_s
        self._until = until
        self._told: Callable[[float], None] = lambda until: None

    def tell(self, told: Callable[[float], None]) -> None:
        """Call `told` now and after each change with the monotonic time until which it is valid."""
        self._told = told
        told(self._until)

    @classmethod
    async def grant(cls, state: State, ttl_ms: int) -> Lease:
        """A new lease. One whose answer was lost runs out by itself."""
        sent = time.monotonic()
        answer = await state.leases.call("Grant", pb.GrantLeaseRequest(ttl_ms=ttl_ms))
        ttl_s = answer.ttl_ms / 1000
        return cls(state, answer.lease, ttl_s, sent + ttl_s * (1 - MARGIN))

    def valid(self) -> bool:
        """Whether the store surely still holds it."""
        return time.monotonic() < self._until

    def left_s(self) -> float:
        """Seconds until `valid` turns false unless it is renewed."""
        return max(0.0, self._until - time.monotonic())

    async def keep(self) -> None:
        """Renew it again and again; returns when it has ended, or may have."""
        rest_s = self.ttl_s / RENEWALS
        while True:
            await asyncio.sleep(min(rest_s, self.left_s()))
            rest_s = self.ttl_s / RENEWALS
            if not self.valid():
                return
            sent = time.monotonic()
            try:
                request = pb.KeepLeaseRequest(lease=self.number)
                answer = await self._state.leases.call("Keep", request, self.left_s())
            except NotFound:
                return
            except InferxError as error:
                _log.info("lease %d was not renewed: %s", self.number, error.message)
                rest_s = max(RETRY_FIRST_S, self.ttl_s / ATTEMPTS)
                rest_s *= random.uniform(0.5, 1.5)  # noqa: S311
                continue
            self._until = sent + answer.ttl_ms / 1000 * (1 - MARGIN)
            self._told(self._until)

    async def end(self) -> None:
        """End it now with the objects under it; where that fails, time does it."""
        self._until = 0.0
        self._told(0.0)
        try:
            await self._state.leases.call("End", pb.EndLeaseRequest(lease=self.number), 1.0)
        except InferxError as error:
            _log.info("lease %d ends by itself: %s", self.number, error.message)


class Presence:
    """Keeps one object in the store as long as this process lives and can renew its lease."""

    def __init__(
        self, state: State, obj: Object[Any], ttl_ms: int, lapsed: Callable[[], None] | None = None
    ) -> None:
        self.present = asyncio.Event()
        self._state = state
        self._obj = obj
        self._ttl_ms = ttl_ms
        self._lapsed = lapsed
        self._lease: Lease | None = None

    async def run(self) -> None:
        """Runs until cancelled; `lapsed` is called each time the object may have disappeared."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                self._lease = await Lease.grant(self._state, self._ttl_ms)
                await self._put(self._lease)
                _log.log(logging.INFO, "%s is registered", self._obj.meta)
                self.present.set()
                delay_s = RETRY_FIRST_S
                await self._lease.keep()
                self._gone()
                continue
            except InferxError as error:
                # At the start of a platform it is normal that the others are not there yet.
                level = logging.WARNING if delay_s > 1 else logging.DEBUG
                _log.log(level, "%s is not registered yet: %s", self._obj.meta, error.message)
            except Exception:
                # Whatever it was: who is not registered is taken for dead.
                _log.exception("registering %s", self._obj.meta)
                if self.present.is_set():
                    self._gone()
            await asyncio.sleep(delay_s * random.uniform(0.8, 1.2))  # noqa: S311
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    def _gone(self) -> None:
        self.present.clear()
        _log.warning("the registration of %s has lapsed", self._obj.meta)
        if self._lapsed is not None:
            self._lapsed()

    def valid(self) -> bool:
        """Whether the object is surely still there."""
        return self._lease is not None and self._lease.valid()

    async def withdraw(self) -> None:
        """Remove the object at once; an orderly end."""
        if self._lease is not None:
            await self._lease.end()

    async def _put(self, lease: Lease) -> None:
        """Create the object or take it over, under the new lease."""
        tenant, namespace, name = self._obj.key
        kind, message = self._obj.kind, convert.to_proto(self._obj)
        get = pb.GetRequestMessage(obj_type=kind, tenant=tenant, namespace=namespace, name=name)
        try:
            found = await self._state.objects.call("Get", get)
        except NotFound:
            found = None
        try:
            if found is None:
                create = pb.CreateRequestMessage(obj=message, lease=lease.number)
                await self._state.objects.call("Create", create)
            else:
                update = pb.UpdateRequestMessage(
                    expect_rev=found.obj.revision, obj=message, lease=lease.number
                )
                await self._state.objects.call("Update", update)
        except (AlreadyExists, Conflict, NotFound) as error:
            # It changed between our two calls, or an answer was lost and the write was ours.
            raise Unavailable(f"the object changed meanwhile: {error.message}") from error
