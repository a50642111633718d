"""An etcd that lies: its watches are cut, repeated, shuffled, shortened, compacted and backdated.

Reads and transactions are honest, as they are in the real one; the watch is what may go wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from inferx.store import etcd_pb2 as pb
from inferx.store import etcd_pb2_grpc

TRICKS = ("honest", "cut", "duplicate", "shuffle", "lose", "backdate", "cancel", "fragment")


class FakeEtcd(etcd_pb2_grpc.KVServicer, etcd_pb2_grpc.WatchServicer):
    """`tricks` are played at random by `seed`; `played` counts them."""

    def __init__(self, seed: int, tricks: tuple[str, ...] = TRICKS) -> None:
        self.revision = 1
        self.compacted = 0
        self.current: dict[bytes, pb.KeyValue] = {}
        self.played: dict[str, int] = dict.fromkeys((*TRICKS, "compacted", "lied"), 0)
        self._history: list[pb.Event] = []
        self._random = random.Random(seed)
        self._tricks = tricks
        self._written = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        """Listen; the address."""
        self._server = grpc.aio.server()
        add_kv: Any = etcd_pb2_grpc.add_KVServicer_to_server
        add_watch: Any = etcd_pb2_grpc.add_WatchServicer_to_server
        add_kv(self, self._server)
        add_watch(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """End."""
        if self._server is not None:
            await self._server.stop(0)

    def be_honest(self) -> None:
        """No more tricks from now on."""
        self._tricks = ("honest",)

    # ---- the store ----

    def put(self, key: bytes, value: bytes) -> int:
        """Write as one revision."""
        self.revision += 1
        before = self.current.get(key)
        created = self.revision if before is None else before.create_revision
        kv = pb.KeyValue(key=key, value=value, create_revision=created, mod_revision=self.revision)
        self.current[key] = kv
        self._note(pb.Event(type=pb.Event.PUT, kv=kv, prev_kv=before))
        return self.revision

    def delete(self, key: bytes) -> None:
        """Remove as one revision."""
        before = self.current.pop(key, None)
        if before is not None:
            self.revision += 1
            kv = pb.KeyValue(key=key, mod_revision=self.revision)
            self._note(pb.Event(type=pb.Event.DELETE, kv=kv, prev_kv=before))

    def compact(self) -> None:
        """Forget the history."""
        self.compacted = self.revision

    def _note(self, event: pb.Event) -> None:
        self._history.append(event)
        written, self._written = self._written, asyncio.Event()
        written.set()

    def _header(self, revision: int = 0) -> pb.ResponseHeader:
        return pb.ResponseHeader(cluster_id=7, revision=revision or self.revision)

    async def Range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
        """Honest, page by page; of the past only what the tests' cache asks for."""
        end = request.range_end or request.key + b"\0"
        found = sorted(key for key in self.current if request.key <= key < end)
        page = found[: request.limit or len(found)]
        return pb.RangeResponse(
            header=self._header(),
            kvs=[self.current[key] for key in page],
            more=len(page) < len(found),
        )

    async def Txn(self, request: pb.TxnRequest, context: Any) -> pb.TxnResponse:
        """Guards by the revision of one key, then puts and deletes."""
        for guard in request.compare:
            known = self.current.get(guard.key)
            if (0 if known is None else known.mod_revision) != guard.mod_revision:
                return pb.TxnResponse(header=self._header(), succeeded=False)
        for op in request.success:
            if op.HasField("request_put"):
                self.put(op.request_put.key, op.request_put.value)
            else:
                self.delete(op.request_delete_range.key)
        return pb.TxnResponse(header=self._header(), succeeded=True)

    # ---- the watch ----

    async def Watch(self, requests: Any, context: Any) -> AsyncIterator[pb.WatchResponse]:
        """One watch a stream."""
        create = (await anext(aiter(requests))).create_request
        following = create.start_revision or self.revision + 1
        # Real servers say here how far they are, not how far the watch is: who resumes from this
        # header loses everything in between.
        self.played["lied"] += 1
        yield pb.WatchResponse(created=True, header=self._header(self.revision + 1000))
        if following <= self.compacted:
            self.played["compacted"] += 1
            yield pb.WatchResponse(
                canceled=True, compact_revision=self.compacted, header=self._header()
            )
            return
        while True:
            written = self._written
            batch = [
                event
                for event in self._history
                if event.kv.mod_revision >= following
                and create.key <= event.kv.key < create.range_end
            ]
            following = self.revision + 1
            if batch:
                trick = self._random.choice(self._tricks)
                self.played[trick] += 1
                if trick == "cut":
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                for answer in self._answers(trick, batch):
                    yield answer
                    if answer.canceled:
                        return
            await written.wait()

    def _answers(self, trick: str, batch: list[pb.Event]) -> list[pb.WatchResponse]:
        header = self._header()
        whole = pb.WatchResponse(header=header, events=batch)
        if trick == "duplicate":
            old = self._history[: self._random.randrange(1, len(self._history) + 1)]
            repeated = [event for event in old if event.kv.key.startswith(b"/registry/")]
            return [whole, whole, pb.WatchResponse(header=header, events=repeated[:5])]
        if trick == "shuffle":
            mixed = self._random.sample(batch, len(batch))
            return [pb.WatchResponse(header=header, events=mixed)]
        if trick == "lose":
            kept = [event for event in batch if self._random.random() < 0.5]
            return [pb.WatchResponse(header=header, events=kept)]
        if trick == "backdate":
            return [whole, pb.WatchResponse(header=self._header(1))]
        if trick == "cancel":
            return [whole, pb.WatchResponse(header=header, canceled=True, cancel_reason="a whim")]
        if trick == "fragment":
            parts = [pb.WatchResponse(header=header, events=[e], fragment=True) for e in batch]
            parts[-1].fragment = False
            return parts
        return [whole]
