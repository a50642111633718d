"""The gateway put together: the data plane, its feeders, and the ASGI app of the control routes.

Must never be started twice in a process: it owns one event loop's channels and one data plane.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from inferx._ext import Proxy
from inferx.audit import open_audit
from inferx.auth.apikeys import Hasher
from inferx.auth.authenticator import Authenticator
from inferx.auth.oidc import token_verifier
from inferx.auth.secretfile import key_secret
from inferx.config import NodeConfig
from inferx.errors import InferxError
from inferx.gateway import certificates, replies
from inferx.gateway.access import Access, GuardedRoute
from inferx.gateway.auditing import Auditor
from inferx.gateway.auditroutes import AuditRoutes
from inferx.gateway.callers import Callers
from inferx.gateway.dashboard import DashboardRoutes
from inferx.gateway.door import AsgiDoor
from inferx.gateway.functions import Functions
from inferx.gateway.identity import Identity
from inferx.gateway.keys import KeyRoutes
from inferx.gateway.leader import LeaderLink
from inferx.gateway.metrics import render
from inferx.gateway.objects import ObjectRoutes
from inferx.gateway.peers import Peers
from inferx.gateway.plane import Pump
from inferx.gateway.registration import Registration
from inferx.gateway.views import ViewRoutes
from inferx.gateway.workers import Workers
from inferx.rpc import client

DRAIN_MS = 30_000
# A little more than the data plane leaves to clients on kept connections when it drains.
LAST_REQUESTS_S = 1.5
# How long a gateway that is not ready leaves new connections to whoever shares its port.
HOLD_MAX_S = 10.0
Feeder = Callable[[], Awaitable[None]]
_log = logging.getLogger(__name__)


def listen_host(config: NodeConfig) -> str:
    """The loopback address for a node that lives there, every address otherwise."""
    if ipaddress.ip_address(config.host_ip).is_loopback:
        return "127.0.0.1"
    return "0.0.0.0"  # noqa: S104 # nosec B104 (a gateway is there to be reached)


class Gateway:
    """One gateway. `app` is its ASGI app; the data plane runs while the app's lifespan does."""

    def __init__(self, config: NodeConfig, control_socket: Path) -> None:
        self._identity = Identity(config.data_dir)
        self.takes_over = self._identity.beside_another
        self._stopping = asyncio.Event()
        self.startup_error: Exception | None = None
        self.port: int | None = None
        self._auditor: Auditor | None = None
        self._workers: Workers | None = None
        self._draining: asyncio.Task[None] | None = None
        self.control_socket = control_socket
        self.waits_for: str | None = "the data plane does not listen yet"
        self._config = config
        tokens = token_verifier(config.keycloak)
        hasher = Hasher(key_secret(config))
        self._authenticator = Authenticator(hasher, config.admin_apikey, tokens)
        self._proxy = Proxy(
            listen_host(config),
            config.gateway_port,
            control_socket,
            # Credentials are hashed under a number that only this process knows.
            auth_key=secrets.token_bytes(32) if config.auth.enable else None,
            share_port=self.takes_over,
            listen_fd=(config.listen_fd or None) if config.listener == "rust" else None,
            tls=(config.tls.cert, config.tls.key) if config.tls.enable else None,
        )
        control = Starlette(
            lifespan=self._lifespan,
            middleware=[Middleware(replies.RequestIds)],
            exception_handlers={
                InferxError: replies.on_inferx_error,
                HTTPException: replies.on_http_error,
                Exception: replies.on_unexpected,
            },
        )
        control.router.redirect_slashes = False
        self._door = AsgiDoor(self._proxy, control) if config.listener == "granian" else None
        self.app: ASGIApp = self._door or control

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        audit = open_audit(self._config)
        self._proxy.count_records_in(audit.tally)
        try:
            # The port first: nothing else matters when it is taken.
            self.port = self._open()
        except Exception as error:
            self.startup_error = error
            raise
        state = client.channel(self._config.state_svc_addrs)
        link = LeaderLink(state, self._config.scheduler_addr)
        functions = Functions(self._proxy, state)
        workers = self._workers = Workers(self._proxy, functions, link, self._identity)
        auditor = self._auditor = Auditor(audit, state, link)
        callers = Callers(self._proxy, self._authenticator, state, auditor.logged_in)
        pump = Pump(
            self._proxy,
            partial(_dispatch, workers, callers),
            partial(_account, auditor, callers),
            lambda lost: audit.lost(lost, "the data plane had no room for its records"),
        )
        app.router.routes[:] = self._routes(functions, callers, state, link, auditor)
        pump.start()
        certificate = asyncio.create_task(certificates.follow(self._proxy, self._config.tls))
        registration = Registration(
            self._config,
            self._identity,
            lambda: workers.drop_all("the registration has lapsed"),
        )
        # The link before the workers: they ask whoever leads.
        # The peers before the functions: limits are right from the first call on.
        peers = Peers(state, self._identity, functions.share_limits)
        feeders = (
            peers.start,
            functions.start,
            callers.start,
            link.start,
            auditor.start,
            registration.done,
        )
        getting_ready = asyncio.create_task(self._get_ready(functions, workers, feeders))
        try:
            if self._door is not None and (self.takes_over or self._config.listen_fd):
                await self._hold(getting_ready)
            _log.info("gateway %d listens on port %d", self._identity.gateway_id, self.port)
            yield
        finally:
            self.set_stopping()
            await (self._draining or self.cut_calls(DRAIN_MS))
            if self._door is not None:
                self._door.stop()
            for task in (getting_ready, certificate):
                task.cancel()
            await asyncio.gather(getting_ready, certificate, return_exceptions=True)
            await pump.stop()
            await workers.stop()
            await registration.stop()
            await auditor.stop()
            await link.stop()
            self._identity.release()
            await callers.stop()
            await functions.stop()
            await peers.stop()
            await state.close(None)

    def _routes(
        self,
        functions: Functions,
        callers: Callers,
        state: grpc.aio.Channel,
        link: LeaderLink,
        auditor: Auditor,
    ) -> list[GuardedRoute]:
        """All control routes, each with its row in the table of rights."""
        config, authenticator = self._config, self._authenticator
        access = Access(authenticator if config.auth.enable else None, auditor.refused)
        return [
            *DashboardRoutes(access).routes(),
            *KeyRoutes(authenticator, callers, state, access, config.keycloak, auditor).routes(),
            *AuditRoutes(auditor.audit.sink, access).routes(),
            *ViewRoutes(functions, self._proxy.stats, state, link, access, auditor).routes(),
            *ObjectRoutes(functions, state, access, auditor, config.mount_roots).routes(),
        ]

    def _open(self) -> int:
        if self._door is None:
            return self._proxy.start()
        self._door.start()
        return self._config.gateway_port

    async def _hold(self, getting_ready: asyncio.Task[None]) -> None:
        """Others may listen on the port: as the data plane's own listener, Granian, which listens
        when the app has started, accepts nobody before he can be served."""
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait(
            (getting_ready, stopping),
            timeout=HOLD_MAX_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        stopping.cancel()

    def set_stopping(self) -> None:
        """Tell load balancers; whoever calls still is served until the app's lifespan ends."""
        self._stopping.set()
        self._not_ready("the gateway is stopping")
        if self._workers is not None:
            self._workers.spare()

    async def leave(self) -> None:
        """Accept nobody any more. Returns when clients with kept connections have had time to send
        their last request, which may be for the control routes; open calls run on.

        Granian accepts until it is stopped, so everybody is told to connect anew the next time."""
        if self._door is not None:
            self._door.leave()
            await asyncio.sleep(LAST_REQUESTS_S)
            return
        self._draining = asyncio.create_task(self.cut_calls(DRAIN_MS), name="drain")
        await asyncio.wait((self._draining,), timeout=LAST_REQUESTS_S)

    async def cut_calls(self, after_ms: int) -> None:
        """Take no more calls, and end those that are still open after that time."""
        if not await asyncio.to_thread(self._proxy.drain, after_ms):
            _log.warning("some calls did not end within %d s and were cut", DRAIN_MS // 1000)

    def metrics(self) -> bytes:
        """The data plane's and this process's, in Prometheus text form."""
        if self._auditor is not None:
            self._auditor.meter.settle()
        return render(self._proxy.stats())

    def _not_ready(self, reason: str | None) -> None:
        self.waits_for = reason
        self._proxy.set_not_ready(reason)

    async def _get_ready(
        self, functions: Functions, workers: Workers, feeders: Iterable[Feeder]
    ) -> None:
        self._not_ready("the objects are not known yet: waiting for the state service")
        for feed in feeders:
            await feed()
        workers.start()
        self._not_ready("waiting for the scheduler")
        await workers.connected.wait()
        self._not_ready(None)
        _log.info("gateway ready, %d functions", len(functions.all()))


def _dispatch(workers: Workers, callers: Callers, event: tuple[Any, ...]) -> None:
    """One event of the data plane to whom it concerns."""
    if event[0] == "need_verdict":
        callers.judge(event[1], event[2])
    else:
        workers.handle(event)


def _account(auditor: Auditor, callers: Callers, record: dict[str, Any]) -> None:
    """One record of the data plane to those who keep accounts."""
    auditor.called(record)
    auditor.audit.told()
    if record["outcome"] != "refused":
        callers.used(record["principal"])
