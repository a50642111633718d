"""Where pods listen, as those who grant leases need it.

Must never let what an agent showed replace what it answered: a view may be late.
"""

from __future__ import annotations

import ipaddress

from inferx._ext import SchedulerServer
from inferx.domain.meta import Object
from inferx.domain.objects import Pod


class Places:
    """Keeps the addresses of `server` in step with answers to orders and with agents' views."""

    def __init__(self, server: SchedulerServer) -> None:
        self._server = server
        self._told: set[str] = set()

    def told(self, pod_id: str, ip: int, port: int) -> None:
        """An agent has started or resumed it."""
        self._told.add(pod_id)
        self._server.place(pod_id, ip, port)

    def seen(self, obj: Object[Pod]) -> None:
        """An agent shows it; it may be a pod of a former scheduler."""
        status = obj.spec.status
        if status.ip and obj.meta.name not in self._told:
            ip = int(ipaddress.IPv4Address(status.ip))
            self._server.place(obj.meta.name, ip, status.port)

    def gone(self, pod_id: str) -> None:
        """It has ended."""
        self._told.discard(pod_id)
        self._server.forget_place(pod_id)
