"""Main of the node agent.

Must never do more than open the node, serve it, and stop in order.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import uvloop

from inferx.agent import service
from inferx.config import NodeConfig, environment
from inferx.errors import InferxError
from inferx.rpc import tls
from inferx.rpc.server import stop_on_signals
from services import begin

STOP_PODS = "INFERX_STOP_PODS"
_log = logging.getLogger(__name__)


async def main(config: NodeConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (None = until SIGTERM or SIGINT), then drain.

    Pods are ended then when INFERX_STOP_PODS is 1; otherwise they run on and the next agent of
    this node adopts them. With INFERX_STOP_PODS=now it only ends what a killed agent left behind.
    Workers run in the current folder.
    """
    stop = stop_on_signals() if stop is None else stop
    given = environment()
    stop_pods = given.get(STOP_PODS)
    if stop_pods == "now":
        stop.set()
    options = service.Options(
        work_dir=Path.cwd(),
        environment=given,
        stop_pods_on_exit=stop_pods in ("1", "now"),
    )
    await service.run(config, options, stop)


def run(config: NodeConfig) -> int:
    """The process's exit status: 0 after an orderly stop, 1 when it could not serve."""
    begin("nodeagent", config)
    try:
        tls.use(config.service_tls)
        uvloop.run(main(config))
    except InferxError as error:
        _log.error("%s", error)
        return 1
    return 0
