"""The gateway put together: the data plane, its feeders, and the ASGI app of the control routes.

Must never be started twice in a process: it owns one event loop's channels and one data plane.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from inferx._ext import Proxy
from inferx.config import NodeConfig
from inferx.domain import codec
from inferx.domain.meta import SYSTEM
from inferx.domain.objects import Gateway as Record
from inferx.errors import InferxError
from inferx.gateway import replies
from inferx.gateway.functions import Functions
from inferx.gateway.identity import Identity
from inferx.gateway.leader import LeaderLink
from inferx.gateway.objects import ObjectRoutes
from inferx.gateway.plane import Pump
from inferx.gateway.views import ViewRoutes
from inferx.gateway.workers import Workers
from inferx.rpc import client
from inferx.store.presence import Presence, State

DRAIN_MS = 30_000
PRESENCE_MS = 10_000  # the life of a lease at the scheduler
_log = logging.getLogger(__name__)


def listen_host(config: NodeConfig) -> str:
    """The loopback address for a node that lives there, every address otherwise."""
    if ipaddress.ip_address(config.host_ip).is_loopback:
        return "127.0.0.1"
    return "0.0.0.0"  # noqa: S104 (a gateway is there to be reached)


class Gateway:
    """One gateway. `app` is its ASGI app; the data plane runs while the app's lifespan does."""

    def __init__(self, config: NodeConfig, control_socket: Path) -> None:
        self._identity = Identity(config.data_dir)
        self.startup_error: Exception | None = None
        self.port: int | None = None
        self._config = config
        self._proxy = Proxy(listen_host(config), config.gateway_port, control_socket)
        self.app = Starlette(
            lifespan=self._lifespan,
            middleware=[Middleware(replies.RequestIds)],
            exception_handlers={
                InferxError: replies.on_inferx_error,
                HTTPException: replies.on_http_error,
                Exception: replies.on_unexpected,
            },
        )
        self.app.router.redirect_slashes = False

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        try:
            # The port first: nothing else matters when it is taken.
            self.port = self._proxy.start()
        except Exception as error:
            self.startup_error = error
            raise
        state = client.channel(self._config.state_svc_addrs)
        link = LeaderLink(state, self._config.scheduler_addr)
        functions = Functions(self._proxy, state)
        workers = Workers(self._proxy, functions, link, self._identity)
        pump = Pump(self._proxy, workers.handle)
        app.router.routes[:] = [
            *ViewRoutes(functions, self._proxy.stats, state, link).routes(),
            *ObjectRoutes(functions, state).routes(),
        ]
        pump.start()
        registry = State(self._config.state_svc_addrs)
        presence = self._presence(registry, workers)
        registering = asyncio.create_task(presence.run(), name="registration")
        getting_ready = asyncio.create_task(self._get_ready(functions, workers, link, presence))
        _log.info("gateway %d listens on port %d", self._identity.gateway_id, self.port)
        try:
            yield
        finally:
            self._proxy.set_not_ready("the gateway is stopping")
            drained = await asyncio.to_thread(self._proxy.drain, DRAIN_MS)
            if not drained:
                _log.warning("some calls did not end within %d s and were cut", DRAIN_MS // 1000)
            for task in (getting_ready, registering):
                task.cancel()
            await asyncio.gather(getting_ready, registering, return_exceptions=True)
            await pump.stop()
            await workers.stop()
            await presence.withdraw()
            await registry.close()
            await link.stop()
            self._identity.release()
            await functions.stop()
            await state.close(None)

    def _presence(self, registry: State, workers: Workers) -> Presence:
        """This gateway's object: a new leader waits for those that have one, and for nobody else.

        It lives as long as leases do, so that one that has lapsed says: my leases are over, too.
        """
        gateway_id = self._identity.gateway_id
        address = f"{self._config.host_ip}:{self._config.gateway_port}"
        raw = Record(gateway_id, address).to_raw()
        obj = codec.new("gateway", (SYSTEM, SYSTEM, f"g{gateway_id:016x}"), raw)
        return Presence(
            registry, obj, PRESENCE_MS, lambda: workers.drop_all("the registration has lapsed")
        )

    async def _get_ready(
        self, functions: Functions, workers: Workers, link: LeaderLink, presence: Presence
    ) -> None:
        self._proxy.set_not_ready("the objects are not known yet: waiting for the state service")
        await functions.start()
        await link.start()
        # No lease before the registration: a new leader must know who may hold one.
        await presence.present.wait()
        workers.start()
        self._proxy.set_not_ready("waiting for the scheduler")
        await workers.connected.wait()
        self._proxy.set_not_ready(None)
        _log.info("gateway ready, %d functions", len(functions.all()))
