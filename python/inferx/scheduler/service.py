"""The scheduler's life: stand by, win the lead, fill the core from all sources, serve, stop.

Must never serve before the core knows the functions and what the agents run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

import grpc.aio

from inferx._ext import __version__
from inferx.config import NodeConfig
from inferx.domain import references
from inferx.domain.codec import resolve_policy
from inferx.domain.meta import Key, Object
from inferx.domain.objects import FunctionSpec, Gateway, Pod
from inferx.errors import FunctionNotFound, InferxError, NotFound, StaleEpoch, Unavailable
from inferx.health import Health
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.scheduler import facts, metrics
from inferx.scheduler.brain import Brain
from inferx.scheduler.catalogue import Catalogue
from inferx.scheduler.intents import Intents
from inferx.scheduler.leader import Leadership
from inferx.scheduler.links import Links
from inferx.scheduler.orders import Orders
from inferx.scheduler.places import Places
from inferx.scheduler.podview import PodView
from inferx.scheduler.port import Port
from inferx.scheduler.reconcile import Reconciler
from inferx.scheduler.servicer import SchedulerServicer
from inferx.store.crashpoint import CrashPoint
from inferx.store.informer import DELETED, Informer
from inferx.store.presence import State

AGENTS_SYNC_S = 0.7  # an agent that does not answer by then is taken in when it does
AGENTS_GREETED_S = 0.5
_KINDS = (
    "scheduler", "gateway", "tenant", "namespace", "funcpolicy", "function", "node", "pod",
    "snapshot",
)  # fmt: skip
_log = logging.getLogger(__name__)


class Scheduler:
    """A scheduler: a hot standby from `start` on, the leader once `lead` has returned.

    `failed` holds the reason when it can no longer lead; the process then ends, because what its
    core believes is not worth keeping, and the next one begins as a standby.
    """

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self.port = 0
        self.failed: asyncio.Future[InferxError] = asyncio.get_running_loop().create_future()
        self._address = f"{config.host_ip}:{config.scheduler_port}"
        self._state = State(config.state_svc_addrs, CrashPoint(config.crash_after_writes))
        self.brain = Brain(
            lambda effect: self._orders.carry_out(effect),
            lambda: self._view.changed(),
            self._learn,
            self._stale,
            config.idle_park_ms,
        )
        self.leadership = Leadership(
            self._state,
            config.advertised_addr or self._address,
            config.leader_lease_ms,
            config.data_dir,
            self._led,
        )
        self._intents = Intents(self._state, self._stale)
        self._places = Places(self.brain.server)
        self._catalogue = Catalogue(self._state, self._stale)
        self._links = Links(
            self._observe,
            self._pod_seen,
            self._intents.wants,
            lambda link: self._orders.greet(link),
        )
        self._orders = Orders(
            self._links,
            self._function,
            self._observe,
            self._stale,
            self._intents,
            self._places,
            self.leadership.leads,
        )
        self._view = PodView(lambda: self.brain, self._links, __version__)
        self._view.on_refresh(self._shown)
        metrics.leases_from(self.brain.server.stats)
        self._servicer = SchedulerServicer(self.brain, self.leadership)
        self._port = Port(self.brain.server, config.data_dir)
        self._channel: grpc.aio.Channel | None = None
        self._informers: dict[str, Informer] = {}
        self._tasks: list[asyncio.Task[None]] = []  # while it leads
        # Functions read ahead of the informer, until it has them too.
        self._learned: dict[Key, Object[FunctionSpec]] = {}
        # Functions that are being read, and which of them were deleted meanwhile.
        self._reading: Counter[Key] = Counter()
        self._deleted: set[Key] = set()

    @property
    def epoch(self) -> int:
        """The epoch under which this process leads, 0 for a standby."""
        return self.leadership.epoch

    async def start(self) -> None:
        """Listen and follow the objects; raises Unavailable for a taken port."""
        add_scheduler: Any = na_pb2_grpc.add_SchedulerServiceServicer_to_server
        add_view: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
        await self._port.open(
            self._address,
            [
                lambda server: add_scheduler(self._servicer, server),
                lambda server: add_view(self._view.servicer, server),
            ],
        )
        self.port = self._port.number
        self._channel = client.channel(self._config.state_svc_addrs)
        self._informers = {kind: Informer(self._channel, kind) for kind in _KINDS}
        for informer in self._informers.values():
            await informer.start()
        for informer in self._informers.values():
            await informer.synced.wait()
        _log.info("scheduler stands by on %s", self._address)

    async def lead(self) -> None:
        """Wait for the lead, fill the core, serve. In this order: (1) what does not depend on who
        leads, so that little is left to do afterwards; (2) the lead; (3) who may hold leases of the
        former leader; (4) nodes, after the functions, because the pods that agents report are
        judged by these; (5) the agents' full reports, and the agents know the epoch, so that a
        former leader that wakes up finds nobody who obeys."""
        for kind, tell in (
            ("tenant", self._tenant),
            ("namespace", self._namespace),
            ("funcpolicy", self._policy),
            ("function", self._function_changed),
        ):
            await self._informers[kind].subscribe_in_slices(tell)
        epoch = await self.leadership.campaign(self._informers["scheduler"])
        self._orders.epoch = self._intents.epoch = self._catalogue.epoch = epoch
        begun = time.monotonic()
        self._tasks.append(asyncio.create_task(self._keep(), name="leadership"))
        self._intents.follow(self._informers["pod"])
        self._catalogue.follow(self._informers["snapshot"])
        self._tasks.append(asyncio.create_task(self._catalogue.run(), name="catalogue"))
        gateways = self._informers["gateway"]
        self.brain.expect([obj.spec.gateway_id for obj in gateways.list()])
        gateways.subscribe(self._gateway_changed)
        # A thousand nodes at once would keep this loop from renewing the lead.
        await self._informers["node"].subscribe_in_slices(self._links.node_changed)
        await self._links.synced(AGENTS_SYNC_S)
        await self._orders.greeted(AGENTS_GREETED_S)
        self._servicer.ready = True
        self.brain.server.open()
        reconciler = self._reconciler()
        self._tasks.append(asyncio.create_task(reconciler.run(), name="reconciler"))
        _log.info(
            "scheduler leads on %s, epoch %d, after %.2f s of taking over",
            self._address,
            epoch,
            time.monotonic() - begun,
        )

    def _reconciler(self) -> Reconciler:
        return Reconciler(
            self._intents,
            self._links,
            self._orders.starting,
            lambda: {pod["pod_id"] for pod in self.brain.pods()},
            self._orders.end_stranger,
            self._view.show_node,
        )

    def _led(self, epoch: int, until: float) -> None:
        self.brain.server.lead(epoch, int(until * 1000))

    async def _keep(self) -> None:
        """However it ends, this process leads no longer, and must not stay as if it did."""
        why = "the lease of the lead was not renewed in time"
        try:
            await self.leadership.keep()
        except Exception as error:
            _log.exception("keeping the lead")
            why = f"keeping the lead failed: {type(error).__name__}: {error}"
        self._stale(Unavailable(why))

    def waits_for(self) -> str | None:
        """What keeps this process from leading as soon as nobody else does."""
        followed = bool(self._informers) and all(
            informer.synced.is_set() for informer in self._informers.values()
        )
        return None if followed else "the objects are not known yet: waiting for the state service"

    async def stop(self) -> None:
        """Answer who waits, let a standby lead, let go of everything; pods run on."""
        await self.brain.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._orders.stop()
        await self.leadership.resign()
        await self._port.close()
        await self._links.stop()
        await asyncio.gather(*(informer.stop() for informer in self._informers.values()))
        self._view.close()
        if self._channel is not None:
            await self._channel.close(None)
        await self._state.close()

    # ---- facts ----

    def _observe(self, fact: dict[str, Any]) -> None:
        self.brain.observe(fact)

    def _gateway_changed(self, event: str, obj: Object[Gateway]) -> None:
        """The object of a gateway lives as long as its leases may: both are over."""
        if event == DELETED:
            self.brain.replace(obj.spec.gateway_id)

    def _tenant(self, event: str, obj: Object[Any]) -> None:
        self._observe(facts.tenant_fact(obj, gone=event == DELETED))

    def _namespace(self, event: str, obj: Object[Any]) -> None:
        self._observe(facts.namespace_fact(obj, gone=event == DELETED))

    def _policy(self, event: str, obj: Object[Any]) -> None:
        for function in self._informers["function"].list():
            if references.may_follow(function, obj.key):
                self._function_changed("modified", function)

    def _function_changed(self, event: str, obj: Object[Any]) -> None:
        if event == DELETED:
            if self._reading[obj.key]:
                self._deleted.add(obj.key)
            self._learned.pop(obj.key, None)
            self._observe(facts.function_gone(obj))
            self._orders.remove_snapshots(obj.key)
            return
        policy = resolve_policy(obj, self._informers["funcpolicy"].get)
        self._observe(facts.function_fact(obj, policy))

    def _shown(self) -> None:
        metrics.shown(self.brain.stats())
        self._catalogue.note(self.brain.snapshot_news())

    def _pod_seen(self, event: str, obj: Object[Pod]) -> None:
        if event == DELETED:
            self._places.gone(obj.meta.name)
        else:
            self._places.seen(obj)
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
        self._reading[key] += 1
        try:
            answer = await self._state.objects.call("Get", request)
            if key in self._deleted:
                # It may have been read before that, and nothing would tell of its end again.
                raise Unavailable(f"function {name} has just been deleted", retry_after_ms=100)
        except NotFound as error:
            raise FunctionNotFound(f"no function {tenant}/{namespace}/{name}") from error
        finally:
            self._reading[key] -= 1
            if not self._reading[key]:
                del self._reading[key]
                self._deleted.discard(key)
        self._learned[key] = convert.from_proto(answer.obj)
        self._function_changed("learned", self._learned[key])

    def _stale(self, error: InferxError) -> None:
        if not self.failed.done():
            self.failed.set_result(StaleEpoch(f"this scheduler leads no longer: {error.message}"))


async def run(config: NodeConfig, stop: asyncio.Event, probes: Health) -> None:
    """Serve until `stop` is set; raises StaleEpoch when this scheduler leads no longer."""
    scheduler = Scheduler(config)
    probes.ready_when(scheduler.waits_for)

    async def start() -> None:
        await scheduler.start()
        await scheduler.lead()

    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(start())
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
