"""Main of the gateway: an embedded Granian on a private Unix socket that hosts the data plane.

Must never do more than build the gateway, serve it, and stop in order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from pathlib import Path

import uvloop
from granian.constants import Interfaces
from granian.errors import FatalError
from granian.server.embed import Server

from inferx import health, telemetry
from inferx.config import NodeConfig
from inferx.errors import InferxError
from inferx.gateway.app import Gateway
from inferx.rpc.server import stop_on_signals

_SOCKET_PATH_BYTES_MAX = 100  # the system's limit is 107
_log = logging.getLogger(__name__)


async def main(config: NodeConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (None = until SIGTERM or SIGINT), then drain.

    Raises OSError naming the port when it is taken.
    """
    stop = stop_on_signals() if stop is None else stop
    control_socket = _control_socket(config.data_dir)
    gateway = Gateway(config, control_socket)
    server = Server(
        gateway.app,
        uds=control_socket,
        interface=Interfaces.ASGI,
        websockets=False,
        log_enabled=False,
    )
    async with health.serving(config) as probes:
        probes.ready_when(lambda: gateway.waits_for)
        probes.metrics_from(gateway.metrics)
        await _serve(gateway, server, stop)
    if not stop.is_set():
        raise InferxError("the control server ended by itself")


async def _serve(gateway: Gateway, server: Server, stop: asyncio.Event) -> None:
    """Until `stop` is set or the server ends by itself."""
    try:
        serving = asyncio.create_task(server.serve())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            server.stop()  # type: ignore[no-untyped-call]
        await serving
    except FatalError as error:
        raise gateway.startup_error or InferxError(f"the control server failed: {error}") from None
    finally:
        gateway.control_socket.unlink(missing_ok=True)


def _control_socket(data_dir: Path) -> Path:
    """A path for this process's socket; those of gateways that were killed are removed."""
    folder = data_dir.absolute()
    name = f"gateway-{os.getpid()}.sock"
    if len(os.fsencode(folder / name)) > _SOCKET_PATH_BYTES_MAX:
        folder = Path(tempfile.mkdtemp(prefix="inferx-"))
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("gateway-*.sock"):
        pid = left.stem.removeprefix("gateway-")
        if not Path("/proc", pid).exists() or pid == str(os.getpid()):
            left.unlink(missing_ok=True)
    return folder / name


def run(config: NodeConfig) -> int:
    """The process's exit status: 0 after an orderly stop, 1 when it could not serve."""
    telemetry.setup_logging("gateway", config.log_format, config.log_level)
    try:
        uvloop.run(main(config))
    except (InferxError, OSError) as error:
        _log.error("%s", error)
        return 1
    return 0
