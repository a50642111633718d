"""The store in etcd, over the v3 API.

Must never lose an event silently: a gap ends the watch with `Compacted`, and readers list again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

from inferx.config import EtcdConfig
from inferx.errors import BadRequest, Compacted, NotFound, Unavailable
from inferx.store import etcd_pb2
from inferx.store.etcd_client import EtcdClient
from inferx.store.etcd_leases import KeepAlives
from inferx.store.protocol import (
    OPS_MAX,
    At,
    Delete,
    Empty,
    Entry,
    Event,
    Guard,
    GuardFailed,
    Op,
)

_BACKOFF_MIN_S = 0.05
_BACKOFF_MAX_S = 1.0
_log = logging.getLogger(__name__)


class EtcdStore:
    """`protocol.Store` in etcd; made by `await EtcdStore.open(addresses, config)`."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._keep_alives = KeepAlives(client)
        self._uid = 0

    @classmethod
    async def open(cls, addresses: Sequence[str], config: EtcdConfig) -> EtcdStore:
        """Connect. `Unavailable` when no endpoint answers, `Unauthenticated` when login fails."""
        store = cls(EtcdClient(addresses, config))
        try:
            await store.uid()
        except BaseException:
            await store.close()
            raise
        return store

    async def uid(self) -> int:
        """See `protocol.Store`: the cluster id."""
        if not self._uid:
            answer = await self._client.read(
                lambda e: e.kv.Range, etcd_pb2.RangeRequest(key=b"/registry/", limit=1)
            )
            self._uid = int(answer.header.cluster_id)
        return self._uid

    async def get(self, key: str, revision: int = 0) -> Entry | None:
        """See `protocol.Store`."""
        request = etcd_pb2.RangeRequest(key=key.encode(), revision=revision)
        answer = await self._client.read(lambda e: e.kv.Range, request)
        return _entry(answer.kvs[0]) if answer.kvs else None

    async def scan(self, prefix: str, revision: int = 0) -> tuple[list[Entry], int]:
        """See `protocol.Store`."""
        start, end = _range(prefix)
        found, at = await self._client.pages(start, end, revision)
        return [_entry(kv) for kv in found], at

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        """See `protocol.Store`."""
        if len(ops) > OPS_MAX:
            raise BadRequest(f"a transaction of {len(ops)} operations; at most {OPS_MAX}")
        request = etcd_pb2.TxnRequest(
            compare=[_compare(guard) for guard in guards], success=[_op(op) for op in ops]
        )
        answer = await self._client.once(lambda e: e.kv.Txn, request)
        if not answer.succeeded:
            raise GuardFailed("a guard did not hold: " + "; ".join(map(str, guards)))
        return int(answer.header.revision)

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Event]]:
        """See `protocol.Store`. Reopened after the last event seen, never after a header."""
        start, end = _range(prefix)
        last = revision
        backoff_s = _BACKOFF_MIN_S
        while not self._client.closed:
            try:
                async for events in self._one_watch(start, end, last):
                    backoff_s = _BACKOFF_MIN_S
                    # A member that is behind may repeat itself; revisions only grow.
                    fresh = [event for event in events if event.revision > last]
                    if fresh:
                        last = fresh[-1].revision
                        yield fresh
                _log.warning("watch of %s was silent or ended; reopened after %d", prefix, last)
            except Unavailable as error:
                _log.warning("watch of %s broke, reopened after %d: %s", prefix, last, error)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311
            backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)
        raise Unavailable("the store is closed")

    async def _one_watch(self, start: bytes, end: bytes, after: int) -> AsyncIterator[list[Event]]:
        """Whole revisions of one stream; fragments are put together."""
        gathered: list[Event] = []
        async for answer in self._client.watch_once(start, end, after + 1):
            if answer.compact_revision:
                raise Compacted(
                    f"changes after {after} are compacted; kept from {answer.compact_revision}"
                )
            if answer.canceled:
                raise Unavailable(f"etcd ended the watch: {answer.cancel_reason or 'no reason'}")
            gathered += [_event(event) for event in answer.events]
            if gathered and not answer.fragment:
                yield gathered
                gathered = []

    async def grant(self, ttl_s: float) -> int:
        """See `protocol.Store`; etcd counts whole seconds."""
        request = etcd_pb2.LeaseGrantRequest(TTL=max(1, round(ttl_s)))
        answer = await self._client.once(lambda e: e.lease.LeaseGrant, request)
        return int(answer.ID)

    async def keep_alive(self, lease: int) -> float:
        """See `protocol.Store`."""
        ttl_s = await self._keep_alives.renew(lease)
        if ttl_s <= 0:
            raise NotFound(f"lease {lease} has ended")
        return float(ttl_s)

    async def revoke(self, lease: int) -> None:
        """See `protocol.Store`."""
        await self._client.once(
            lambda e: e.lease.LeaseRevoke, etcd_pb2.LeaseRevokeRequest(ID=lease)
        )

    async def compact(self, revision: int) -> None:
        """See `protocol.Store`."""
        await self._client.once(
            lambda e: e.kv.Compact, etcd_pb2.CompactionRequest(revision=revision)
        )

    async def close(self) -> None:
        """See `protocol.Store`."""
        await self._keep_alives.close()
        await self._client.close()


def _range(prefix: str) -> tuple[bytes, bytes]:
    """First key and end of everything that starts with `prefix`."""
    start = prefix.encode()
    return start, start[:-1] + bytes([start[-1] + 1])


def _entry(kv: etcd_pb2.KeyValue) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _event(event: etcd_pb2.Event) -> Event:
    kv = event.kv
    previous = _entry(event.prev_kv) if event.HasField("prev_kv") else None
    entry = _entry(kv) if event.type == etcd_pb2.Event.PUT else None
    return Event(kv.key.decode(), kv.mod_revision, entry, previous)


def _compare(guard: Guard) -> etcd_pb2.Compare:
    fields: dict[str, Any] = {"target": etcd_pb2.Compare.MOD}
    if isinstance(guard, At):
        fields |= {
            "key": guard.key.encode(),
            "result": etcd_pb2.Compare.EQUAL,
            "mod_revision": guard.revision,
        }
        return etcd_pb2.Compare(**fields)
    # Over a range the comparison must hold for every key in it; an empty range counts as 0.
    start, end = _range(guard.prefix)
    after = 0 if isinstance(guard, Empty) else guard.revision
    fields |= {
        "key": start,
        "range_end": end,
        "result": etcd_pb2.Compare.LESS,
        "mod_revision": after + 1,
    }
    return etcd_pb2.Compare(**fields)


def _op(op: Op) -> etcd_pb2.RequestOp:
    if isinstance(op, Delete):
        return etcd_pb2.RequestOp(
            request_delete_range=etcd_pb2.DeleteRangeRequest(key=op.key.encode())
        )
    return etcd_pb2.RequestOp(
        request_put=etcd_pb2.PutRequest(key=op.key.encode(), value=op.value, lease=op.lease)
    )
