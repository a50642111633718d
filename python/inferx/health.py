"""The probes' and Prometheus' port of a service: `/healthz`, `/readyz`, `/metrics`.

Must never make liveness depend on another process: a restart does not bring a dependency back.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from granian.constants import Interfaces
from granian.server.embed import Server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inferx import telemetry
from inferx.config import NodeConfig
from inferx.errors import InferxError, Unavailable

Check = Callable[[], "str | Awaitable[str | None] | None"]
"""Says what the service waits for, None when it can serve."""

CHECK_SECONDS_MAX = 2.0  # below the probes' own timeout, so that they hear the reason
STOP_SECONDS = 2.0
_log = logging.getLogger(__name__)
_ready = telemetry.gauge("ready", "1 while this process can serve")


class Health:
    """What the probes are told. Not ready until `ready_when` says how to find out."""

    def __init__(self, metrics: Callable[[], bytes] = telemetry.metrics_text) -> None:
        self._metrics = metrics
        self._check: Check = lambda: "the service is starting"
        self.app = Starlette(
            routes=[
                Route("/healthz", self._alive),
                Route("/readyz", self._readiness),
                Route("/metrics", self._show_metrics),
            ]
        )

    def ready_when(self, check: Check) -> None:
        """From now on `check` is asked at each probe."""
        self._check = check

    def metrics_from(self, metrics: Callable[[], bytes]) -> None:
        """Another source of the Prometheus text than this process's registry."""
        self._metrics = metrics

    async def waits_for(self) -> str | None:
        """What keeps the service from serving; also what a failed or slow check says."""
        try:
            found = self._check()
            if inspect.isawaitable(found):
                found = await asyncio.wait_for(found, CHECK_SECONDS_MAX)
        except InferxError as error:
            found = error.message
        except TimeoutError:
            found = f"no answer within {CHECK_SECONDS_MAX:.0f} s from what this service needs"
        _ready.set(found is None)
        return found

    async def _alive(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _readiness(self, request: Request) -> Response:
        reason = await self.waits_for()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "reason": reason}, 503)

    async def _show_metrics(self, request: Request) -> Response:
        await self.waits_for()
        return Response(self._metrics(), media_type="text/plain; version=0.0.4")


@asynccontextmanager
async def serving(config: NodeConfig) -> AsyncIterator[Health]:
    """Serve inside the block, if `metricsPort` is set. Raises `Unavailable` for a taken port."""
    health = Health()
    if not config.metrics_port:
        yield health
        return
    server = Server(
        health.app,
        address=config.host_ip,
        port=config.metrics_port,
        interface=Interfaces.ASGINL,
        websockets=False,
        log_enabled=False,
    )
    task = asyncio.create_task(server.serve(), name="health")
    await asyncio.sleep(0)  # it binds in its first step
    if task.done():
        address = f"{config.host_ip}:{config.metrics_port}"
        raise Unavailable(f"cannot listen on {address} (metricsPort): {task.exception()}")
    try:
        yield health
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        await asyncio.wait((task,), timeout=STOP_SECONDS)
        if not task.done():
            _log.warning("the health port did not close within %.0f s", STOP_SECONDS)
            task.cancel()
