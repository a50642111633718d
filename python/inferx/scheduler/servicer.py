"""SchedulerService for gateways: messages in, verbs of the brain, messages out.

LeaseWorker and ReturnWorker are not here: `SchedulerServer` of the extension answers them.

Must never decide anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from inferx.errors import BadRequest, NotFound, Unavailable
from inferx.rpc import na_pb2 as pb
from inferx.rpc import na_pb2_grpc
from inferx.scheduler.brain import Brain
from inferx.scheduler.leader import Leadership

_log = logging.getLogger(__name__)


class SchedulerServicer(na_pb2_grpc.SchedulerServiceServicer):
    """Answers only while this process leads and its core is `ready`, that is filled."""

    def __init__(self, brain: Brain, leadership: Leadership) -> None:
        self.ready = False
        self._brain = brain
        self._leadership = leadership

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

    async def RefreshGateway(
        self, request: pb.RefreshGatewayReq, context: Any
    ) -> pb.RefreshGatewayResp:
        """A heartbeat for all leases of a gateway at once, which names those that have ended and
        those that others wait for; `NotFound` asks it to announce itself."""
        self._require()
        if not self._brain.refresh(request.gateway_id):
            raise NotFound(f"gateway {request.gateway_id} is not connected; announce its leases")
        gateway_id = request.gateway_id
        ids = {one: _lease_id(one) for one in request.lease_ids}
        self._brain.names(gateway_id, list(ids.values()))
        ended = [one for one, number in ids.items() if not self._brain.holds(gateway_id, number)]
        if not ended:  # otherwise it announces everything now
            self._brain.connect(gateway_id)
            self._brain.heard(gateway_id)
        # A gateway that says nothing of slots holds what it was granted.
        for lease_id, slots in zip(request.lease_ids, request.slots, strict=False):
            if lease_id not in ended:
                self._brain.trim(ids[lease_id], slots)
        return pb.RefreshGatewayResp(ended_lease_ids=ended, shares=self._shares(ids))

    def _shares(self, ids: Mapping[str, int]) -> list[pb.LeaseShare]:
        shares = {one: self._brain.share(number) for one, number in ids.items()}
        return [
            pb.LeaseShare(lease_id=one, slots=slots)
            for one, slots in shares.items()
            if slots is not None
        ]

    async def ExplainWait(self, request: pb.ExplainWaitReq, context: Any) -> pb.ExplainWaitResp:
        """Why calls wait whose own time is over before that of the request for their worker."""
        self._require()
        reasons = []
        for function in request.functions:
            key = (function.tenant, function.namespace, function.funcname)
            if (why := self._brain.why_waiting(key)) is not None:
                reasons.append(pb.WaitReason(function=function, reason=why))
        return pb.ExplainWaitResp(reasons=reasons)

    async def KillPod(self, request: pb.KillPodReq, context: Any) -> pb.KillPodResp:
        """Ends a pod, whatever it does."""
        self._require()
        ended = self._brain.kill(request.id)
        if ended is None:
            return pb.KillPodResp(status=pb.NOT_FOUND)
        return pb.KillPodResp(status=pb.OK if ended else pb.INVALID_STATE)


def _lease_id(text: str) -> int:
    if not text.isdecimal() or len(text) > 19:
        raise BadRequest(f"lease_id: expected a decimal number, got {text!r}")
    return int(text)
