"""Renewals of etcd's leases over one stream: to open one for each costs both sides more than it.

Must never answer a renewal with what etcd said to an earlier one, whose time began earlier.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc.aio

from inferx.errors import InferxError, Unavailable
from inferx.store import etcd_pb2
from inferx.store.etcd_client import CALL_TIMEOUT_S, EOF, EtcdClient


class KeepAlives:
    """Renews the leases of whoever asks, at the client's endpoint."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._stream: _Stream | None = None

    async def renew(self, lease: int) -> int:
        """The seconds the lease lives from now, 0 when it has ended. `Unavailable` when etcd does
        not say."""
        if self._client.closed:
            raise Unavailable("the store is closed")
        metadata = await self._client.metadata()
        endpoint, stream = self._client.endpoint, self._stream
        if stream is None or not stream.open or stream.endpoint is not endpoint:
            if stream is not None:
                stream.leave()
            stream = self._stream = _Stream(self._client, endpoint, metadata)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await stream.renew(lease)
        except TimeoutError as error:
            stream.leave()
            self._client.next_endpoint(endpoint)
            raise Unavailable(f"etcd {endpoint.address} does not answer") from error
        except asyncio.CancelledError:
            # Answers come in turn: whoever asks next does not wait behind one that is late.
            stream.leave()
            raise

    async def close(self) -> None:
        """End the stream, and who waits for it."""
        if self._stream is not None:
            await self._stream.close()


class _Stream:
    """One stream to `endpoint`; no longer `open` once it broke or was left to its last answers."""

    def __init__(self, client: EtcdClient, endpoint: Any, metadata: Any) -> None:
        self.endpoint = endpoint
        self.open = True
        self._client = client
        self._call = endpoint.lease.LeaseKeepAlive(metadata=metadata)
        self._unsent: asyncio.Queue[int] = asyncio.Queue()
        self._waiting: dict[int, deque[asyncio.Future[int]]] = {}
        self._task = asyncio.create_task(self._run(), name="etcd-keep-alive")
        self._task.add_done_callback(self._over)

    async def renew(self, lease: int) -> int:
        """See `KeepAlives.renew`."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(lease, deque()).append(answer)
        self._unsent.put_nowait(lease)
        return await answer

    def leave(self) -> None:
        """Nobody asks any more; it ends when all who wait have been answered or have gone."""
        self.open = False
        if not self._is_waited_for():
            self._task.cancel()

    async def close(self) -> None:
        """End it now."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _is_waited_for(self) -> bool:
        return any(not one.done() for answers in self._waiting.values() for one in answers)

    async def _run(self) -> InferxError | None:
        """What broke the stream, None when it was left or closed."""
        writing = asyncio.create_task(self._write(), name="etcd-keep-alive-requests")
        try:
            await self._read()
            return None
        except grpc.aio.AioRpcError as error:
            return self._client.failed(self.endpoint, error)
        except asyncio.InvalidStateError:
            self._client.next_endpoint(self.endpoint)
            return None
        finally:
            writing.cancel()

    def _over(self, task: asyncio.Task[InferxError | None]) -> None:
        self.open = False
        self._call.cancel()
        why = None if task.cancelled() else task.exception() or task.result()
        why = why or Unavailable(f"etcd {self.endpoint.address} closed the stream")
        for answers in self._waiting.values():
            for one in answers:
                if not one.done():
                    one.set_exception(why)

    async def _write(self) -> None:
        try:
            while True:
                lease = await self._unsent.get()
                await self._call.write(etcd_pb2.LeaseKeepAliveRequest(ID=lease))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # who reads learns of it and acts

    async def _read(self) -> None:
        while (answer := await self._call.read()) is not EOF:
            answers = self._waiting.get(answer.ID)
            if not answers:
                continue
            one = answers.popleft()
            if not answers:
                del self._waiting[answer.ID]
            if not one.done():
                one.set_result(int(answer.TTL))
            if not self.open and not self._is_waited_for():
                return
