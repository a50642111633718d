"""This gateway's object in the store: a new leader waits for gateways that have one, for no others.

Must be there before the first lease of a worker, and must not outlive the leases by much.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from inferx.config import NodeConfig
from inferx.domain import codec
from inferx.domain.meta import SYSTEM
from inferx.domain.objects import Gateway
from inferx.errors import InferxError, NotFound
from inferx.gateway.identity import Identity
from inferx.rpc import ixmeta_pb2 as pb
from inferx.store.presence import Presence, State

RETRY_S = 0.2
LIVES_MS = 10_000  # as long as leases do at the scheduler
_log = logging.getLogger(__name__)


class Registration:
    """`lapsed` is called when the object may have disappeared: the leases are over then, too."""

    def __init__(self, config: NodeConfig, identity: Identity, lapsed: Callable[[], None]) -> None:
        gateway_id = identity.gateway_id
        self._dead = identity.replaces
        self._state = State(config.state_svc_addrs)
        raw = Gateway(gateway_id, f"{config.host_ip}:{config.gateway_port}").to_raw()
        obj = codec.new("gateway", (SYSTEM, SYSTEM, object_name(gateway_id)), raw)
        self._presence = Presence(self._state, obj, LIVES_MS, lapsed)
        self._running = asyncio.create_task(self._run(), name="registration")

    async def done(self) -> None:
        """Wait until the object is there."""
        await self._presence.present.wait()

    async def _run(self) -> None:
        """First the objects of gateways of this folder that were killed: nobody waits for them."""
        while self._dead:
            request = pb.DeleteRequestMessage(
                obj_type="gateway",
                tenant=SYSTEM,
                namespace=SYSTEM,
                name=object_name(self._dead[-1]),
            )
            try:
                await self._state.objects.call("Delete", request)
            except NotFound:
                _log.debug("the registration of gateway %d has ended by itself", self._dead[-1])
            except InferxError as error:
                _log.info("the state service is not there: %s", error.message)
                await asyncio.sleep(RETRY_S)
                continue
            self._dead.pop()
        await self._presence.run()

    async def stop(self) -> None:
        """Remove the object; to be called when every lease was given back."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._presence.withdraw()
        await self._state.close()


def object_name(gateway_id: int) -> str:
    """The name of a gateway's object."""
    return f"g{gateway_id:016x}"
