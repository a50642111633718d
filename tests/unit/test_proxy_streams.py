"""Streams, silence and disconnects: what the other side sees, and when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.proxy_kit import DOORS, RawWorker, Rig, Wire

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STALL_S = 0.3
GONE_MS = 250  # the target is 10 ms on an idle machine; tests share theirs


@pytest.fixture(params=DOORS)
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with Rig(
        tmp_path, request.param, head_timeout_ms=300, idle_timeout_ms=400, first_byte_timeout_ms=400
    ) as rig:
        rig.function()
        yield rig


@pytest.fixture
async def worker(rig: Rig) -> AsyncIterator[RawWorker]:
    async with RawWorker() as worker:
        rig.add(worker.port)
        yield worker


async def test_tokens_arrive_as_they_are_written(rig: Rig, worker: RawWorker) -> None:
    client = await rig.request()
    upstream = await worker.accept()
    await upstream.head()
    await upstream.send(CHUNKED)
    assert (await client.head()).status == 200
    for number in range(5):
        await upstream.send(b"8\r\ntoken %2d\r\n" % number)
        assert await client.chunk() == b"token %2d" % number
    await upstream.send(b"0\r\n\r\n")
    assert await client.chunk() == b""
    await rig.gauge("active", 0)
    assert rig.records()[0][5] == "complete"


@pytest.mark.parametrize("phase", ["silent", "streaming"])
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_client_that_leaves_closes_the_worker_at_once(
    rig: Rig, worker: RawWorker, phase: str, how: str
) -> None:
    client = await rig.request(method="POST", body=b"x" * 100)
    upstream = await worker.accept()
    await upstream.message()
    if phase == "streaming":
        await upstream.send(CHUNKED, b"1\r\na\r\n")
        await client.head()
        await client.chunk()
    started = time.monotonic()
    getattr(client, how)()
    assert await upstream.closed() == b""
    assert (time.monotonic() - started) * 1000 < GONE_MS
    await rig.gauge("active", 0)
    assert rig.stats()["client_gone"] == 1
    assert rig.records()[0][5] == "client_gone"
    assert not rig.events, "a client that leaves says nothing about the worker"


@pytest.mark.parametrize("body", [None, b"small", b"x" * 300_000])
async def test_a_parked_client_that_leaves_leaves_the_line(rig: Rig, body: bytes | None) -> None:
    client = await rig.request(method="POST" if body else "GET", body=body)
    await rig.gauge("parked", 1)
    client.abort()
    await rig.gauge("parked", 0)
    assert rig.stats()["statuses"] == {"499": 1}


async def test_a_client_that_leaves_while_its_upload_is_not_read(
    rig: Rig, worker: RawWorker
) -> None:
    megabytes = 40  # more than all buffers on the way
    client = await rig.client()

    async def upload() -> None:
        size = megabytes << 20
        head = f"POST /funccall/t/n/f/x HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        client.writer.write(head.encode())
        for _ in range(megabytes):
            client.writer.write(b"x" * (1 << 20))
            await client.writer.drain()

    uploading = asyncio.create_task(upload())
    upstream = await worker.accept()
    upstream.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await rig.gauge("active", 1)
    uploading.cancel()
    await asyncio.gather(uploading, return_exceptions=True)
    client.abort()
    await rig.gauge("active", 0)


async def test_a_worker_that_dies_before_the_answer(rig: Rig, worker: RawWorker) -> None:
    client = await rig.request(method="POST", body=b"x")
    upstream = await worker.accept()
    await upstream.message()
    upstream.abort()
    answer = await client.message()
    assert (answer.status, answer.json()["error"]["code"]) == (502, "worker_failed")
    assert "pod1" in answer.json()["error"]["message"]
    assert worker.connections == 1, "a POST that was written is never tried again"
    await rig.gauge("active", 0)


@pytest.mark.parametrize("garbage", [b"\x00\x01\x02\x03\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"\r\n"])
async def test_a_worker_that_answers_with_garbage(
    rig: Rig, worker: RawWorker, garbage: bytes
) -> None:
    client = await rig.request(method="POST", body=b"x")
    upstream = await worker.accept()
    await upstream.message()
    await upstream.send(garbage)
    upstream.close()
    assert (await client.message()).status == 502


@pytest.mark.parametrize(
    "start",
    [
        CHUNKED + b"3\r\nabc\r\n",
        CHUNKED + b"5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        CHUNKED + b"3\r\nabc\r\nzz\r\n",
    ],
)
async def test_a_broken_answer_is_never_a_clean_end(
    rig: Rig, worker: RawWorker, start: bytes
) -> None:
    client = await rig.request()
    upstream = await worker.accept()
    await upstream.head()
    await upstream.send(start)
    upstream.close()
    assert (await client.head()).status == 200
    rest = await client.closed()
    assert not rest.endswith(b"0\r\n\r\n")
    assert len(rest) < 10
    await rig.gauge("active", 0)
    assert rig.stats()["broken"] == 1
    assert rig.records()[0][4:6] == [200, "worker_broke"]


async def test_a_stalled_reader_stalls_the_worker(rig: Rig, worker: RawWorker) -> None:
    client = await rig.client(receive_buffer=64 << 10)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await rig.request(wire=client)
    upstream = await worker.accept()
    await upstream.head()
    total = 200 << 20
    await upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
    piece = b"x" * 65536
    sent = 0
    try:
        async with asyncio.timeout(STALL_S):
            while sent < total:
                upstream.writer.write(piece)
                sent += len(piece)
                await upstream.writer.drain()
    except TimeoutError:
        pass
    assert sent < 40 << 20, "what a stalled client does not read must not pile up here"
    client.abort()
    assert await upstream.closed() == b""


async def test_a_worker_that_never_answers(rig: Rig, worker: RawWorker) -> None:
    client = await rig.request()
    upstream = await worker.accept()
    answer = await client.message()
    assert (answer.status, answer.json()["error"]["code"]) == (504, "worker_timeout")
    await upstream.head()
    assert await upstream.closed() == b""


async def test_a_worker_that_falls_silent(rig: Rig, worker: RawWorker) -> None:
    client = await rig.request()
    upstream = await worker.accept()
    await upstream.head()
    await upstream.send(CHUNKED, b"1\r\na\r\n")
    await client.head()
    assert await client.chunk() == b"a"
    assert await client.closed() == b"", "cut, without the end of the chunks"
    assert await upstream.closed() == b""


async def test_a_head_that_does_not_come(rig: Rig) -> None:
    slow = await rig.client()
    await slow.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    if rig.door == "granian":
        assert await slow.closed() == b""
        return
    answer = await slow.message()
    assert (answer.status, answer.get("connection")) == (408, "close")
    assert await slow.closed() == b""
    silent = await rig.client()
    assert await silent.closed() == b""


async def test_an_upload_that_stalls(rig: Rig, worker: RawWorker) -> None:
    client = await rig.request(method="POST", headers="Content-Length: 10\r\n")
    await client.send(b"abc")
    upstream = await worker.accept()
    await upstream.head()
    answer = await client.message()
    assert answer.status in (400, 504)
    assert (await upstream.closed()) in (b"", b"abc")
    await rig.gauge("active", 0)


async def test_a_web_socket_is_tunnelled(rig: Rig, worker: RawWorker) -> None:
    client = await rig.request(
        headers="Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n"
    )
    upstream = await worker.accept()
    head = await upstream.head()
    if rig.door == "granian":  # it passes requests and answers, not connections
        assert (head.get("connection"), head.get("upgrade")) == (None, None)
        await upstream.send(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n")
        assert (await client.message()).status == 426
        return
    assert (head.get("connection"), head.get("upgrade")) == ("upgrade", "websocket")
    assert head.get("sec-websocket-key") == "k"
    await client.send(b"early")  # before the worker has agreed
    await upstream.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"
    )
    answer = await client.head()
    assert (answer.status, answer.get("upgrade")) == (101, "websocket")
    assert await client.reader.readexactly(2) == b"hi"
    assert await upstream.reader.readexactly(5) == b"early"
    await client.send(b"\x00\r\n\r\nGET bytes")
    assert await upstream.reader.readexactly(14) == b"\x00\r\n\r\nGET bytes"
    assert rig.stats()["active"] == 1, "the tunnel holds its slot"
    upstream.close()
    assert await client.closed() == b""
    client.close()
    await rig.gauge("active", 0)


async def test_a_refused_upgrade_is_an_ordinary_answer(rig: Rig, worker: RawWorker) -> None:
    headers = "Connection: upgrade\r\nUpgrade: websocket\r\n"
    client = await rig.request(headers=headers)
    upstream = await worker.accept()
    await upstream.head()
    await upstream.send(b"HTTP/1.1 426 No\r\nContent-Length: 2\r\n\r\nno")
    answer = await client.message()
    assert (answer.status, answer.body) == (426, b"no")
    await rig.gauge("active", 0)
    again = await rig.request("/healthz", wire=client)
    assert (await again.message()).status == 200


async def accepts(port: int) -> bool:
    try:
        Wire(*await asyncio.open_connection("127.0.0.1", port)).abort()
    except (ConnectionRefusedError, ConnectionResetError):
        # A connection that was in the backlog when the listener closed is reset.
        return False
    return True


async def test_draining_finishes_open_streams(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    async with RawWorker() as worker, rig:
        rig.function()
        rig.add(worker.port)
        client = await rig.request()
        upstream = await worker.accept()
        await upstream.head()
        await upstream.send(CHUNKED)
        await client.head()
        draining = asyncio.create_task(asyncio.to_thread(rig.proxy.drain, 5000))
        while await accepts(rig.port):
            pass
        await upstream.send(b"2\r\nok\r\n0\r\n\r\n")
        assert await client.chunk() == b"ok"
        assert await client.chunk() == b""
        assert await draining
