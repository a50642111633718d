"""Ports for servers that are started a moment later, or stopped and started again.

Must never give one that somebody else may get meanwhile: the system takes those of connections, and
of listeners that leave the choice to it, from a range above, and no two processes share a block.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_FIRST = 10_000
_BLOCK = 500
_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """One on which nothing listens."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many different ones on which nothing listens."""
    return [next(_free(os.getpid())) for _ in range(count)]


@functools.cache
def _free(process: int) -> Iterator[int]:
    """Those of the block of this process that are free, again and again."""
    block = _claimed()
    return (port for port in itertools.cycle(block) if _is_free(port))


def _claimed() -> range:
    """A block that no living process has: its name is bound until this process ends."""
    end = int(_SYSTEM.read_text().split()[0])
    for first in range(_FIRST, end - _BLOCK, _BLOCK):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0inferx-test-ports-{first}")
        except OSError:
            claim.close()
            continue
        claim.detach()
        return range(first, first + _BLOCK)
    raise RuntimeError(f"no block of {_BLOCK} ports from {_FIRST} to {end} is left for tests")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
