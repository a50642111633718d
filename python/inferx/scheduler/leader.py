"""Which scheduler leads: the one whose object is in the store, kept there by a lease.

Must never claim to lead longer than the store says so, and never lead under an epoch twice.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from inferx.domain import codec
from inferx.domain.cluster import SchedulerRecord
from inferx.domain.meta import SYSTEM, Object
from inferx.domain.references import SCHEDULER_KEY
from inferx.errors import AlreadyExists, Conflict, InferxError, NotFound, Unavailable
from inferx.rpc import convert
from inferx.rpc import ixmeta_pb2 as pb
from inferx.store.informer import DELETED, Informer
from inferx.store.presence import Lease, State

LEASE_ANNOTATION = "inferx/lease"
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 1.0
_TENANT, _NAMESPACE, _NAME = SCHEDULER_KEY
_log = logging.getLogger(__name__)


class Leadership:
    """The way to the lead and the proof of it; `epoch` is 0 until `campaign` has succeeded.

    `led` is told the epoch and the monotonic time until which it is sure, after each renewal.

    The epoch is the revision that created the leader's object. Every write of this scheduler is
    guarded by it, agents refuse lower ones, and gateways drop grants of lower ones.
    """

    def __init__(
        self,
        state: State,
        address: str,
        ttl_ms: int,
        folder: Path,
        led: Callable[[int, float], None] = lambda epoch, until: None,
    ) -> None:
        self.epoch = 0
        self._led = led
        self._state = state
        self._address = address
        self._ttl_ms = ttl_ms
        self._lease: Lease | None = None
        self._dead = _Predecessor(folder)
        self._instance = uuid.uuid4().hex

    def leads(self) -> bool:
        """Whether this process leads, by its own clock; asks nobody."""
        return self._lease is not None and self.epoch > 0 and self._lease.valid()

    def require(self) -> None:
        """Raises Unavailable when this process does not lead: the caller looks for who does."""
        if not self.leads():
            raise Unavailable("this scheduler does not lead", retry_after_ms=100)

    async def campaign(self, leaders: Informer) -> int:
        """Wait until nobody leads and take the lead; returns the epoch."""
        self._dead.enter(self._instance)
        delay_s = RETRY_FIRST_S
        while True:
            try:
                await self._retire_dead()
                await _vacant(leaders)
                self.epoch = await self._try()
                return self.epoch
            except (AlreadyExists, Conflict, NotFound) as error:
                _log.info("another scheduler was faster: %s", error.message)
            except InferxError as error:
                _log.info("the lead cannot be asked for: %s", error.message)
            await asyncio.sleep(delay_s)
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    async def keep(self) -> None:
        """Keep the lead; returns when it is lost, before the store could give it to another."""
        assert self._lease is not None, "keep comes after campaign"
        await self._lease.keep()

    async def resign(self) -> None:
        """Give the lead up at once; a standby does not have to wait for the lease to end."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.end()
        self._dead.leave()

    async def _try(self) -> int:
        lease = await Lease.grant(self._state, self._ttl_ms)
        raw = SchedulerRecord(self._address, self._instance).to_raw()
        # Says which attempt of ours made it: what an earlier one left ends with a lease that
        # nobody renews.
        mine = {LEASE_ANNOTATION: str(lease.number)}
        obj = convert.to_proto(codec.new("scheduler", SCHEDULER_KEY, raw, annotations=mine))
        try:
            request = pb.CreateRequestMessage(obj=obj, lease=lease.number)
            answer = await self._state.objects.call("Create", request)
        except AlreadyExists:
            # Maybe by this very call, whose first answer was lost.
            current = await self._current()
            if current is None or current.meta.annotations != mine:
                await lease.end()
                raise
            revision = current.revision
        else:
            revision = int(answer.revision)
        if not lease.valid():
            raise Unavailable("the lease ended before the lead was there")
        self._lease = lease
        lease.tell(lambda until: self._led(revision, until))
        return revision

    async def _current(self) -> Object[SchedulerRecord] | None:
        request = pb.GetRequestMessage(
            obj_type="scheduler", tenant=_TENANT, namespace=_NAMESPACE, name=_NAME
        )
        try:
            answer = await self._state.objects.call("Get", request)
        except NotFound:
            return None
        return convert.from_proto(answer.obj)

    async def _retire_dead(self) -> None:
        """The lock on the folder proves that its former scheduler has ended: do not wait for it."""
        if not self._dead.instance:
            return
        current = await self._current()
        if current is not None and current.spec.instance == self._dead.instance:
            _log.info("the former scheduler of this folder is gone; its lead ends now")
            request = pb.DeleteRequestMessage(
                obj_type="scheduler", tenant=SYSTEM, namespace=SYSTEM, name=_NAME,
                expect_rev=current.revision,
            )  # fmt: skip
            await self._state.objects.call("Delete", request)
        self._dead.instance = ""


async def _vacant(leaders: Informer) -> None:
    """Wait until the store has no leader."""
    gone = asyncio.Event()

    def look(event: str, obj: object) -> None:
        if event == DELETED:
            gone.set()
        else:
            gone.clear()

    leaders.subscribe(look)
    try:
        if leaders.list():
            await gone.wait()
    finally:
        leaders.unsubscribe(look)


class _Predecessor:
    """The scheduler that used this folder before, which is known to be dead once we hold the lock.

    The lock dies with its process. Without it (two schedulers share a folder) nothing is claimed.
    """

    def __init__(self, folder: Path) -> None:
        self.instance = ""
        self._path = folder / "scheduler.lock"
        self._descriptor: int | None = None

    def enter(self, instance: str) -> None:
        """Take the lock, read who had it, write who has it."""
        if self._descriptor is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return
        self.instance = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
        os.pwrite(descriptor, f"{instance:<32}\n".encode(), 0)
        self._descriptor = descriptor

    def leave(self) -> None:
        """An orderly end: the next one has nothing to clear up."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
