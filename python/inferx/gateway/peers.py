"""The gateways that live: each takes an equal part of what a tenant may have of the data planes.

Must never take more than a part while another gateway may be serving: when in doubt it lives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc.aio

from inferx.domain.meta import Object
from inferx.gateway.identity import Identity
from inferx.gateway.registration import object_name
from inferx.store.informer import DELETED, Informer

_log = logging.getLogger(__name__)


class Peers:
    """Follows the gateways' objects; `tell(gateways, rank)` says how many and which this one is.

    A gateway registers before it serves, and its object outlives it by seconds at most. While the
    state service is away the last known gateways count.
    """

    def __init__(
        self, channel: grpc.aio.Channel, identity: Identity, tell: Callable[[int, int], None]
    ) -> None:
        self._name = object_name(identity.gateway_id)
        self._names = {self._name}
        self._tell = tell
        self._told = (1, 0)
        self._informer = Informer(channel, "gateway")
        self._informer.subscribe(self._changed)

    async def start(self) -> None:
        """Begin to follow; returns when all are known."""
        await self._informer.start()
        await self._informer.synced.wait()

    async def stop(self) -> None:
        """End the stream."""
        await self._informer.stop()

    def _changed(self, event: str, obj: Object[Any]) -> None:
        if event != DELETED:
            self._names.add(obj.meta.name)
        elif obj.meta.name != self._name:
            self._names.discard(obj.meta.name)
        part = (len(self._names), sorted(self._names).index(self._name))
        if part != self._told:
            self._told = part
            _log.info("%d gateways share the tenants' limits", part[0])
            self._tell(*part)
