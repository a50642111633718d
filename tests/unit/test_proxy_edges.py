"""The edges of HTTP through both doors: long heads, pipelines, ends by closing, slow requests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.proxy_kit import DOORS, Message, RawWorker, Rig, Wire, echo

LONG = "y" * 15_000
HEAD_MS = 300


@pytest.fixture(params=DOORS)
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, request.param, head_timeout_ms=HEAD_MS) as rig:
        rig.function()
        yield rig


async def test_very_long_headers_pass_both_ways(rig: Rig) -> None:
    async def answer(wire: Wire, request: Message) -> None:
        assert request.get("x-long") == LONG
        fields = "".join(f"X-{n}: {LONG}\r\n" for n in range(3))
        await wire.send(f"HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok".encode())

    async with RawWorker(answer) as worker:
        rig.add(worker.port)
        got = await rig.call(headers=f"X-Long: {LONG}\r\n")
        assert (got.status, got.body) == (200, b"ok")
        assert [got.get(f"x-{n}") for n in range(3)] == [LONG] * 3


async def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    async with RawWorker(echo) as worker:
        rig.add(worker.port)
        head = "POST /funccall/t/n/f/%d HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n%02d"
        wire = await rig.client()
        await wire.send("".join(head % (n, n) for n in range(20)).encode())
        for number in range(20):
            answer = await wire.message()
            assert answer.status == 200
            assert answer.body.startswith(b"POST /%d " % number)
            assert answer.body.endswith(b"\n\n%02d" % number)


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
async def test_an_answer_that_ends_with_its_connection(rig: Rig, version: bytes) -> None:
    async with RawWorker() as worker:
        rig.add(worker.port)
        for _ in range(2):  # the connection is not used again
            client = await rig.request()
            upstream = await worker.accept()
            await upstream.head()
            await upstream.send(version + b" 200 OK\r\n\r\nall ")
            await upstream.send(b"of it")
            upstream.close()
            answer = await client.message()
            assert (answer.status, answer.body) == (200, b"all of it")
        assert rig.stats()["broken"] == 0


async def test_a_head_that_drips_is_cut_at_its_deadline(rig: Rig) -> None:
    """Each byte comes in time, the whole does not: slow-loris."""
    wire = await rig.client()

    async def drip() -> None:
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 1000:
            await wire.send(bytes([byte]))
            await asyncio.sleep(HEAD_MS / 5000)

    dripping = asyncio.create_task(drip())
    ended = await wire.closed()
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)
    assert ended.startswith(b"HTTP/1.1 408 ") or (rig.door == "granian" and ended == b"")


async def test_an_upload_that_drips_is_served(rig: Rig) -> None:
    """What moves is not cut, however slow."""
    async with RawWorker(echo) as worker:
        rig.add(worker.port)
        wire = await rig.request(method="POST", headers="Content-Length: 20\r\n")
        for _ in range(20):
            await asyncio.sleep(HEAD_MS / 10_000)
            await wire.send(b"z")
        assert (await wire.message()).body.endswith(b"\n\n" + b"z" * 20)


async def test_a_worker_that_closes_pooled_connections_at_the_worst_moment(rig: Rig) -> None:
    """No POST reaches the worker twice."""
    seen: Counter[bytes] = Counter()
    jitter = random.Random(4)
    closing: set[asyncio.Task[None]] = set()

    async def close(wire: Wire, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        wire.close()

    async def answer(wire: Wire, request: Message) -> None:
        seen[request.body] += 1
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        task = asyncio.create_task(close(wire, jitter.choice([0, 0.0005, 0.001, 0.002])))
        closing.add(task)
        task.add_done_callback(closing.discard)

    async with RawWorker(answer) as worker:
        rig.add(worker.port)
        wire = await rig.client()
        for number in range(200):
            body = b"%d" % number
            await rig.request(method="POST", body=body, wire=wire)
            got = await wire.message()
            status = got.status
            if got.get("connection") == "close":
                wire = await rig.client()
            # 502 when it may have reached the worker: nobody can know, so nobody asks again.
            assert (status, seen[body]) in [(200, 1), (502, 0), (502, 1)]
        assert len(seen) > 100, "most of them are served"
        await asyncio.gather(*closing)
