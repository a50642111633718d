"""What a streaming client hears while its worker starts, and workers that keep failing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.proxy_kit import Message, RawWorker, Rig, Wire

ASKING = "X-Inferx-Progress: sse\r\n"
EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"b\r\ndata: one\n\n\r\nb\r\ndata: two\n\n\r\n0\r\n\r\n"
)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, eject_failures=3) as rig:
        rig.function()
        yield rig


async def begun(rig: Rig, headers: str = ASKING) -> tuple[Wire, bytes]:
    """A parked call that hears about it, and the first comment."""
    wire = await rig.request(method="POST", body=b"{}", headers=headers)
    head = await wire.head()
    assert (head.status, head.get("content-type")) == (200, "text/event-stream")
    return wire, await wire.chunk()


async def rest(wire: Wire) -> bytes:
    found = b""
    while piece := await wire.chunk():
        found += piece
    assert await wire.reader.readexactly(2) == b"\r\n"
    return found


async def test_a_parked_stream_begins_at_once_and_goes_on_as_the_workers(rig: Rig) -> None:
    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(EVENTS)

    first, comment = await begun(rig)
    assert comment == b": state=starting position=1\n\n"
    second, comment = await begun(rig)
    assert comment.startswith(b": state=starting position=2")
    async with RawWorker(answer) as worker:
        rig.add(worker.port, start="cold")
        for wire in (first, second):
            assert await rest(wire) == b"data: one\n\ndata: two\n\n"
        again = await rig.call(wire=first)
        assert again.status == 200, "the connection is good for another call"
        rig.proxy.remove_worker(1)
        third, comment = await begun(rig)
        assert b"expected_s=" in comment, "a start has been seen by now"
        third.abort()
    await rig.gauge("parked", 0)


async def test_a_failure_after_the_start_is_an_event(rig: Rig) -> None:
    wire, _ = await begun(rig, f"{ASKING}X-Request-Id: r1\r\n")
    failure = {"http_status": 502, "code": "start_failed", "message": "no such image"}
    rig.proxy.fail_lease("t/n/f", revision=1, **failure)
    event = await rest(wire)
    assert event.startswith(b"event: error\ndata: ")
    error = json.loads(event.split(b"data: ")[1])["error"]
    assert (error["code"], error["message"], error["request_id"]) == (
        "start_failed", "no such image", "r1",
    )  # fmt: skip
    assert rig.stats()["statuses"] == {"502": 1}


@pytest.mark.parametrize("status", [200, 404])
async def test_an_answer_that_is_no_event_stream_is_an_error_event(rig: Rig, status: int) -> None:
    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nno" % status)

    wire, _ = await begun(rig)
    async with RawWorker(answer) as worker:
        rig.add(worker.port)
        assert b'"worker_error"' in await rest(wire)


async def test_a_warm_call_hears_nothing_of_it(rig: Rig) -> None:
    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(b"HTTP/1.1 201 Own\r\nContent-Length: 2\r\n\r\nok")

    async with RawWorker(answer) as worker:
        rig.add(worker.port)
        got = await rig.call(headers=ASKING)
        assert (got.status, got.body) == (201, b"ok"), "the status is the worker's"


async def test_a_worker_that_keeps_failing_is_given_up(rig: Rig) -> None:
    statuses = iter([500, 500, 404, 503, 500, 502])

    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % next(statuses))

    async with RawWorker(answer) as worker:
        handle = rig.add(worker.port)
        for _ in range(5):
            await rig.call()
        assert rig.events == [], "one good answer in between, and 4xx is good"
        assert (await rig.call()).status == 502
        failed = await rig.event("worker_failed")
        assert (failed[2], failed[3]) == (handle, "3 failures in a row, the last: a status of 5xx")
        assert rig.stats()["workers"] == 0


async def test_what_clients_do_wrong_is_not_the_workers_failure(rig: Rig) -> None:
    async def answer(wire: Wire, _: Message) -> None:
        await wire.send(b"HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n")

    async with RawWorker(answer) as worker:
        rig.add(worker.port)
        await asyncio.gather(*(rig.call() for _ in range(20)))
        assert rig.events == []
        assert rig.stats()["workers"] == 1
