"""One link per node: its agent's stub, the pods it shows, and whether it can be reached.

Must never give orders; `orders` uses the stub.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from inferx.domain.meta import Key, Object
from inferx.domain.objects import Node, Pod, Snapshot
from inferx.rpc import client, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.scheduler.facts import node_fact, pod_fact, snapshot_fact
from inferx.store.informer import DELETED, Informer

LOST_AFTER_S = 4.5  # since a node was heard for the last time
FIRST_CONTACT_S = 10.0  # a new leader of a large cluster has many nodes to connect to at once
# New connections that are made at once: behind a thousand every call waits for a second and more,
# also the one that keeps the lead. An agent that does not answer holds the others up for so long.
CONTACTS_AT_ONCE = 32
CONTACT_S = 0.5
FORGET_AFTER_S = 60.0  # a node whose object is gone may come back under its name until then
_log = logging.getLogger(__name__)

Observe = Callable[[dict[str, Any]], None]
Wants = Callable[[Key], bool]
PodSeen = Callable[[str, Object[Pod]], None]


class NodeLink:
    """The connection to one node's agent. A broken one makes the node not ready at once, and lost
    when the lease of its object ends as well, at the latest `lost_after_s` after the last sign of
    life; its pods are told anew when it comes back after that. An agent that is only restarted is
    back by then. The end of a connection that fell silent is known `client.SILENCE_S` late."""

    def __init__(
        self,
        name: str,
        node: Node,
        observe: Observe,
        wants: Wants,
        forget: Callable[[NodeLink], None],
        greet: Callable[[NodeLink], None] = lambda link: None,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        self._greet = greet
        self.registered = True
        self.quarantined = ""
        self._wants = wants
        self._strangers: dict[str, Object[Pod]] = {}
        self._forget = forget
        self.name = name
        self.node = node
        self._observe = observe
        self._lost_after_s = lost_after_s
        self._lost = False
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._channel = client.channel(f"{node.address}:{node.podmgr_port}", idle_pings=False)
        self.stub = na_pb2_grpc.NodeAgentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._shows = client.channel(f"{node.address}:{node.state_port}")
        self.view = ixmeta_pb2_grpc.IxMetaServiceStub(self._shows)  # type: ignore[no-untyped-call]
        self.pods = Informer(self._shows, "pod", on_connection=self._connection)
        self.snapshots = Informer(self._shows, "snapshot")

    async def start(self) -> None:
        """Begin to follow the agent, unless it has been let go of already."""
        if self._stopped:
            return
        self._observe(node_fact(self.name, self.node, ready=False))
        self.snapshots.subscribe(self._snapshot)
        await self.snapshots.start()
        self.pods.subscribe(self._pod)
        self._cancel_timer()  # its object may have ended before its turn came
        self._give_up_in(FIRST_CONTACT_S)
        await self.pods.start()

    async def stop(self) -> None:
        """Let go of the agent; its pods stay as they are."""
        self._stopped = True
        self._cancel_timer()
        await self.pods.stop()
        await self.snapshots.stop()
        await self._channel.close(None)
        await self._shows.close(None)

    def fits(self, node: Node) -> bool:
        """Whether `node` is reached where this link goes."""
        mine = (self.node.address, self.node.podmgr_port, self.node.state_port)
        return mine == (node.address, node.podmgr_port, node.state_port)

    def update(self, node: Node) -> None:
        """The node's object changed."""
        self.node, self.registered = node, True
        if self._lost:
            self._cancel_timer()  # it is not to be forgotten any more
        self._tell_node()

    def quarantine(self, reason: str) -> None:
        """Give the node no new work, or ("") do so again."""
        self.quarantined = reason
        self._tell_node()

    def _tell_node(self) -> None:
        ready = self.pods.connected and not self.quarantined
        self._observe(node_fact(self.name, self.node, ready=ready))

    def _pod(self, event: str, obj: Object[Pod]) -> None:
        if event == DELETED:
            self._strangers.pop(obj.meta.name, None)
            self._observe({"kind": "pod_gone", "pod_id": obj.meta.name})
        elif self._wants(obj.key):
            self._observe(pod_fact(self.name, obj))
        else:
            # Nobody may lease it: its intent is still on its way here, or it is not ours.
            self._strangers[obj.meta.name] = obj

    def _snapshot(self, event: str, obj: Object[Snapshot]) -> None:
        self._observe(snapshot_fact(self.name, obj, gone=event == DELETED))

    def admit_known(self) -> None:
        """Tell the core of pods whose intent has arrived after them."""
        for pod_id, obj in list(self._strangers.items()):
            if self._wants(obj.key):
                del self._strangers[pod_id]
                self._observe(pod_fact(self.name, obj))

    def _connection(self, connected: bool) -> None:
        if self._stopped:
            return
        self._cancel_timer()
        if connected:
            self._greet(self)
        if connected and self._lost:
            # The informer tells only what changed, and the core has forgotten the rest.
            self._lost = False
            for obj in self.pods.list():
                self._pod("found", obj)
        self._tell_node()
        if connected:
            _log.info("node %s is ready", self.name)
        else:
            _log.warning("the agent of node %s cannot be reached", self.name)
            heard_before_s = client.SILENCE_S if self.pods.fell_silent else 0.0
            wait_s = max(0.0, self._lost_after_s - heard_before_s)
            self._give_up_in(wait_s if self.registered else 0.0)

    def _give_up_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.give_up)

    def unregistered(self) -> None:
        """The lease of the node's object has ended: with the connection gone, so is the node. Most
        are given up before that, their connection having ended sooner."""
        self.registered = False
        if self._lost:
            self._forget_later()
        elif not self.pods.connected:
            self.give_up()

    def give_up(self) -> None:
        """The node is dead as far as anybody can tell."""
        self._cancel_timer()
        self._lost = True
        _log.warning("node %s is lost", self.name)
        if not self.registered:
            self._forget_later()
        self._observe({"kind": "node_lost", "name": self.name})

    def _forget_later(self) -> None:
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(FORGET_AFTER_S, self._forget, self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Links:
    """The links to all nodes, following the node objects of the state service."""

    def __init__(
        self,
        observe: Observe,
        pod_seen: PodSeen,
        wants: Wants = lambda key: True,
        greet: Callable[[NodeLink], None] = lambda link: None,
    ) -> None:
        """`greet` is called with each link whose agent was reached, before it is used."""
        self._greet = greet
        self._observe = observe
        self._wants = wants
        self._pod_seen = pod_seen
        self._links: dict[str, NodeLink] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._contacts: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CONTACTS_AT_ONCE)

    def get(self, name: str) -> NodeLink | None:
        """The link to a node."""
        return self._links.get(name)

    def all(self) -> list[NodeLink]:
        """All links."""
        return list(self._links.values())

    def stub(self, name: str) -> Any | None:
        """The agent's stub, None when the node is not known (any more)."""
        link = self._links.get(name)
        return None if link is None else link.stub

    def node_changed(self, event: str, obj: Object[Node]) -> None:
        """A node object was added, changed or deleted."""
        name, link = obj.meta.name, self._links.get(obj.meta.name)
        if event == DELETED:
            # It may be the state service that it cannot reach; while we reach it, it lives. The
            # link stays to find it again, for a while when it is not reached, and costs a
            # connection attempt every two seconds.
            if link is not None:
                link.unregistered()
            return
        if link is not None and link.fits(obj.spec):
            link.update(obj.spec)
            return
        new = NodeLink(name, obj.spec, self._observe, self._wants, self._forget, self._greet)
        new.pods.subscribe(self._pod_seen)  # first, so that a pod's address is known before it is
        self._links[name] = new
        self._spawn(self._replace(link, new), self._contacts)

    def admit_known(self) -> None:
        """Tell the core of pods whose intents have arrived after them."""
        for link in self._links.values():
            link.admit_known()

    def gone(self, pod_id: str) -> None:
        """A pod is over, whatever its agent says or does not say."""
        self._observe({"kind": "pod_gone", "pod_id": pod_id})

    def _forget(self, link: NodeLink) -> None:
        if self._links.get(link.name) is link:
            del self._links[link.name]
            for obj in link.pods.list():
                self._pod_seen(DELETED, obj)  # nobody else will tell of their end
            self._spawn(link.stop(), self._tasks)
            self._observe({"kind": "node_gone", "name": link.name})

    async def _replace(self, old: NodeLink | None, new: NodeLink) -> None:
        if old is not None:
            await old.stop()
        async with self._room:
            await new.start()
            with suppress(TimeoutError):
                async with asyncio.timeout(CONTACT_S):
                    await new.pods.synced.wait()

    def _spawn(self, work: Any, tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def synced(self, timeout_s: float) -> None:
        """Wait until every agent has told its pods, or is plainly not there."""
        waits = [asyncio.create_task(link.pods.synced.wait()) for link in self.all()]
        if waits:
            _, late = await asyncio.wait(waits, timeout=timeout_s)
            for wait in late:
                wait.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def stop(self) -> None:
        """Let go of all agents."""
        for contact in self._contacts:
            contact.cancel()
        await asyncio.gather(*self._contacts, return_exceptions=True)
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*(link.stop() for link in self.all()))
