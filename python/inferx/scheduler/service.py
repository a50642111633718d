"""The scheduler's life: get an epoch, fill the core from all sources, serve, stop in order.

Must never serve before the core knows the functions and what the agents run.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc.aio

from inferx._ext import __version__
from inferx.config import NodeConfig
from inferx.domain.codec import resolve_policy
from inferx.domain.meta import Key, Object
from inferx.domain.objects import FunctionSpec
from inferx.errors import FunctionNotFound, InferxError, NotFound, StaleEpoch, Unavailable
from inferx.health import Health
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc.server import Server, serve
from inferx.scheduler import epoch, facts, metrics
from inferx.scheduler.brain import Brain
from inferx.scheduler.links import Links
from inferx.scheduler.orders import Orders
from inferx.scheduler.podview import PodView
from inferx.scheduler.servicer import SchedulerServicer
from inferx.store.informer import DELETED, Informer

AGENTS_SYNC_S = 3.0
_KINDS = ("tenant", "namespace", "funcpolicy", "function", "node")
_log = logging.getLogger(__name__)


class Scheduler:
    """A running scheduler. `failed` holds the reason when it can no longer lead."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self.epoch = 0
        self.port = 0
        self.failed: asyncio.Future[InferxError] = asyncio.get_running_loop().create_future()
        self._links = Links(self._observe, self._pod_seen)
        self._orders = Orders(self._links, self._function, self._observe, self._stale)
        self._view = PodView(lambda: self.brain, self._links, __version__)
        self._view.on_refresh(lambda: metrics.shown(self.brain.stats()))
        self.brain = Brain(self._orders.carry_out, self._view.changed, config.idle_park_ms)
        self._channel: grpc.aio.Channel | None = None
        self._state: Any = None
        self._informers: dict[str, Informer] = {}
        self._server: Server | None = None
        # Functions read ahead of the informer, until it has them too.
        self._learned: dict[Key, Object[FunctionSpec]] = {}

    async def start(self) -> None:
        """Returns when gateways can call; raises Unavailable for a taken port."""
        config = self._config
        address = f"{config.host_ip}:{config.scheduler_port}"
        state_addr = config.state_svc_addrs[0]
        self._channel = client.channel(state_addr)
        stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self._state = stub(self._channel)
        self.epoch = self._orders.epoch = await epoch.begin(self._state, address)
        self._informers = {kind: Informer(self._channel, kind) for kind in _KINDS}
        # Nodes come last: pods that agents report are judged by the functions known then.
        for kind in _KINDS:
            await self._informers[kind].start()
            await self._informers[kind].synced.wait()
        for kind, tell in (
            ("tenant", self._tenant),
            ("namespace", self._namespace),
            ("funcpolicy", self._policy),
            ("function", self._function_changed),
            ("node", self._links.node_changed),
        ):
            self._informers[kind].subscribe(tell)
        await self._links.synced(AGENTS_SYNC_S)
        servicer = SchedulerServicer(self.brain, self.epoch, self._address_of, self._learn)
        add_scheduler: Any = na_pb2_grpc.add_SchedulerServiceServicer_to_server
        add_view: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
        self._server = await serve(
            address,
            [
                lambda server: add_scheduler(servicer, server),
                lambda server: add_view(self._view.servicer, server),
            ],
        )
        self.port = self._server.port
        _log.info("scheduler ready on %s, epoch %d", address, self.epoch)

    def waits_for(self) -> str | None:
        """What keeps gateways from calling this process."""
        return None if self.port else "waiting for the lead and for what the agents run"

    async def stop(self) -> None:
        """Answer who waits, stop listening, let go of everything; pods run on."""
        self.brain.close()
        if self._server is not None:
            await self._server.stop()
        await self._orders.stop()
        await self._links.stop()
        await asyncio.gather(*(informer.stop() for informer in self._informers.values()))
        self._view.close()
        if self._channel is not None:
            await self._channel.close(None)

    # ---- facts ----

    def _observe(self, fact: dict[str, Any]) -> None:
        self.brain.observe(fact)

    def _tenant(self, event: str, obj: Object[Any]) -> None:
        self._observe(facts.tenant_fact(obj, gone=event == DELETED))

    def _namespace(self, event: str, obj: Object[Any]) -> None:
        self._observe(facts.namespace_fact(obj, gone=event == DELETED))

    def _policy(self, event: str, obj: Object[Any]) -> None:
        """Any function may be linked to the policy; telling one anew does no harm."""
        for function in self._informers["function"].list():
            self._function_changed("modified", function)

    def _function_changed(self, event: str, obj: Object[Any]) -> None:
        if event == DELETED:
            self._learned.pop(obj.key, None)
            self._observe(facts.function_gone(obj))
            return
        policy = resolve_policy(obj, self._informers["funcpolicy"].get)
        self._observe(facts.function_fact(obj, policy))

    def _pod_seen(self) -> None:
        self._view.changed()

    # ---- look-ups ----

    def _function(self, key: Key) -> Object[FunctionSpec] | None:
        found, learned = self._informers["function"].get(key), self._learned.get(key)
        if learned is None or (found is not None and found.revision >= learned.revision):
            self._learned.pop(key, None)
            return found
        return learned

    async def _learn(self, key: Key) -> None:
        """Read a function that a gateway knows and this process has not heard of yet."""
        tenant, namespace, name = key
        request = ixmeta_pb2.GetRequestMessage(
            obj_type="function", tenant=tenant, namespace=namespace, name=name
        )
        try:
            answer = await client.call(self._state.Get, request, 5.0)
        except NotFound as error:
            raise FunctionNotFound(f"no function {tenant}/{namespace}/{name}") from error
        self._learned[key] = convert.from_proto(answer.obj)
        self._function_changed("learned", self._learned[key])

    def _address_of(self, pod_id: str) -> tuple[str, int]:
        found = self._orders.addresses.get(pod_id)
        if found is not None:
            return found
        for link in self._links.all():
            for obj in link.pods.list():
                if obj.meta.name == pod_id and obj.spec.status.ip:
                    return (obj.spec.status.ip, obj.spec.status.port)
        raise Unavailable(f"the address of pod {pod_id} is not known")

    def _stale(self, error: InferxError) -> None:
        if not self.failed.done():
            self.failed.set_result(StaleEpoch(f"another scheduler leads: {error.message}"))


async def run(config: NodeConfig, stop: asyncio.Event, probes: Health) -> None:
    """Serve until `stop` is set; raises StaleEpoch when another scheduler has taken over."""
    scheduler = Scheduler(config)
    probes.ready_when(scheduler.waits_for)
    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(scheduler.start())
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            ends: set[asyncio.Future[Any]] = {stopped, scheduler.failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if scheduler.failed.done():
                raise scheduler.failed.result()
    finally:
        for task in (starting, stopped):
            task.cancel()
        await asyncio.gather(starting, stopped, return_exceptions=True)
        scheduler.failed.cancel()
        await scheduler.stop()
