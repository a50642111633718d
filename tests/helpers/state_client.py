"""The state service as its callers use it, and waiting on conditions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio

from inferx.domain.meta import Key
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc


async def until(condition: Callable[[], bool]) -> None:
    """Wait for `condition`; tests fail when it does not come true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what is awaited has no event)
            await asyncio.sleep(0.005)


class Client:
    """The state service as its callers use it."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._channel = client.channel(self.address)
        make: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self.stub = make(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def create(
        self, kind: str, key: Key, raw: Any = None, **envelope: Any
    ) -> tuple[int, list[str]]:
        tenant, namespace, name = key
        manifest = {"type": kind, "tenant": tenant, "namespace": namespace, "name": name}
        return await self.create_manifest({**manifest, "object": raw or {}, **envelope})

    async def create_manifest(self, manifest: dict[str, Any]) -> tuple[int, list[str]]:
        request = ixmeta_pb2.CreateRequestMessage(obj=convert.message_of(manifest))
        response, warnings = await client.write(self.stub.Create, request)
        return response.revision, warnings

    async def update(self, kind: str, key: Key, raw: Any, expect_rev: int = 0) -> int:
        tenant, namespace, name = key
        manifest = {"type": kind, "tenant": tenant, "namespace": namespace, "name": name}
        message = convert.message_of({**manifest, "object": raw})
        request = ixmeta_pb2.UpdateRequestMessage(obj=message, expect_rev=expect_rev)
        return int((await client.call(self.stub.Update, request)).revision)

    async def delete(self, kind: str, key: Key, expect_rev: int = 0) -> int:
        tenant, namespace, name = key
        request = ixmeta_pb2.DeleteRequestMessage(
            obj_type=kind, tenant=tenant, namespace=namespace, name=name, expect_rev=expect_rev
        )
        return int((await client.call(self.stub.Delete, request)).revision)

    async def get(self, kind: str, key: Key, revision: int = 0) -> ixmeta_pb2.Obj:
        tenant, namespace, name = key
        request = ixmeta_pb2.GetRequestMessage(
            obj_type=kind, tenant=tenant, namespace=namespace, name=name, revision=revision
        )
        found: ixmeta_pb2.Obj = (await client.call(self.stub.Get, request)).obj
        return found

    async def names(self, kind: str, **fields: Any) -> list[str]:
        request = ixmeta_pb2.ListRequestMessage(obj_type=kind, **fields)
        return [obj.name for obj in (await client.call(self.stub.List, request)).objs]

    async def watch(
        self, count: int, kind: str, **fields: Any
    ) -> list[tuple[ixmeta_pb2.EventType, str]]:
        """The first `count` events of a new watch."""
        call = self.stub.Watch(ixmeta_pb2.ListRequestMessage(obj_type=kind, **fields))
        events = []
        try:
            async with asyncio.timeout(20):
                for _ in range(count):
                    event = await call.read()
                    events.append((event.event_type, event.obj.name))
        except grpc.aio.AioRpcError as error:
            raise client.typed(error) from error
        finally:
            call.cancel()
        return events
