"""Granian on the gateway's port: the socket of a supervisor that keeps it, or one bound here.

Must never join a port on which anything but a gateway of the same data folder listens.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from granian._granian import SocketHolder
from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from inferx.config import NodeConfig

# As the data plane's own listener has them.
BACKLOG = 4096
CONNECTIONS_MAX = 32_768
HEAD_TIMEOUT_S = 10


class GranianServer(Server):
    """Serves `app` on `host` and the configuration's port. `share` joins a gateway that listens
    there. `serve` raises OSError naming the address when it cannot listen."""

    def __init__(self, app: object, config: NodeConfig, host: str, share: bool) -> None:
        super().__init__(
            app,
            address=host,
            port=config.gateway_port,
            interface=Interfaces.ASGI,
            websockets=False,
            log_enabled=False,
            backlog=BACKLOG,
            backpressure=CONNECTIONS_MAX,
            http1_settings=HTTP1Settings(header_read_timeout=HEAD_TIMEOUT_S * 1000),
            ssl_cert=Path(config.tls.cert) if config.tls.enable else None,
            ssl_key=Path(config.tls.key) if config.tls.enable else None,
        )
        self._host, self._port, self._share = host, config.gateway_port, share
        self._handed_in = config.listen_fd

    def _init_shared_socket(self) -> None:
        # Granian's way to open its socket; there is no public one to give it a socket that is open.
        # Its thread owns the descriptor, and closes it when it stops accepting.
        try:
            listening = self._handed_in_socket() if self._handed_in else self._bind()
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                error.errno, f"cannot listen on {self._host}:{self._port}: {reason}"
            ) from error
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        # Nobody is accepted before his first byte has come: Granian closes, when it stops, the
        # connections that it has read nothing of, as if nobody had meant to call.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, HEAD_TIMEOUT_S)
        holder: Any = SocketHolder
        self._shd = holder(listening.detach(), False, BACKLOG)

    def _handed_in_socket(self) -> socket.socket:
        listening = socket.socket(fileno=self._handed_in)
        if listening.getsockname()[1] != self._port:
            listening.close()
            raise OSError("the socket handed in is of another port")
        return listening

    def _bind(self) -> socket.socket:
        """A socket that later gateways may join."""
        if not self._share:
            self._open(reuse_port=False).close()  # fails when anybody listens there
        return self._open(reuse_port=True)

    def _open(self, *, reuse_port: bool) -> socket.socket:
        opened = socket.socket()
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
            opened.bind((self._host, self._port))
        except OSError:
            opened.close()
            raise
        return opened
