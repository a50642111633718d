"""What the agent shows of itself on its state port: its node, pods and snapshots.

Must never be a second source of truth: pods' tasks and the agent say what is shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from inferx._ext import __version__
from inferx.agent.entries import Function
from inferx.agent.pod import Pod
from inferx.agent.spec import devices_of
from inferx.domain import cluster, codec
from inferx.domain.cluster import Node, Snapshot
from inferx.domain.meta import SYSTEM
from inferx.store.view import ObjectView

ACCOUNT_AFTER_S = 0.5  # the ledger follows the changes of a pod that are shown


class AgentView:
    """The objects of kinds `node`, `pod` and `snapshot`; `servicer` answers Get, List and Watch."""

    def __init__(self, vram_used_mb: Callable[[], tuple[int, ...]] = tuple) -> None:
        self.servicer = ObjectView(__version__, ("node", "pod", "snapshot"))
        self._vram_used_mb = vram_used_mb
        self._node: tuple[str, Node] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def show_node(self, name: str, node: Node) -> None:
        """Show this node, and from now on what its ledger counts."""
        self._node = (name, node)
        self._account()

    def _account(self) -> None:
        self._timer = None
        if self._node is not None:
            name, node = self._node
            node = replace(node, vram_used_mb=self._vram_used_mb())
            self.servicer.put(codec.new("node", (SYSTEM, SYSTEM, name), node.to_raw()))

    def _pods_changed(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ACCOUNT_AFTER_S, self._account)

    def close(self) -> None:
        """Show nothing new any more."""
        if self._timer is not None:
            self._timer.cancel()

    def show_pod(self, pod: Pod) -> None:
        """Show the pod as it is now."""
        self._pods_changed()
        record = pod.record
        self.servicer.put(
            codec.new(
                "pod",
                _key(pod),
                describe(pod).to_raw(),
                labels=record.labels,
                annotations=record.annotations,
            )
        )

    def show_snapshot(self, function: Function, snapshot: Snapshot | None) -> None:
        """Show a function's snapshot, or (None) that there is none any more."""
        if snapshot is None:
            self.servicer.remove("snapshot", function)
        else:
            self.servicer.put(codec.new("snapshot", function, snapshot.to_raw()))

    def remove_pod(self, pod: Pod) -> None:
        """Stop showing the pod."""
        self._pods_changed()
        self.servicer.remove("pod", _key(pod))


def describe(pod: Pod) -> cluster.Pod:
    """The pod as others see it: the `object` of its kind."""
    return cluster.Pod(
        funcname=pod.key.funcname,
        fprevision=pod.key.fprevision,
        node=pod.tools.node,
        alloc=pod.alloc,
        status=cluster.PodStatus(
            # Idle and Working are the scheduler's; to it a worker that can serve is Ready.
            state="Ready" if pod.state == "Idle" else pod.state,
            reason=pod.record.reason,
            since_ms=pod.record.since_ms,
            ip=pod.record.ip,
            port=pod.record.port,
            gpus=devices_of(pod.alloc),
            vram_mb=pod.tools.ledger.held_mb(pod.key.id),
            start=pod.record.start,
            error=pod.record.error,
        ),
    )


def _key(pod: Pod) -> tuple[str, str, str]:
    return (pod.key.tenant, pod.key.namespace, pod.key.id)
