"""Every few moments: do the store, the agents and the core tell the same story of pods and memory?

Must never act on a difference that is younger than its grace time: news travels on several ways.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inferx.domain.meta import Key, Object
from inferx.domain.objects import Node, Pod
from inferx.errors import InferxError, StaleEpoch
from inferx.rpc import client, convert
from inferx.rpc import ixmeta_pb2 as pb
from inferx.scheduler import metrics
from inferx.scheduler.intents import FAILED, Intents, is_wanted
from inferx.scheduler.links import Links, NodeLink

EVERY_S = 1.0
UNKNOWN_GRACE_S = 4.0  # an agent has a pod that the store does not know
MISSING_GRACE_S = 2.0  # the store has a pod that its agent does not know
REMEMBER_FAILED_S = 600.0
AUDIT_EVERY_S = 5.0  # a node's memory ledger is compared
AUDIT_ROUNDS = 2  # so many differences in a row, each between two starts or ends, are real
QUARANTINED = "Quarantined"
_ENDED = ("Terminated", "Failed")
_AT_REST = ("Ready", "Standby", "Terminated", "Failed")
_log = logging.getLogger(__name__)


@dataclass
class Findings:
    """What differs now, and since when (monotonic seconds)."""

    unknown: dict[Key, float] = field(default_factory=dict)
    missing: dict[Key, float] = field(default_factory=dict)

    def due(self, kind: dict[Key, float], now: dict[Key, Any], grace_s: float) -> list[Key]:
        """Update one kind of difference; those that have lasted for the grace time."""
        for key in [key for key in kind if key not in now]:
            del kind[key]
        at = time.monotonic()
        return [key for key in now if at - kind.setdefault(key, at) >= grace_s]


class Reconciler:
    """`starting` says whether an order to make a pod is out; `core_pods` are the core's ids;
    `end` ends a pod of a node that is not ours; `show_node` shows people a quarantined node."""

    def __init__(
        self,
        intents: Intents,
        links: Links,
        starting: Callable[[str], bool],
        core_pods: Callable[[], set[str]],
        end: Callable[[str, Object[Pod]], None],
        show_node: Callable[[str, Node | None], None],
    ) -> None:
        self._intents = intents
        self._links = links
        self._starting = starting
        self._core_pods = core_pods
        self._end = end
        self._show_node = show_node
        self._findings = Findings()
        self._audited = 0.0
        self._suspicion: dict[str, int] = {}
        self._revisions: dict[str, dict[str, int]] = {}  # of each node's pods at the last audit

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.once()
                if time.monotonic() - self._audited >= AUDIT_EVERY_S:
                    self._audited = time.monotonic()
                    await self._audit()
            except InferxError as error:
                _log.info("reconciling is put off: %s", error.message)
            except Exception:
                # Whatever it was: without these rounds nobody ends what is not ours any more.
                _log.exception("reconciling")

    async def once(self) -> None:
        """One look at all pods."""
        intents, shown = self._intents.all(), self._shown()
        self._links.admit_known()
        strangers = {
            obj.key: (node, obj)
            for node, obj in shown.values()
            if obj.spec.status.state not in _ENDED and not self._intents.wants(obj.key)
        }
        for key in self._findings.due(self._findings.unknown, strangers, UNKNOWN_GRACE_S):
            node, obj = strangers[key]
            _log.warning("pod %s on node %s is not one of ours and is ended", key[2], node)
            metrics.reconciled("unknown_pod")
            self._end(node, obj)
        core = self._core_pods()
        missing: dict[Key, tuple[Object[Pod], str]] = {}
        for pod_id, obj in intents.items():
            if not is_wanted(obj) or self._starting(pod_id):
                continue
            why = self._why_gone(obj, shown.get(pod_id), core)
            if why is not None:
                missing[obj.key] = (obj, why)
        for key in self._findings.due(self._findings.missing, missing, MISSING_GRACE_S):
            await self._each(key, self._settle(*missing[key]))
        for obj in self._old(intents):
            await self._each(obj.key, self._intents.ended(obj))

    async def _each(self, key: Key, write: Awaitable[None]) -> None:
        """One pod whose record cannot be written holds up no other; it is tried again next time."""
        try:
            await write
        except StaleEpoch:
            raise
        except InferxError as error:
            _log.warning("the record of pod %s is put off: %s", key[2], error.message)

    def _shown(self) -> dict[str, tuple[str, Object[Pod]]]:
        return {
            obj.meta.name: (link.name, obj)
            for link in self._links.all()
            for obj in link.pods.list()
        }

    def _why_gone(
        self, obj: Object[Pod], shown: tuple[str, Object[Pod]] | None, core: set[str]
    ) -> str | None:
        """Why a pod of the store is over, "" when it ended in order, None when it lives."""
        if shown is not None:
            status = shown[1].spec.status
            if status.state == FAILED:
                return status.error or status.reason or "failed"
            return "" if status.state in _ENDED else None
        link = self._links.get(obj.spec.node)
        if link is None:
            return f"node {obj.spec.node} is gone"
        if not link.pods.connected:
            return None  # it may come back with the pod; when it does not, it is forgotten
        # An end that the core knows of is orderly, anything else is news to everybody.
        return "" if obj.meta.name not in core else f"node {obj.spec.node} has it no longer"

    async def _settle(self, obj: Object[Pod], why: str) -> None:
        if not why:
            await self._intents.ended(obj)
            return
        _log.warning("pod %s is recorded as failed: %s", obj.meta.name, why.partition("\n")[0])
        metrics.reconciled("missing_pod")
        await self._intents.failed(obj, why, time.time_ns() // 1_000_000)
        self._links.gone(obj.meta.name)

    def _old(self, intents: dict[str, Object[Pod]]) -> list[Object[Pod]]:
        before_ms = time.time_ns() // 1_000_000 - REMEMBER_FAILED_S * 1000
        ended = [obj for obj in intents.values() if not is_wanted(obj)]
        return [obj for obj in ended if obj.spec.status.since_ms < before_ms]

    # ---- memory ----

    async def _audit(self) -> None:
        """Compare what each agent counts as taken on its GPUs with the pods that it shows."""
        links = self._links.all()
        known = {link.name for link in links}
        for gone in self._revisions.keys() - known:
            del self._revisions[gone]
            self._suspicion.pop(gone, None)
        for link in links:
            if not link.pods.connected:
                continue
            before = _revisions(link)
            last, self._revisions[link.name] = self._revisions.get(link.name), before
            try:
                node = await _node_of(link)
            except InferxError as error:
                _log.info("node %s cannot be audited: %s", link.name, error.message)
                continue
            pods = link.pods.list()
            at_rest = all(obj.spec.status.state in _AT_REST for obj in pods)
            if at_rest and before == _revisions(link) and is_accounted(node.revision, before, last):
                self._judge(link, node.spec, _difference(node.spec, pods))

    def _judge(self, link: NodeLink, node: Node, differs: str) -> None:
        rounds = self._suspicion.get(link.name, 0) + 1 if differs else 0
        self._suspicion[link.name] = rounds
        if differs and rounds == AUDIT_ROUNDS:
            _log.error("node %s is quarantined: %s", link.name, differs)
            metrics.reconciled("quarantine")
            link.quarantine(differs)
            self._show_node(link.name, replace(node, state=QUARANTINED, reason=differs))
        elif not differs and link.quarantined:
            _log.info("node %s is in order again", link.name)
            link.quarantine("")
            self._show_node(link.name, None)


def _revisions(link: NodeLink) -> dict[str, int]:
    return {obj.meta.name: obj.revision for obj in link.pods.list()}


def is_accounted(node: int, pods: dict[str, int], last: dict[str, int] | None) -> bool:
    """Whether a node of this revision counts what its pods of these revisions hold. An agent shows
    its ledger a moment after its pods, and does not show it again when it is the same; so what has
    not changed since the audit before (`last`) is accounted for, too."""
    return pods == last or node > max(pods.values(), default=0)


async def _node_of(link: NodeLink) -> Object[Node]:
    request = pb.GetRequestMessage(
        obj_type="node", tenant="system", namespace="system", name=link.name
    )
    answer = await client.call(link.view.Get, request, 2.0)
    found: Object[Node] = convert.from_proto(answer.obj)
    return found


def _difference(node: Node, pods: Sequence[Object[Pod]]) -> str:
    """What the ledger of a node counts beyond, or short of, its pods; "" when they agree."""
    expected = dict.fromkeys((gpu.index for gpu in node.resources.gpus), 0)
    for obj in pods:
        gpu = obj.spec.alloc.gpu
        if gpu is None or obj.spec.status.state != "Ready":
            continue
        for index in gpu.devices:
            expected[index] = expected.get(index, 0) + obj.spec.alloc.vram_mb_per_device
    indices = (gpu.index for gpu in node.resources.gpus)
    told = dict(zip(indices, node.vram_used_mb, strict=False))
    wrong = [
        f"GPU {index}: {told[index]} MB are taken, its pods account for {expected.get(index, 0)}"
        for index in sorted(told)
        if told[index] != expected.get(index, 0)
    ]
    return "; ".join(wrong)
