"""What the agent shows of itself on its state port: its node, pods and snapshots.

Must never be a second source of truth: pods' tasks and the agent say what is shown.
"""

from __future__ import annotations

from inferx._ext import __version__
from inferx.agent.pod import Pod
from inferx.agent.snapshots import Entry
from inferx.domain import codec
from inferx.domain.cluster import Node, Snapshot
from inferx.store.view import ObjectView


class AgentView:
    """The objects of kinds `node`, `pod` and `snapshot`; `servicer` answers Get, List and Watch."""

    def __init__(self) -> None:
        self.servicer = ObjectView(__version__, ("node", "pod", "snapshot"))

    def show_node(self, name: str, node: Node) -> None:
        """Show this node."""
        self.servicer.put(codec.new("node", ("system", "system", name), node.to_raw()))

    def show_pod(self, pod: Pod) -> None:
        """Show the pod as it is now."""
        record = pod.record
        self.servicer.put(
            codec.new(
                "pod",
                _key(pod),
                pod.describe().to_raw(),
                labels=record.labels,
                annotations=record.annotations,
            )
        )

    def show_snapshot(self, entry: Entry, snapshot: Snapshot | None) -> None:
        """Show a function's snapshot, or (None) that there is none any more."""
        if snapshot is None:
            self.servicer.remove("snapshot", entry.function)
        else:
            self.servicer.put(codec.new("snapshot", entry.function, snapshot.to_raw()))

    def remove_pod(self, pod: Pod) -> None:
        """Stop showing the pod."""
        self.servicer.remove("pod", _key(pod))


def _key(pod: Pod) -> tuple[str, str, str]:
    return (pod.key.tenant, pod.key.namespace, pod.key.id)
