"""The way to the scheduler that leads now, followed through the object of the leader.

Must never send a call to a scheduler that is known to be replaced.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio

from inferx.domain.meta import Object
from inferx.domain.objects import SchedulerRecord
from inferx.errors import Unavailable
from inferx.rpc import client, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.store.informer import DELETED, Informer

# A call on the way to a former leader may still end by itself; none is given more than this.
OLD_CHANNEL_S = 35.0
_log = logging.getLogger(__name__)


class LeaderLink:
    """`leases` and `pods` are stubs of the leader; `epoch` is its, 0 = `fallback` is assumed.

    `replaced` is set when another scheduler has taken over from the one that they lead to now; each
    leader has its own. Taken before a call, it tells afterwards whom the call has reached.
    """

    def __init__(self, state: grpc.aio.Channel, fallback: str) -> None:
        self.epoch = 0
        self.address = fallback
        self.replaced = asyncio.Event()
        self._closing: set[asyncio.Task[None]] = set()
        self._informer = Informer(state, "scheduler")
        self._connect()

    def _connect(self) -> None:
        self._channel = client.channel(self.address)
        leases: Any = na_pb2_grpc.SchedulerServiceStub
        pods: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self.leases, self.pods = leases(self._channel), pods(self._channel)

    async def start(self) -> None:
        """Begin to follow the leader."""
        self._informer.subscribe(self._changed)
        await self._informer.start()

    async def stop(self) -> None:
        """Close everything."""
        await self._informer.stop()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(None)

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        """The leader's answer to a call of its SchedulerService; Unavailable as soon as another one
        leads: the former may be frozen, and whatever it says is worth nothing."""
        call = asyncio.create_task(client.call(getattr(self.leases, method), request, timeout_s))
        replaced = asyncio.create_task(self.replaced.wait())
        try:
            await asyncio.wait((call, replaced), return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
            raise Unavailable("another scheduler has taken the lead")
        finally:
            for task in (call, replaced):
                task.cancel()
            await asyncio.gather(call, replaced, return_exceptions=True)

    def _changed(self, event: str, obj: Object[SchedulerRecord]) -> None:
        if event == DELETED or obj.revision <= self.epoch or not obj.spec.address:
            return  # until the next one is there, the former one's address is as good as any
        self.epoch, self.address = obj.revision, obj.spec.address
        _log.info("scheduler %s leads with epoch %d", self.address, self.epoch)
        old = self._channel
        self._connect()
        closing = asyncio.create_task(old.close(OLD_CHANNEL_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        replaced, self.replaced = self.replaced, asyncio.Event()
        replaced.set()
