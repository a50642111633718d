"""Main of the gateway: an embedded Granian that hosts the data plane.

It listens on a private Unix socket behind the data plane, or on the gateway's port before it.

Must never do more than build the gateway, serve it, and stop in order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import uvloop
from granian.constants import Interfaces
from granian.errors import FatalError
from granian.server.embed import Server

from inferx import health
from inferx.config import NodeConfig
from inferx.errors import InferxError
from inferx.gateway.app import DRAIN_MS, Gateway, listen_host
from inferx.gateway.granian_server import GranianServer
from inferx.rpc import tls
from inferx.rpc.server import stop_on_signals
from services import begin

_SOCKET_PATH_BYTES_MAX = 100  # the system's limit is 107
_log = logging.getLogger(__name__)


async def main(config: NodeConfig, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set (None = until SIGTERM or SIGINT), then drain.

    Raises OSError naming the port when it is taken.
    """
    stop = stop_on_signals() if stop is None else stop
    control_socket = _control_socket(config.data_dir)
    gateway = Gateway(config, control_socket)
    server = _server(config, gateway, control_socket)
    async with health.serving(config) as probes:
        probes.ready_when(lambda: gateway.waits_for)
        probes.metrics_from(gateway.metrics)
        await _serve(config, gateway, server, stop)
    if not stop.is_set():
        raise InferxError("the control server ended by itself")


async def _serve(config: NodeConfig, gateway: Gateway, server: Server, stop: asyncio.Event) -> None:
    """Until `stop` is set or the server ends by itself."""
    try:
        serving = asyncio.create_task(server.serve())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            _tell_supervisor(config)
            gateway.set_stopping()
            await gateway.leave()
            server.stop()  # type: ignore[no-untyped-call]
            if config.listener == "granian":
                # Granian waits for the calls that it has read, however long they take.
                await asyncio.wait((serving,), timeout=DRAIN_MS / 1000)
                await gateway.cut_calls(0)
        await serving
    except FatalError as error:
        raise gateway.startup_error or InferxError(f"the control server failed: {error}") from None
    finally:
        gateway.control_socket.unlink(missing_ok=True)


def _tell_supervisor(config: NodeConfig) -> None:
    """The next gateway can be started while this one finishes its calls."""
    if config.stopping_fd:
        with suppress(BrokenPipeError):  # it has died, and this gateway ends for that reason
            os.write(config.stopping_fd, b"%d\n" % os.getpid())


def _server(config: NodeConfig, gateway: Gateway, control_socket: Path) -> Server:
    if config.listener == "rust":
        return Server(
            gateway.app,
            uds=control_socket,
            interface=Interfaces.ASGI,
            websockets=False,
            log_enabled=False,
        )
    return GranianServer(gateway.app, config, listen_host(config), gateway.takes_over)


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
    begin("gateway", config)
    try:
        tls.use(config.service_tls)
        uvloop.run(main(config))
    except (InferxError, OSError) as error:
        _log.error("%s", error)
        return 1
    return 0
