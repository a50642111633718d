"""Requests as raw bytes that are odd but legal, or too large; the hostile ones have their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.proxy_kit import RawWorker, Rig, echo

URL = b"/funccall/t/n/f/x"
HOST = b"Host: a\r\n"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, head_bytes_max=16_384) as rig:
        rig.function()
        yield rig


@pytest.fixture
async def worker(rig: Rig) -> AsyncIterator[RawWorker]:
    async with RawWorker(echo) as worker:
        rig.add(worker.port)
        yield worker


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST " + URL + b" HTTP/1.1\r\n" + HOST + fields + b"\r\n" + body


async def test_other_versions_and_large_heads(rig: Rig, worker: RawWorker) -> None:
    for raw, status in [
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (post(b"X: " + b"y" * 20_000 + b"\r\n"), 431),
        (b"GET /" + b"x" * 40_000, 431),
        (post(b"".join(b"X%d: y\r\n" % n for n in range(101))), 431),
    ]:
        wire = await rig.client()
        await wire.send(raw)
        assert (await wire.message()).status == status
        assert await wire.closed() == b""
    long = await rig.call(headers=f"X-Long: {'y' * 15_000}\r\n")
    assert long.status == 200
    assert b"y" * 15_000 in long.body


async def test_pipelined_requests_are_answered_in_order(rig: Rig, worker: RawWorker) -> None:
    wire = await rig.client()
    requests = [post(b"Content-Length: 2\r\nN: %d\r\n" % n, b"%02d" % n) for n in range(20)]
    requests += [post(b"Transfer-Encoding: chunked\r\n", b"2\r\n20\r\n0\r\n\r\n"), b"BAD\r\n\r\n"]
    await wire.send(*requests)
    for number in range(21):
        answer = await wire.message()
        assert answer.status == 200
        assert answer.body.endswith(b"%02d" % number) or b"\n\n" in answer.body
    assert (await wire.message()).status == 400
    assert await wire.closed() == b""


async def test_a_request_in_single_bytes(rig: Rig, worker: RawWorker) -> None:
    wire = await rig.client()
    raw = post(b"Transfer-Encoding: chunked\r\n", b"3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n")
    for byte in b"\r\n" + raw + post(b"Content-Length: 2\r\n", b"de"):
        await wire.send(bytes([byte]))
        await asyncio.sleep(0)
    assert b"transfer-encoding: chunked" in (await wire.message()).body
    assert (await wire.message()).body.endswith(b"\n\nde")


async def test_http_1_0_is_served_and_closed(rig: Rig, worker: RawWorker) -> None:
    wire = await rig.client()
    await wire.send(b"GET " + URL + b" HTTP/1.0\r\n\r\n")
    answer = await wire.message()
    assert answer.status == 200
    assert answer.start.startswith("HTTP/1.")
    assert f"host: 127.0.0.1:{worker.port}".encode() in answer.body
    assert await wire.closed() == b""


async def test_a_half_closed_client_counts_as_gone(rig: Rig) -> None:
    wire = await rig.request()
    await rig.gauge("parked", 1)
    wire.writer.write_eof()
    await rig.gauge("parked", 0)
    assert await wire.closed() == b""
