"""Ports of this machine: free ones for the services, and who holds one that is taken.

Must never leave a port bound that nobody asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from inferx.errors import ConfigError

LOOPBACK = "127.0.0.1"
_LISTEN = "0A"


def free_ports(count: int) -> list[int]:
    """So many different free ports; all are held until the last is found, so none comes twice."""
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind((LOOPBACK, 0))
            found.append(int(probe.getsockname()[1]))
        return found


def bind(port: int) -> socket.socket:
    """A socket bound to `port`. Raises `ConfigError` that names who listens there, as far as it can
    be seen.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((LOOPBACK, port))
    except OSError as error:
        bound.close()
        if isinstance(error, PermissionError):
            raise ConfigError(
                f"port {port}: this user may not listen on it; take one from 1024 on with --port"
            ) from error
        holder = owner(port) or "another program (of another user, or outside this container)"
        raise ConfigError(
            f"port {port} is taken by {holder}; stop that, or take another one with --port"
        ) from error
    return bound


def owner(port: int) -> str | None:
    """`process 123 (name)` that listens on `port`; None when that cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                local_port = int(columns[1].rpartition(":")[2], 16)
                if local_port == port and columns[3] == _LISTEN:
                    inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or belongs to somebody else
            for handle in (process / "fd").iterdir():
                if os.readlink(handle) in inodes:
                    name = (process / "comm").read_text().strip()
                    return f"process {process.name} ({name})"
    return None
