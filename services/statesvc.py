"""Main of the state service.

Must never do more than open the store, serve it, and stop in order.
"""

from __future__ import annotations

import asyncio
import logging

import uvloop

from inferx import health, statesvc
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
        service = await statesvc.start(config)
        probes.ready_when(service.waits_for)
        kind = "etcd" if config.etcd_addrs else str(config.data_dir / "state.db")
        _log.info("state service ready on %s:%d, store %s", config.host_ip, service.port, kind)
        await stop.wait()
        await service.stop()


def run(config: NodeConfig) -> int:
    """The process's exit status: 0 after an orderly stop, 1 when it could not serve."""
    begin("statesvc", config)
    try:
        tls.use(config.service_tls)
        uvloop.run(main(config))
    except InferxError as error:
        _log.error("%s", error)
        return 1
    return 0
