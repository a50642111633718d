"""Pods as people see them: the core's view of each, with what its agent knows.

Must never be a source of facts for the core.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from inferx.domain import codec
from inferx.domain.meta import SYSTEM, Key, Object
from inferx.domain.objects import Node, Pod, PodStatus, read_alloc
from inferx.domain.reader import Fields
from inferx.errors import InferxError
from inferx.scheduler.brain import Brain
from inferx.scheduler.links import Links
from inferx.store.view import ObjectView

REFRESH_S = 0.05  # changes within this time are shown together
# What a pod is shown by: as the core has it, as its agent shows it.
_Source = tuple[dict[str, Any] | None, Object[Pod] | None]
_AGENTS_OWN = ("Init", "Creating", "Loading", "Resuming", "Parking", "Terminating")
_log = logging.getLogger(__name__)


class PodView:
    """Keeps `servicer` (List, Watch, Get of kind pod) in step with the core."""

    def __init__(self, brain: Callable[[], Brain], links: Links, version: str) -> None:
        self.servicer = ObjectView(version, ("pod", "node"))
        self._brain = brain
        self._links = links
        # Of each pod. Most have not changed, and to show one costs far more than to see that.
        self._shown: dict[Key, _Source] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._after: Callable[[], None] = lambda: None

    def show_node(self, name: str, node: Node | None) -> None:
        """Show how this scheduler sees a node, None = as the node shows itself."""
        key = (SYSTEM, SYSTEM, name)
        if node is None:
            self.servicer.remove("node", key)
        else:
            self.servicer.put(codec.new("node", key, node.to_raw()))

    def on_refresh(self, after: Callable[[], None]) -> None:
        """Call `after` each time the view was renewed."""
        self._after = after

    def changed(self) -> None:
        """Something may have changed: renew the view shortly."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REFRESH_S, self._refresh)

    def close(self) -> None:
        """Show nothing new any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _refresh(self) -> None:
        self._timer = None
        of_agents: dict[Key, Object[Pod]] = {
            obj.key: obj for link in self._links.all() for obj in link.pods.list()
        }
        sources: dict[Key, _Source] = {}
        for pod in self._brain().pods():
            del pod["leased"]  # it changes all the time, and nobody is shown it
            key = (pod["tenant"], pod["namespace"], pod["pod_id"])
            sources[key] = (pod, of_agents.get(key))
        for key, obj in of_agents.items():
            # Why a pod failed is worth a look for as long as its agent keeps it.
            if key not in sources and obj.spec.status.state == "Failed":
                sources[key] = (None, obj)
        for key, source in sources.items():
            if self._shown.get(key) != source:
                self._put(key, *source)
        for key in self._shown.keys() - sources.keys():
            self.servicer.remove("pod", key)
        self._shown = sources
        self._after()

    def _put(self, key: Key, pod: dict[str, Any] | None, known: Object[Pod] | None) -> None:
        labels = {} if known is None else known.meta.labels
        annotations = {} if known is None else known.meta.annotations
        try:
            raw = _content(pod, known, self._brain().unix_offset_ms).to_raw()
            self.servicer.put(codec.new("pod", key, raw, labels=labels, annotations=annotations))
        except InferxError as error:
            _log.error("pod %s cannot be shown: %s", key, error)


def _content(pod: dict[str, Any] | None, known: Object[Pod] | None, unix_offset_ms: int) -> Pod:
    """What is shown of a pod: what the core says, with what only its agent knows."""
    if pod is None:
        assert known is not None, "somebody knows the pod"
        return known.spec
    alloc = read_alloc(Fields(pod["alloc"], "alloc", []))
    gpu = alloc.gpu
    status = PodStatus() if known is None else known.spec.status
    reason, since_ms = pod["reason"], pod["since_ms"] + unix_offset_ms
    if known is not None and status.state == pod["state"] and pod["state"] in _AGENTS_OWN:
        reason, since_ms = reason or status.reason, status.since_ms
    status = replace(
        status,
        state=pod["state"],
        reason=reason,
        since_ms=since_ms,
        gpus=() if gpu is None else gpu.devices,
        vram_mb=alloc.vram_mb_per_device * (0 if gpu is None else len(gpu.devices)),
        start=pod["start"],
    )
    return Pod(
        funcname=pod["funcname"],
        fprevision=pod["revision"],
        node=pod["node"],
        alloc=alloc,
        status=status,
    )
