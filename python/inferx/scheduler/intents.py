"""The durable record of which pods should exist: written before a pod is, ended after it was.

Must never let an order for a pod go out that the store does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from inferx.domain import codec
from inferx.domain.meta import Key, Object
from inferx.domain.objects import Pod, PodStatus, read_alloc
from inferx.domain.reader import Fields
from inferx.errors import AlreadyExists, InferxError, NotFound, StaleEpoch
from inferx.rpc import convert
from inferx.rpc import ixmeta_pb2 as pb
from inferx.store.informer import Informer
from inferx.store.presence import State

EPOCH_ANNOTATION = "inferx/epoch"
FAILED = "Failed"
_log = logging.getLogger(__name__)


class Intents:
    """Pods in the store, read through `informer` and written under `epoch`.

    `stale` is called when the store refuses a write because another scheduler leads.
    """

    def __init__(self, state: State, stale: Callable[[InferxError], None]) -> None:
        self.epoch = 0
        self._state = state
        self._stale = stale
        self._informer: Informer | None = None
        # Written by this process; the informer follows a moment later.
        self._written: dict[str, Object[Pod]] = {}

    def follow(self, informer: Informer) -> None:
        """Read what former schedulers wrote."""
        self._informer = informer

    def all(self) -> dict[str, Object[Pod]]:
        """Every pod of the store by its id, with those that are ended but still remembered."""
        found = {} if self._informer is None else {o.meta.name: o for o in self._informer.list()}
        for pod_id in [pod_id for pod_id in self._written if pod_id in found]:
            del self._written[pod_id]
        return {**self._written, **found}

    def wants(self, key: Key) -> bool:
        """Whether the store says that this pod should exist."""
        known = self._written.get(key[2])
        if known is None and self._informer is not None:
            known = self._informer.get(key)
        return known is not None and is_wanted(known)

    async def place(self, effect: dict[str, Any]) -> None:
        """Record that a pod is about to be made; raises what forbids it."""
        pod = Pod(
            funcname=effect["funcname"],
            fprevision=effect["revision"],
            node=effect["node"],
            alloc=read_alloc(Fields(effect["alloc"], "alloc", [])),
        )
        key = (effect["tenant"], effect["namespace"], effect["pod_id"])
        annotations = {EPOCH_ANNOTATION: str(self.epoch)}
        obj = codec.new("pod", key, pod.to_raw(), annotations=annotations)
        message = self._message(obj)
        try:
            await self._call("Create", pb.CreateRequestMessage(obj=message))
        except AlreadyExists:
            _log.info("pod %s is recorded already: the first answer was lost", key[2])
        self._written[key[2]] = obj

    async def failed(self, obj: Object[Pod], reason: str, now_ms: int) -> None:
        """Record that a pod ended by failing, and why; it is forgotten some time later."""
        status = PodStatus(state=FAILED, reason=reason, since_ms=now_ms, error=reason)
        spec = replace(obj.spec, status=status)
        new = codec.new("pod", obj.key, spec.to_raw(), annotations=obj.meta.annotations)
        try:
            request = pb.UpdateRequestMessage(obj=self._message(new), expect_rev=obj.revision)
            await self._call("Update", request)
        except NotFound:
            _log.info("pod %s is gone from the store already", obj.meta.name)
        self._written.pop(obj.meta.name, None)

    async def ended(self, obj: Object[Pod]) -> None:
        """Forget a pod."""
        tenant, namespace, name = obj.key
        request = pb.DeleteRequestMessage(
            obj_type="pod", tenant=tenant, namespace=namespace, name=name, src_epoch=self.epoch
        )
        try:
            await self._call("Delete", request)
        except NotFound:
            _log.debug("pod %s is gone from the store already", name)
        self._written.pop(name, None)

    def _message(self, obj: Object[Pod]) -> pb.Obj:
        message = convert.to_proto(obj)
        message.src_epoch = self.epoch
        return message

    async def _call(self, method: str, request: Any) -> None:
        try:
            await self._state.objects.call(method, request)
        except StaleEpoch as error:
            self._stale(error)
            raise


def is_wanted(obj: Object[Pod]) -> bool:
    """False for one that has ended and is only remembered."""
    return obj.spec.status.state != FAILED
