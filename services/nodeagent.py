"""The node agent's process: config, signals, serve.

Must never hold logic; `inferx.agent` has it.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import uvloop
from inferx.agent.service import Options
from inferx.agent.service import run as serve
from inferx.config import NodeConfig, environment
from inferx.telemetry import setup_logging

STOP_PODS = "INFERX_STOP_PODS"


async def main(config: NodeConfig) -> None:
    """Serve until SIGTERM or SIGINT; pods are ended then only if INFERX_STOP_PODS=1."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    given = environment()
    options = Options(
        work_dir=Path.cwd(),
        environment=given,
        stop_pods_on_exit=given.get(STOP_PODS) == "1",
    )
    await serve(config, options, stop)


def run(config: NodeConfig) -> int:
    """The service's entry; the exit code of its process."""
    setup_logging("nodeagent", config.log_format, config.log_level)
    uvloop.run(main(config))
    return 0
