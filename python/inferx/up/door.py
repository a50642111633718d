"""The gateway's port as the supervisor keeps it: gateways come and go, the socket stays open.

Must never accept a connection: those that come while no gateway runs wait for the next one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from inferx.up import ports

BACKLOG = 4096
_READ_BYTES = 4096


class Door:
    """The listening socket, and a pipe by which a gateway says that it is stopping.

    `stopping` gets the process id of each one that says so. Raises `ConfigError` when the port is
    taken.
    """

    def __init__(self, port: int, stopping: Callable[[int], None]) -> None:
        self._stopping = stopping
        self._socket = ports.bind(port)
        self._read, self._write = os.pipe()
        self.descriptors: tuple[int, ...] = ()

    def open(self) -> dict[str, str]:
        """Listens; returns what a gateway that inherits `descriptors` has to find in its
        environment."""
        self._socket.listen(BACKLOG)
        asyncio.get_running_loop().add_reader(self._read, self._on_news)
        self.descriptors = (self._socket.fileno(), self._write)
        return {
            "INFERX_LISTEN_FD": str(self._socket.fileno()),
            "INFERX_STOPPING_FD": str(self._write),
        }

    def close(self) -> None:
        """Who waits to be accepted is refused now."""
        asyncio.get_running_loop().remove_reader(self._read)
        self._socket.close()
        os.close(self._read)
        os.close(self._write)

    def _on_news(self) -> None:
        # Each line is written at once, and far shorter than what a pipe takes in one piece.
        for line in os.read(self._read, _READ_BYTES).split():
            self._stopping(int(line))
