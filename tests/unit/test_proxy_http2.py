"""HTTP/2 through both doors: over TLS to the data plane itself, without it to Granian."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import h2.connection
import h2.errors
import h2.events
import httpx
import pytest

from tests.helpers.certificate import certify
from tests.helpers.proxy_kit import DEADLINE_S, DOORS, RawWorker, Rig, echo

LINGER_S = 1.0  # how long both doors wait for the rest of an upload that they have answered


class Http2:
    """One connection, whose frames the test sends itself; keeps all that came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.events: list[h2.events.Event] = []
        self._protocol = h2.connection.H2Connection()
        self._protocol.initiate_connection()

    async def post(self, stream: int, body: bytes, length: int, *, ends: bool) -> None:
        """Sends a request that promises `length` bytes; `ends` puts the mark of the end on it."""
        fields = [(":method", "POST"), (":path", "/funccall/t/n/f/x"), (":scheme", "https"),
                  (":authority", "test"), ("content-length", str(length))]  # fmt: skip
        self._protocol.send_headers(stream, fields)
        self._protocol.send_data(stream, body, end_stream=ends)
        await self._flush()

    async def send(self, stream: int, body: bytes) -> None:
        """Sends the rest of an upload, at least the mark of its end."""
        self._protocol.send_data(stream, body, end_stream=True)
        await self._flush()

    async def seen(self, kind: type[h2.events.Event], stream: int) -> h2.events.Event:
        """Waits for an event of a stream."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and getattr(event, "stream_id", None) == stream:
                        return event
                data = await self.reader.read(65536)
                assert data, f"closed before {kind.__name__} of stream {stream}"
                self.events += self._protocol.receive_data(data)
                await self._flush()

    def body(self, stream: int) -> bytes:
        return b"".join(
            event.data or b""
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream
        )

    async def _flush(self) -> None:
        self.writer.write(self._protocol.data_to_send())
        await self.writer.drain()


@pytest.fixture(params=DOORS)
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    tls = {"tls": certify(tmp_path, "http2")} if request.param == "rust" else {}
    async with Rig(tmp_path, request.param, **tls) as rig, RawWorker(echo) as worker:
        rig.function()
        rig.add(worker.port)
        yield rig


@pytest.fixture
async def connection(rig: Rig, tmp_path: Path) -> AsyncIterator[Http2]:
    context = None
    if rig.door == "rust":
        context = ssl.create_default_context(cafile=tmp_path / "tls.crt")
        context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, ssl=context)
    yield Http2(reader, writer)
    writer.transport.abort()


async def test_many_calls_at_once_over_one_connection(rig: Rig, tmp_path: Path) -> None:
    secure = rig.door == "rust"
    context = ssl.create_default_context(cafile=tmp_path / "tls.crt") if secure else True
    base = f"{'https' if secure else 'http'}://127.0.0.1:{rig.port}/funccall/t/n/f"
    async with httpx.AsyncClient(
        http1=False, http2=True, verify=context, trust_env=False, timeout=DEADLINE_S
    ) as client:
        posts = await asyncio.gather(
            *(client.post(f"{base}/{n}", content=b"%d" % n) for n in range(20))
        )
        gets = await asyncio.gather(*(client.get(f"{base}/{n}") for n in range(20)))
    for number, answer in enumerate(posts):
        assert answer.http_version == "HTTP/2"
        assert answer.text.startswith(f"POST /{number} HTTP/1.1\n")
        assert answer.text.endswith(f"\n\n{number}")
    assert all(answer.text.endswith("\n\n") for answer in gets)


async def test_an_upload_may_end_after_its_answer(connection: Http2) -> None:
    """As httpx does, in a frame of its own behind the last byte: a reset before it fails there."""
    await connection.post(1, b"abc", 3, ends=False)
    await connection.seen(h2.events.StreamEnded, 1)
    await connection.post(3, b"def", 3, ends=True)
    await connection.seen(h2.events.StreamEnded, 3)
    await connection.send(1, b"")
    assert connection.body(1).endswith(b"\n\nabc")
    assert connection.body(3).endswith(b"\n\ndef")
    assert not any(isinstance(event, h2.events.StreamReset) for event in connection.events)


async def test_an_upload_that_never_ends_is_cut_after_its_answer(connection: Http2) -> None:
    await connection.post(1, b"abc", 3, ends=False)
    reset = await connection.seen(h2.events.StreamReset, 1)
    assert isinstance(reset, h2.events.StreamReset)
    assert reset.error_code == h2.errors.ErrorCodes.NO_ERROR
    assert connection.body(1).endswith(b"\n\nabc")


async def test_a_refusal_does_not_reset_the_upload(rig: Rig, connection: Http2) -> None:
    rig.function(disabled="not today")
    for number in range(20):
        refused, answered = 4 * number + 1, 4 * number + 3
        begun = time.monotonic()
        await connection.post(refused, b"a", 3, ends=False)
        await connection.seen(h2.events.StreamEnded, refused)
        assert b"not today" in connection.body(refused)
        await connection.post(answered, b"def", 3, ends=True)
        await connection.seen(h2.events.StreamEnded, answered)
        if time.monotonic() - begun < LINGER_S:  # a busy machine may take longer
            await connection.send(refused, b"bc")
            resets = [
                event for event in connection.events if isinstance(event, h2.events.StreamReset)
            ]
            assert refused not in [reset.stream_id for reset in resets]
            return
    pytest.fail("this machine never answered twice within a second")
