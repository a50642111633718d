"""Leases of workers: asked for when the data plane needs them, given back when it does not.

Must never lose a lease: each is in the data plane, on its way back, or rejected by the scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any

from inferx import telemetry
from inferx._ext import Proxy
from inferx.domain.meta import Key
from inferx.errors import InferxError, QueueTimeout, Unavailable
from inferx.gateway.functions import Functions, join, split
from inferx.gateway.identity import Identity
from inferx.gateway.leader import LeaderLink
from inferx.rpc import na_pb2 as pb

HEARTBEAT_S = 2.0
# Without an answer for so long the scheduler may have given the leases to others; a second less
# than it waits, because its clock started when our heartbeat arrived.
LEASES_LIVE_S = 9.0
RETURN_TRIES_S = 30.0
_RPC_TIMEOUT_S = 5.0
_HEARTBEAT_TIMEOUT_S = 2.0
_EXPLAIN_TIMEOUT_S = 1.0  # the calls that want to know have less time than that
# A request for a worker ends so long before the calls that wait for it, to tell them why.
_ANSWER_LEAD_S = 0.25
_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 0.2  # a takeover lasts about two seconds; nothing of it is to be slept over
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """Slots of one pod, held by this gateway."""

    key: Key
    revision: int
    pod_id: str
    lease_id: str
    slots: int
    epoch: int

    def worker_id(self) -> pb.WorkerId:
        """The lease as it is announced."""
        tenant, namespace, name = self.key
        return pb.WorkerId(
            tenant=tenant,
            namespace=namespace,
            funcname=name,
            fprevision=self.revision,
            id=self.pod_id,
            lease_id=self.lease_id,
            slots=self.slots,
            epoch=self.epoch,
        )


class Workers:
    """What the data plane wants and what the scheduler grants, brought together."""

    def __init__(
        self,
        proxy: Proxy,
        functions: Functions,
        link: LeaderLink,
        identity: Identity,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.connected = asyncio.Event()
        self.leases: dict[int, Lease] = {}
        self._dropped: set[int] = set()  # retiring in the data plane; given back when idle
        self._proxy = proxy
        self._functions = functions
        self._link = link
        self._identity = identity
        self._gateway_id = identity.gateway_id
        self._heartbeat_s = heartbeat_s
        self._handles = itertools.count(1)
        self._epoch = 0
        self._heard = time.monotonic()  # when the last answered heartbeat was sent
        self._turns = 0  # announcements and lapses: a grant from before one may be worth nothing
        self._tasks: set[asyncio.Task[None]] = set()
        self._doubt = asyncio.Event()
        self._news = asyncio.Event()  # something that a heartbeat should tell at once
        self._puzzled: set[Key] = set()  # functions whose calls are about to have waited in vain
        self._presence: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to announce this gateway and to keep it known."""
        self._presence = asyncio.create_task(self._keep_present(), name="scheduler-presence")

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Give everything back, as far as that works within the time."""
        if self._presence is not None:
            self._presence.cancel()
            await asyncio.gather(self._presence, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for handle in list(self.leases):
            self._spawn(self._give_back(handle, False))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def handle(self, event: tuple[Any, ...]) -> None:
        """Act on one event of the data plane."""
        kind, name = event[0], event[1]
        if kind == "need_worker":
            revision, count = event[2], event[3]
            for _ in range(count):
                self._spawn(self._lease(split(name), revision))
        elif kind == "worker_idle":
            self._spawn(self._give_back(event[2], False))
        elif kind == "worker_trimmed":
            if (lease := self.leases.get(event[2])) is not None:
                self.leases[event[2]] = replace(lease, slots=event[3])
                self._news.set()
        elif kind == "why_waiting":
            self._puzzled.add(split(name))
            if len(self._puzzled) == 1:
                self._spawn(self._explain())
        elif kind == "worker_failed":
            _log.warning("worker of %s failed: %s", name, event[3])
            self._spawn(self._give_back(event[2], True))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- leases ----

    async def _lease(self, key: Key, revision: int) -> None:
        definition = self._functions.definition(key)
        wait_s = 30.0 if definition is None else definition.queue_timeout_ms / 1000
        loop = asyncio.get_running_loop()
        lead_s = min(_ANSWER_LEAD_S, wait_s / 10)
        deadline = loop.time() + wait_s - lead_s
        try:
            lease, answer = await self._ask(key, revision, deadline)
        except InferxError as error:
            _log.info("no worker for %s: %s (%s)", join(key), error.message, error.code)
            self._fail(key, revision, error, late=loop.time() + lead_s >= deadline)
            return
        except asyncio.CancelledError:
            self._fail(key, revision, Unavailable("the gateway is stopping"))
            raise
        except Exception:
            # Whatever it was: the data plane must learn that this worker does not come.
            _log.exception("leasing a worker for %s", join(key))
            self._fail(key, revision, InferxError("internal error; see the gateway's log"))
            return
        handle = next(self._handles)
        self.leases[handle] = lease
        host, port = self._address(key, answer)
        added = self._proxy.add_worker(
            join(key),
            revision=revision,
            lease_id=handle,
            pod_id=lease.pod_id,
            host=host,
            port=port,
            slots=lease.slots,
            start=answer.start or ("warm" if answer.keepalive else "cold"),
        )
        if not added:
            await self._give_back(handle, False)

    async def _ask(
        self, key: Key, revision: int, deadline: float
    ) -> tuple[Lease, pb.LeaseWorkerResp]:
        """Ask until that time of the event loop; an unreachable scheduler is asked again."""
        definition = self._functions.definition(key)
        loop = asyncio.get_running_loop()
        request_id = uuid.uuid4().hex
        backoff_s = _BACKOFF_MIN_S
        while True:
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise QueueTimeout(f"no worker of {join(key)} became ready in time")
            tenant, namespace, name = key
            request = pb.LeaseWorkerReq(
                tenant=tenant,
                namespace=namespace,
                funcname=name,
                fprevision=revision,
                gateway_id=self._gateway_id,
                consumer_tenant=tenant,
                request_id=request_id,
                deadline_ms=max(1, round(left_s * 1000)),
            )
            replaced, turns = self._link.replaced, self._turns
            try:
                with telemetry.bind(request_id=request_id):
                    answer = await self._link.call("LeaseWorker", request, left_s + 2.0)
            except Unavailable as error:
                self._doubt.set()
                if loop.time() + backoff_s >= deadline:
                    raise Unavailable(
                        f"the scheduler does not answer: {error.message}", retry_after_ms=1000
                    ) from error
                backoff_s = await self._rest(backoff_s, replaced)
                continue
            if answer.epoch < self._link.epoch:
                continue  # granted by a scheduler that has been replaced: it is worth nothing
            if turns != self._turns:
                # Not among what was announced, or granted before leases ended unnoticed while this
                # process was frozen: asked for under its id again, which says whether it is live.
                continue
            if answer.epoch != self._epoch and self.connected.is_set():
                self._doubt.set()
            slots = answer.slots or (1 if definition is None else definition.parallel)
            lease = Lease(key, revision, answer.id, answer.lease_id, slots, answer.epoch)
            return lease, answer

    async def _rest(self, backoff_s: float, replaced: asyncio.Event) -> float:
        """Rest before a retry, but not when another leads than the one that was asked; the next
        backoff."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(replaced.wait(), backoff_s)
            return _BACKOFF_MIN_S
        return min(backoff_s * 2, _BACKOFF_MAX_S)

    def _fail(self, key: Key, revision: int, error: InferxError, late: bool = False) -> None:
        self._proxy.fail_lease(
            join(key),
            revision=revision,
            http_status=error.http_status,
            code=error.code,
            message=error.message,
            retry_after_ms=error.retry_after_ms,
            late=late,
        )

    async def _explain(self) -> None:
        """Tell the data plane why calls wait, for all functions of which it asked by then."""
        puzzled, self._puzzled = self._puzzled, set()
        names = [
            pb.FunctionName(tenant=tenant, namespace=namespace, funcname=name)
            for tenant, namespace, name in puzzled
        ]
        request = pb.ExplainWaitReq(gateway_id=self._gateway_id, functions=names)
        try:
            answer = await self._link.call("ExplainWait", request, _EXPLAIN_TIMEOUT_S)
        except InferxError as error:
            for key in puzzled:
                why = f"the scheduler does not say what for: {error.message}"
                self._proxy.explain_wait(join(key), why)
            return
        for told in answer.reasons:
            key = (told.function.tenant, told.function.namespace, told.function.funcname)
            self._proxy.explain_wait(join(key), told.reason)

    def _address(self, key: Key, answer: pb.LeaseWorkerResp) -> tuple[str, int]:
        """Where the worker listens: on its host, or under an address of its own."""
        function = self._functions.function(key)
        own_port = 8000 if function is None else function.spec.endpoint.port
        if answer.hostnetwork or not answer.ipaddr:
            return str(IPv4Address(answer.hostipaddr)), answer.hostport or own_port
        return str(IPv4Address(answer.ipaddr)), answer.hostport or own_port

    async def _give_back(self, handle: int, failed: bool) -> None:
        lease = self.leases.pop(handle, None)
        if handle in self._dropped:
            self._dropped.discard(handle)
            self._doubt.set()  # the scheduler wants to hear that this one is held no longer
        if lease is None:
            return
        tenant, namespace, name = lease.key
        request = pb.ReturnWorkerReq(
            tenant=tenant,
            namespace=namespace,
            funcname=name,
            fprevision=lease.revision,
            id=lease.pod_id,
            failworker=failed,
            lease_id=lease.lease_id,
        )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + RETURN_TRIES_S
        backoff_s = _BACKOFF_MIN_S
        while True:
            replaced = self._link.replaced
            try:
                await self._link.call("ReturnWorker", request, _RPC_TIMEOUT_S)
                return
            except Unavailable as error:
                # A scheduler that was restarted meanwhile was not told of this lease either.
                if loop.time() >= deadline:
                    _log.warning("lease %s was not given back: %s", lease.lease_id, error)
                    return
                backoff_s = await self._rest(backoff_s, replaced)
            except InferxError as error:
                _log.info("lease %s is not known any more: %s", lease.lease_id, error)
                return

    # ---- presence ----

    async def _keep_present(self) -> None:
        """Announce, then keep saying that this gateway lives; announce again after any doubt."""
        backoff_s = _BACKOFF_MIN_S
        while True:
            replaced = self._link.replaced
            try:
                await self._announce()
                backoff_s = _BACKOFF_MIN_S
                self.connected.set()
                while not await self._in_doubt(replaced):
                    await self._refresh()
                continue
            except InferxError as error:
                _log.info("the scheduler is not there: %s", error)
                if self._has_lapsed(time.monotonic()):
                    self.drop_all("no scheduler answers, they may be in other hands by now")
            except Exception:
                # Whatever it was: without heartbeats no call would reach a worker any more.
                _log.exception("keeping present at the scheduler")
            backoff_s = await self._rest(backoff_s, replaced)

    async def _in_doubt(self, replaced: asyncio.Event) -> bool:
        """Rest until the next heartbeat; True when somebody saw the scheduler change."""
        news = asyncio.create_task(self._news.wait())
        doubts = {
            asyncio.create_task(self._doubt.wait()), asyncio.create_task(replaced.wait())
        }  # fmt: skip
        try:
            done, _ = await asyncio.wait(
                {news, *doubts}, timeout=self._heartbeat_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in (news, *doubts):
                task.cancel()
        self._news.clear()
        return not done.isdisjoint(doubts)

    async def _refresh(self) -> None:
        """One heartbeat for all leases; when some have ended there, everything is announced anew,
        because a pod that was lost and found again still is whose it was. Slots that other
        gateways wait for are given up as far as our calls can do without."""
        held = list(self.leases.values())
        request = pb.RefreshGatewayReq(
            gateway_id=self._gateway_id,
            lease_ids=[lease.lease_id for lease in held],
            slots=[lease.slots for lease in held],
        )
        sent = time.monotonic()
        answer = await self._link.call("RefreshGateway", request, _HEARTBEAT_TIMEOUT_S)
        known = {lease.lease_id for lease in self.leases.values()}
        unasked = known - {*request.lease_ids} if self._has_lapsed(sent) else set()
        if known.intersection(answer.ended_lease_ids) or unasked:
            self._doubt.set()  # after a lapse nothing is used of which the scheduler was not asked
        else:
            self._hear(sent)
        shares = {share.lease_id: share.slots for share in answer.shares}
        for handle, lease in list(self.leases.items()):
            if lease.lease_id in shares:
                self._proxy.trim_worker(handle, shares[lease.lease_id])

    def spare(self) -> None:
        """This gateway is stopping: others may have what its open calls do not need."""
        for handle, lease in list(self.leases.items()):
            self._proxy.trim_worker(handle, lease.slots)

    def _has_lapsed(self, now: float) -> bool:
        return now - self._heard > LEASES_LIVE_S

    def _hear(self, sent: float) -> None:
        """An answer to what was sent then: the leases that are not dropped live from then on. The
        data plane ends their use by itself, also when this process is frozen meanwhile."""
        if self._has_lapsed(sent):
            self._turns += 1
        self._heard = sent
        self._proxy.hold_leases(sent + LEASES_LIVE_S - time.monotonic())

    def _drop(self, handle: int, why: str) -> None:
        """Use a lease no more. It is given back after its last call: the scheduler may count it
        still, however sure we are that it does not."""
        lease = self.leases.get(handle)
        if lease is None or handle in self._dropped:
            return
        self._dropped.add(handle)
        _log.warning("lease %s of pod %s is dropped: %s", lease.lease_id, lease.pod_id, why)
        if not self._proxy.remove_worker(handle):
            self._spawn(self._give_back(handle, False))

    def drop_all(self, why: str) -> None:
        """Use no lease any more; new ones are asked for as calls come."""
        for handle in list(self.leases):
            self._drop(handle, why)

    async def _announce(self) -> None:
        self._doubt.clear()
        self._turns += 1
        announced = dict(self.leases)
        request = pb.ConnectReq(
            gateway_id=self._gateway_id,
            workers=[lease.worker_id() for lease in announced.values()],
            replaces=self._identity.replaces,
        )
        sent = time.monotonic()
        answer = await self._link.call("ConnectScheduler", request, _HEARTBEAT_TIMEOUT_S)
        self._identity.announced()
        self._epoch = answer.epoch
        rejected = set(answer.rejected_lease_ids)
        for handle, lease in announced.items():
            if lease.lease_id in rejected:
                self._drop(handle, "the scheduler does not accept it any more")
        self._hear(sent)  # last: calls that wait for it must not get what was rejected
        _log.info("announced to the scheduler with %d leases", len(announced) - len(rejected))
