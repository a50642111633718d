"""Keeps the node's object at the state service up to date, whenever that service can be reached.

Must never give up, and never delay pods: the node works without a state service.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import orjson

from inferx.domain.cluster import Node
from inferx.errors import AlreadyExists, Conflict, InferxError, NotFound
from inferx.rpc import ixmeta_pb2 as pb
from inferx.rpc import ixmeta_pb2_grpc
from inferx.rpc.client import call, channel

# The generated stubs carry no types.
StateStub: Any = ixmeta_pb2_grpc.IxMetaServiceStub
log = logging.getLogger("inferx.agent.register")

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
CHECK_S = 10.0
CALL_TIMEOUT_S = 5.0


class Registrar:
    """Creates or updates the node's object, then looks every few seconds that it is still so."""

    def __init__(self, addrs: Sequence[str], name: str, node: Node) -> None:
        self._addrs = addrs
        self._name = name
        self._node = node
        self.registered = asyncio.Event()

    async def run(self) -> None:
        """Runs until cancelled; retries with a delay that grows, over all addresses in turn."""
        delay_s = RETRY_FIRST_S
        turn = 0
        while True:
            try:
                async with channel(self._addrs[turn % len(self._addrs)]) as open_channel:
                    stub = StateStub(open_channel)
                    while True:
                        await self._put(stub)
                        if not self.registered.is_set():
                            log.info("node %s is registered", self._name)
                        self.registered.set()
                        delay_s = RETRY_FIRST_S
                        await asyncio.sleep(CHECK_S)
            except InferxError as error:
                # At the start of a platform it is normal that the others are not there yet.
                level = logging.WARNING if delay_s > 1 else logging.DEBUG
                log.log(level, "node %s is not registered yet: %s", self._name, error.message)
            turn += 1
            await asyncio.sleep(delay_s * random.uniform(0.8, 1.2))  # noqa: S311 - only jitter
            delay_s = min(RETRY_MAX_S, delay_s * 2)

    async def _put(self, stub: Any) -> None:
        wanted = self._node.to_raw()
        obj = pb.Obj(
            kind="node",
            tenant="system",
            namespace="system",
            name=self._name,
            data=orjson.dumps(wanted).decode(),
        )
        try:
            request = pb.GetRequestMessage(
                obj_type="node", tenant="system", namespace="system", name=self._name
            )
            found = await call(stub.Get, request, CALL_TIMEOUT_S)
        except NotFound:
            found = None
        try:
            if found is None:
                await call(stub.Create, pb.CreateRequestMessage(obj=obj), CALL_TIMEOUT_S)
            elif orjson.loads(found.obj.data) != wanted:
                update = pb.UpdateRequestMessage(expect_rev=found.obj.revision, obj=obj)
                await call(stub.Update, update, CALL_TIMEOUT_S)
        except (AlreadyExists, Conflict, NotFound) as error:
            # Somebody changed it between our two calls; the next round sees what it is now.
            raise Conflict(f"the node object changed meanwhile: {error.message}") from error
