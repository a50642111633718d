"""Requests as raw bytes: hostile ones are refused and the connection closed, odd ones served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.proxy_kit import RawWorker, Rig, echo

URL = b"/funccall/t/n/f/x"
HOST = b"Host: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


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


HOSTILE_HEADS = {
    "CL and TE": post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "TE and CL": post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    "two CL": post(b"Content-Length: 0\r\nContent-Length: 5\r\n"),
    "two equal CL": post(b"Content-Length: 5\r\nContent-Length: 5\r\n"),
    "CL list": post(b"Content-Length: 5, 5\r\n"),
    "CL sign": post(b"Content-Length: +5\r\n"),
    "CL hex": post(b"Content-Length: 0x5\r\n"),
    "CL overflow": post(b"Content-Length: 18446744073709551621\r\n"),
    "CL space before colon": post(b"Content-Length : 5\r\n"),
    "TE space before colon": post(b"Transfer-Encoding : chunked\r\n"),
    "TE unknown": post(b"Transfer-Encoding: xchunked\r\n"),
    "TE twice": post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "TE not last": post(b"Transfer-Encoding: chunked, identity\r\n"),
    "TE tab": post(b"Transfer-Encoding:\x0bchunked\r\n"),
    "TE folded": post(b"Transfer-Encoding:\r\n chunked\r\n"),
    "folded": post(b"X: a\r\n b\r\n"),
    "bare LF": b"GET " + URL + b" HTTP/1.1\nHost: a\n\n",
    "bare LF in a field": post(b"X: a\nContent-Length: 5\r\n"),
    "bare CR": post(b"X: a\rContent-Length: 5\r\n"),
    "NUL": post(b"X: a\0b\r\n"),
    "no Host": b"GET " + URL + b" HTTP/1.1\r\n\r\n",
    "empty Host": b"GET " + URL + b" HTTP/1.1\r\nHost:\r\n\r\n",
    "two Hosts": b"GET " + URL + b" HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "Host with a path": b"GET " + URL + b" HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "absolute form": b"GET http://a" + URL + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the target": b"GET " + URL + b"\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "space in the target": b"GET " + URL + b" x HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET " + URL + b"#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw bytes in the target": b"GET " + URL + b"\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "Connection names Content-Length": post(b"Connection: content-length\r\nContent-Length: 5\r\n"),
    "Connection names Host": post(b"Connection: host\r\n"),
    "Connection names Authorization": post(b"Connection: keep-alive, authorization\r\n"),
    "TE in HTTP/1.0": b"POST " + URL + b" HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "space before the first header": b"GET " + URL + b" HTTP/1.1\r\n Host: a\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\n",
    "decoded slash": b"GET /funccall/t/n/f%2F..%2Fg/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "decoded line break": b"GET /funccall/t/n/f%0d%0aX:1/x HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("raw", HOSTILE_HEADS.values(), ids=HOSTILE_HEADS.keys())
async def test_a_hostile_head_is_refused_and_the_connection_closed(
    rig: Rig, worker: RawWorker, raw: bytes
) -> None:
    wire = await rig.client()
    await wire.send(raw + SMUGGLED)
    answer = await wire.message()
    assert (answer.status, answer.get("connection")) == (400, "close")
    assert answer.json()["error"]["code"] == "bad_request"
    assert await wire.closed() == b"", "nothing after it is served"
    assert worker.connections == 0


HOSTILE_CHUNKS = {
    "no digits": b"\r\nabc\r\n0\r\n\r\n",
    "not hex": b"3z\r\nabc\r\n0\r\n\r\n",
    "sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space": b" 3\r\nabc\r\n0\r\n\r\n",
    "bare LF": b"3\nabc\r\n0\r\n\r\n",
    "bare LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffff3\r\nabc\r\n0\r\n\r\n",
    "data too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "data without CR LF": b"3\r\nabc0\r\n\r\n",
    "bare LF after data": b"3\r\nabc\n0\r\n\r\n",
    "folded trailer": b"3\r\nabc\r\n0\r\n x: y\r\n\r\n",
    "bare LF in a trailer": b"3\r\nabc\r\n0\r\nx: y\n\r\n",
}


@pytest.mark.parametrize("body", HOSTILE_CHUNKS.values(), ids=HOSTILE_CHUNKS.keys())
async def test_a_malformed_chunk_is_refused(rig: Rig, worker: RawWorker, body: bytes) -> None:
    wire = await rig.client()
    await wire.send(post(b"Transfer-Encoding: chunked\r\n", body) + SMUGGLED)
    answer = await wire.message()
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")
    assert await wire.closed() == b""
    await rig.gauge("active", 0)


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
