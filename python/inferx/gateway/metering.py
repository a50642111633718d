"""GPU seconds by tenant: the share of each GPU that a pod holds, for as long as it holds it.

Must never count a whole GPU for a part of one, nor time in which nothing was held.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inferx import telemetry
from inferx.domain.meta import SYSTEM, Key, Object
from inferx.domain.objects import Node, Pod
from inferx.store.informer import DELETED

RUNNING, STANDBY = "running", "standby"
# A pod holds its GPUs from the order to start it until its end is reported.
_HOLDING = frozenset({
    "Creating", "Loading", "Ready", "Idle", "Working", "Snapshotting", "Parking", "Resuming",
    "Terminating",
})  # fmt: skip

_seconds = telemetry.counter(
    "gpu_seconds_total",
    "GPU seconds held by a tenant's pods, in shares of a GPU; every gateway sees all of them",
    ("tenant", "namespace", "phase"),
)


@dataclass
class _Held:
    tenant: str
    namespace: str
    phase: str
    gpus: float
    since_s: float


class Meter:
    """Adds up what pods hold, from what it is told of them."""

    def __init__(
        self,
        node: Callable[[Key], Object[Any] | None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._clock_s = clock_s
        self._held: dict[Key, _Held] = {}

    def seen(self, event: str, obj: Object[Any]) -> None:
        """A pod is there, has changed, or is gone."""
        self._settle(obj.key)
        self._held.pop(obj.key, None)
        if event == DELETED or not isinstance(obj.spec, Pod):
            return
        phase, gpus = self._holds(obj.spec)
        if gpus > 0:
            tenant, namespace, _ = obj.key
            self._held[obj.key] = _Held(tenant, namespace, phase, gpus, self._clock_s())

    def settle(self) -> None:
        """Count up to now; called before the figures are read."""
        for key in self._held:
            self._settle(key)

    def forget(self) -> None:
        """The source of pods is another one: what it says comes anew."""
        self.settle()
        self._held.clear()

    def _settle(self, key: Key) -> None:
        held = self._held.get(key)
        if held is not None:
            now_s = self._clock_s()
            spent = held.gpus * max(0.0, now_s - held.since_s)
            _seconds.labels(held.tenant, held.namespace, held.phase).inc(spent)
            held.since_s = now_s

    def _holds(self, pod: Pod) -> tuple[str, float]:
        """The phase, and how many GPUs in shares."""
        if pod.alloc.gpu is None:
            return RUNNING, 0.0
        if pod.status.state in _HOLDING:
            return RUNNING, self._share(pod, pod.alloc.vram_mb_per_device)
        if pod.status.state == "Standby":
            # What a standby keeps on its GPUs; nothing, on most tiers.
            return STANDBY, self._share(pod, pod.status.vram_mb)
        return RUNNING, 0.0

    def _share(self, pod: Pod, vram_mb: int) -> float:
        """The share of each of the pod's GPUs, added up; a GPU is never more than one."""
        found = self._node((SYSTEM, SYSTEM, pod.node))
        if found is None or not isinstance(found.spec, Node) or pod.alloc.gpu is None:
            return 0.0
        sizes = {device.index: device.vram_mb for device in found.spec.resources.gpus}
        shares = [vram_mb / sizes[index] for index in pod.alloc.gpu.devices if sizes.get(index)]
        return sum(min(1.0, share) for share in shares)
