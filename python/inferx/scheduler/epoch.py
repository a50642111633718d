"""The epoch of this scheduler process: the revision of the object that it writes at start.

Must never be reused; agents refuse orders of a lower one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from inferx.domain import codec
from inferx.domain.meta import SYSTEM
from inferx.errors import AlreadyExists, Conflict, NotFound, Unavailable
from inferx.rpc import client, convert
from inferx.rpc import ixmeta_pb2 as pb

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
_log = logging.getLogger(__name__)


async def begin(stub: Any, address: str) -> int:
    """Write the scheduler object and return its revision; waits for the state service."""
    delay_s = RETRY_FIRST_S
    while True:
        try:
            return await _write(stub, address)
        except (AlreadyExists, Conflict, NotFound) as error:
            _log.info("another scheduler began at the same time: %s", error.message)
        except Unavailable as error:
            _log.info("waiting for the state service: %s", error.message)
        await asyncio.sleep(delay_s)
        delay_s = min(RETRY_MAX_S, delay_s * 2)


async def _write(stub: Any, address: str) -> int:
    # The instance makes each write a change, so that it gets a revision of its own.
    raw = {"spec": {"address": address, "instance": uuid.uuid4().hex}}
    obj = convert.to_proto(codec.new("scheduler", (SYSTEM, SYSTEM, "scheduler"), raw))
    get = pb.GetRequestMessage(
        obj_type="scheduler", tenant=SYSTEM, namespace=SYSTEM, name="scheduler"
    )
    try:
        found = await client.call(stub.Get, get)
    except NotFound:
        answer = await client.call(stub.Create, pb.CreateRequestMessage(obj=obj))
    else:
        update = pb.UpdateRequestMessage(expect_rev=found.obj.revision, obj=obj)
        answer = await client.call(stub.Update, update)
    return int(answer.revision)
