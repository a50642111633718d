"""An error raised in a servicer arrives as the same error at the caller, and never as its text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from inferx import errors
from inferx.errors import InferxError, NotSupported, Unavailable
from inferx.rpc import client, ixmeta_pb2, ixmeta_pb2_grpc, server

RAISE: dict[str, Exception] = {
    "conflict": errors.Conflict("größer\nthan", retry_after_ms=250, details={"revision": 7}),
    "long": errors.StartFailed("é\n" * 50_000),
    "bug": ValueError("password=hunter2"),
}


class Servicer(ixmeta_pb2_grpc.IxMetaServiceServicer):
    async def Version(self, request: Any, context: Any) -> Any:
        return ixmeta_pb2.VersionResponseMessage(version="1")

    async def Get(self, request: Any, context: Any) -> Any:
        raise RAISE[request.name]

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield ixmeta_pb2.WEvent(event_type=ixmeta_pb2.ADDED)
        raise errors.Compacted("list again")


@pytest.fixture
async def running() -> AsyncIterator[server.Server]:
    def register(target: grpc.aio.Server) -> None:
        add: Any = ixmeta_pb2_grpc.add_IxMetaServiceServicer_to_server
        add(Servicer(), target)

    started = await server.serve("127.0.0.1:0", [register])
    yield started
    await started.stop(0)


@pytest.fixture
async def stub(running: server.Server) -> AsyncIterator[Any]:
    channel = client.channel(f"127.0.0.1:{running.port}")
    make_stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub
    yield make_stub(channel)
    await channel.close(None)


async def failure(stub: Any, name: str) -> InferxError:
    with pytest.raises(InferxError) as caught:
        await client.call(stub.Get, ixmeta_pb2.GetRequestMessage(name=name))
    return caught.value


async def test_an_error_arrives_as_it_was_raised(stub: Any) -> None:
    error = await failure(stub, "conflict")
    assert type(error) is errors.Conflict
    assert error.to_dict() == RAISE["conflict"].to_dict()  # type: ignore[attr-defined]


async def test_a_long_error_is_cut_and_still_typed(stub: Any) -> None:
    error = await failure(stub, "long")
    assert type(error) is errors.StartFailed
    assert error.message.startswith("é\né\n")


async def test_a_bug_does_not_talk(stub: Any, caplog: pytest.LogCaptureFixture) -> None:
    error = await failure(stub, "bug")
    assert type(error) is InferxError
    assert "hunter2" not in error.message
    assert "unexpected error in /ixmeta.IxMetaService/Get" in caplog.text


async def test_a_stream_ends_with_its_error(stub: Any) -> None:
    call = stub.Watch(ixmeta_pb2.ListRequestMessage())
    assert (await call.read()).event_type == ixmeta_pb2.ADDED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert isinstance(client.typed(caught.value), errors.Compacted)


async def test_an_unserved_method_says_so(stub: Any) -> None:
    with pytest.raises(NotSupported):
        await client.call(stub.Uid, ixmeta_pb2.UidRequestMessage())


async def test_an_old_client_finds_the_text_in_the_response(running: server.Server) -> None:
    """The response message travels beside the status; its `error` is filled."""
    seen: list[bytes] = []

    def keep(data: bytes) -> bytes:
        seen.append(data)
        return data

    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
        method = channel.unary_unary(
            "/ixmeta.IxMetaService/Get",
            request_serializer=ixmeta_pb2.GetRequestMessage.SerializeToString,
            response_deserializer=keep,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(ixmeta_pb2.GetRequestMessage(name="conflict"))
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert caught.value.details() == "größer\nthan"


async def test_a_taken_port_is_named(running: server.Server) -> None:
    with pytest.raises(Unavailable, match=f"127.0.0.1:{running.port}"):
        await server.serve(f"127.0.0.1:{running.port}", [])


async def test_nobody_there_is_unavailable() -> None:
    async with client.channel("127.0.0.1:1") as channel:
        make_stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        stub = make_stub(channel)
        with pytest.raises(Unavailable):
            await client.call(stub.Version, ixmeta_pb2.VersionRequestMessage(), timeout_s=5)
