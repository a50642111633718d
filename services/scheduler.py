"""Main of the scheduler.

Must never do more than serve it and stop in order.
"""

from __future__ import annotations

import asyncio
import logging

import uvloop

from inferx import health, scheduler
from inferx.config import NodeConfig
from inferx.errors import InferxError
from inferx.rpc import tls
from inferx.rpc.server import stop_on_signals
from services import begin

_log = logging.getLogger(__name__)


async def main(config: NodeConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (None = until SIGTERM or SIGINT), then drain."""
    stop = stop_on_signals() if stop is None else stop
    async with health.serving(config) as probes:
        await scheduler.run(config, stop, probes)


def run(config: NodeConfig) -> int:
    """The process's exit status: 0 after an orderly stop, 1 when it could not serve or lead."""
    begin("scheduler", config)
    try:
        tls.use(config.service_tls)
        uvloop.run(main(config))
    except InferxError as error:
        _log.error("%s", error)
        return 1
    return 0
