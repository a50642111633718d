"""SchedulerService for gateways: messages in, verbs of the brain, messages out.

Must never decide anything.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from inferx import telemetry
from inferx.domain.meta import Key, check_name
from inferx.errors import BadRequest, InferxError, NotFound, StaleLease, Unavailable
from inferx.rpc import na_pb2 as pb
from inferx.rpc import na_pb2_grpc
from inferx.scheduler import metrics
from inferx.scheduler.brain import LEASE_TTL_MS, Brain, Granted, Wish
from inferx.scheduler.leader import Leadership

_log = logging.getLogger(__name__)

AddressOf = Callable[[str], tuple[str, int]]
StartOf = Callable[[str, str], str]
Learn = Callable[[Key], Awaitable[None]]


class SchedulerServicer(na_pb2_grpc.SchedulerServiceServicer):
    """`address_of` finds a pod's address; `learn` reads a function that is not known yet;
    `start_of` refines how a granted pod was started.

    Answers only while this process leads and its core is `ready`, that is filled.
    """

    def __init__(
        self,
        brain: Brain,
        leadership: Leadership,
        address_of: AddressOf,
        learn: Learn,
        start_of: StartOf,
    ) -> None:
        self.ready = False
        self._brain = brain
        self._leadership = leadership
        self._address_of = address_of
        self._learn = learn
        self._start_of = start_of

    async def ConnectScheduler(self, request: pb.ConnectReq, context: Any) -> pb.ConnectResp:
        """A gateway says which leases it holds; those that it must drop are named."""
        self._require()
        for gone in request.replaces:
            self._brain.replace(gone)
        self._brain.connect(request.gateway_id)
        rejected = [
            worker.lease_id
            for worker in request.workers
            if not self._brain.announce(
                request.gateway_id, _lease_id(worker.lease_id), worker.id, worker.slots
            )
        ]
        if not rejected:
            # Otherwise it may hold a pod that no agent has told of yet: it is believed to have said
            # all when its next heartbeat names only leases that are known here.
            self._brain.heard(request.gateway_id)
        _log.info(
            "gateway %d announced %d leases, %d rejected",
            request.gateway_id,
            len(request.workers),
            len(rejected),
        )
        return pb.ConnectResp(rejected_lease_ids=rejected, epoch=self._leadership.epoch)

    def _require(self) -> None:
        self._leadership.require()
        if not self.ready:
            raise Unavailable("this scheduler is taking over", retry_after_ms=100)

    async def LeaseWorker(self, request: pb.LeaseWorkerReq, context: Any) -> pb.LeaseWorkerResp:
        """Slots of a worker, after a start if need be; answers by the deadline."""
        self._require()
        key = _key(request)
        begun = time.monotonic()
        with telemetry.bind(request_id=request.request_id):
            try:
                if not self._brain.knows(key, request.fprevision):
                    await self._learn(key)
                granted = await self._brain.lease(
                    Wish(
                        key=key,
                        revision=request.fprevision,
                        gateway_id=request.gateway_id,
                        request_id=request.request_id,
                        slots=request.slots,
                        wait_ms=request.deadline_ms,
                        consumer=request.consumer_tenant,
                    )
                )
            except InferxError as error:
                metrics.refused(error.code)
                _log.info("no lease of %s: %s (%s)", "/".join(key), error.message, error.code)
                raise
            if context.cancelled():
                self._brain.give_back(granted.lease_id)
        self._leadership.require()  # the lead may have ended while the call waited
        start = self._start_of(granted.pod_id, granted.start)
        metrics.granted(start, time.monotonic() - begun)
        return self._answer(granted)

    def _answer(self, granted: Granted) -> pb.LeaseWorkerResp:
        try:
            ip, port = self._address_of(granted.pod_id)
        except InferxError:
            self._brain.give_back(granted.lease_id, ok=False)
            raise
        address = int(ipaddress.IPv4Address(ip))
        return pb.LeaseWorkerResp(
            id=granted.pod_id,
            ipaddr=address,
            keepalive=granted.start == "warm",
            hostipaddr=address,
            hostport=port,
            lease_id=str(granted.lease_id),
            epoch=self._leadership.epoch,
            slots=granted.slots,
            start=self._start_of(granted.pod_id, granted.start),
            expires_ms=LEASE_TTL_MS,
        )

    async def ReturnWorker(self, request: pb.ReturnWorkerReq, context: Any) -> pb.ReturnWorkerResp:
        """Ends a lease; `StaleLease` when it is not live."""
        self._require()
        if not self._brain.give_back(_lease_id(request.lease_id), ok=not request.failworker):
            raise StaleLease(f"lease {request.lease_id} of pod {request.id} is not live")
        return pb.ReturnWorkerResp()

    async def RefreshGateway(
        self, request: pb.RefreshGatewayReq, context: Any
    ) -> pb.RefreshGatewayResp:
        """A heartbeat for all leases of a gateway at once, which names those that have ended and
        those that others wait for; `NotFound` asks it to announce itself."""
        self._require()
        if not self._brain.refresh(request.gateway_id):
            raise NotFound(f"gateway {request.gateway_id} is not connected; announce its leases")
        gateway_id = request.gateway_id
        holds = self._brain.holds
        ended = [one for one in request.lease_ids if not holds(gateway_id, _lease_id(one))]
        if not ended:  # otherwise it announces everything now
            self._brain.heard(gateway_id)
        # A gateway that says nothing of slots holds what it was granted.
        for lease_id, slots in zip(request.lease_ids, request.slots, strict=False):
            if lease_id not in ended:
                self._brain.trim(_lease_id(lease_id), slots)
        return pb.RefreshGatewayResp(ended_lease_ids=ended, shares=self._shares(request.lease_ids))

    def _shares(self, lease_ids: Iterable[str]) -> list[pb.LeaseShare]:
        shares = {one: self._brain.share(_lease_id(one)) for one in lease_ids}
        return [
            pb.LeaseShare(lease_id=one, slots=slots)
            for one, slots in shares.items()
            if slots is not None
        ]

    async def KillPod(self, request: pb.KillPodReq, context: Any) -> pb.KillPodResp:
        """Ends a pod, whatever it does."""
        self._require()
        ended = self._brain.kill(request.id)
        if ended is None:
            return pb.KillPodResp(status=pb.NOT_FOUND)
        return pb.KillPodResp(status=pb.OK if ended else pb.INVALID_STATE)


def _key(request: pb.LeaseWorkerReq) -> Key:
    return (
        check_name(request.tenant, "tenant"),
        check_name(request.namespace, "namespace"),
        check_name(request.funcname, "funcname"),
    )


def _lease_id(text: str) -> int:
    if not text.isdecimal() or len(text) > 19:
        raise BadRequest(f"lease_id: expected a decimal number, got {text!r}")
    return int(text)
