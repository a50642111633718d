"""Ports for servers that are started a moment later, or stopped and started again.

Must never give one that another test process may get meanwhile: no two share a block. The system
takes those of connections, and of listeners that leave the choice to it, from a range above, unless
its `ip_local_port_range` was changed.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
from collections.abc import Iterator

_BLOCK = 500
_FIRSTS = range(10_000, 32_000, _BLOCK)


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
    for first in _FIRSTS:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0inferx-test-ports-{first}")
        except OSError:
            claim.close()
            continue
        claim.detach()
        return range(first, first + _BLOCK)
    raise RuntimeError(f"all {len(_FIRSTS)} blocks of ports are taken by other tests")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
