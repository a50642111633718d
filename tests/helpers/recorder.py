"""A worker that keeps every byte it gets and splits them into requests by the book.

Must never forgive: what it cannot split is kept and shown as `broken`.
"""

from __future__ import annotations

import asyncio
import re

_LENGTH = re.compile(rb"(?im)^content-length: *(\d+)\r$")
_CODING = re.compile(rb"(?im)^transfer-encoding: *chunked\r$")
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*")
_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ /[\x21-\x7e]* HTTP/1\.[01]")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Recorder:
    """Answers each complete request with 200; `requests` are their raw bytes."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.broken: list[bytes] = []
        self.port = 0
        self.transports: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Recorder:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for transport in list(self.transports):
            transport.abort()
        await asyncio.sleep(0)  # lets the transports close their sockets

    def take(self) -> list[bytes]:
        """The requests since the last call; fails when something was no request."""
        assert not self.broken, self.broken
        taken, self.requests = self.requests, []
        return taken


class _Connection(asyncio.Protocol):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._recorder.transports.add(transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._buffer += data
        try:
            while size := request_size(self._buffer):
                self._recorder.requests.append(self._buffer[:size])
                self._buffer = self._buffer[size:]
                self._transport.write(OK)
        except ValueError:
            self._recorder.broken.append(self._buffer)
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        # A request that was cut is not one: the worker never acts on it.
        self._buffer = b""
        assert self._transport is not None
        self._recorder.transports.discard(self._transport)


def request_size(buffer: bytes) -> int:
    """Bytes of the first request, 0 while it is not complete. Raises ValueError for any other."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return 0
    head, at = buffer[: end + 2], end + 4
    length, coding = _LENGTH.findall(head), _CODING.findall(head)
    if coding:
        return _chunks_end(buffer, at)
    return (
        at + int(length[0])
        if length and len(buffer) >= at + int(length[0])
        else (0 if length else at)
    )


def _chunks_end(buffer: bytes, at: int) -> int:
    while (line := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:line], 16)
        if size == 0:
            end = buffer.find(b"\r\n\r\n", line)
            return end + 4 if end >= 0 else 0
        at = line + 2 + size + 2
        if len(buffer) >= at and buffer[at - 2 : at] != b"\r\n":
            raise ValueError("a chunk that does not end where it says")
    return 0


def ambiguities(request: bytes) -> list[str]:
    """What two servers could read in two ways in a request; empty for a plain one."""
    head = request.split(b"\r\n\r\n", 1)[0]
    start, *fields = head.split(b"\r\n")
    found = []
    if not _START.fullmatch(start):
        found.append(f"request line {start!r}")
    found += [f"field {line!r}" for line in fields if not _FIELD.fullmatch(line)]
    names = [line.split(b":", 1)[0].lower().replace(b"_", b"-") for line in fields]
    framing = [name for name in names if name in (b"content-length", b"transfer-encoding")]
    if len(framing) > 1:
        found.append(f"framed by {framing}")
    if names.count(b"host") != 1:
        found.append(f"{names.count(b'host')} Host headers")
    values = dict(line.lower().split(b":", 1) for line in fields if b":" in line)
    coding = values.get(b"transfer-encoding", b"chunked").strip()
    if coding != b"chunked":
        found.append(f"coding {coding!r}")
    if not values.get(b"content-length", b"0").strip().isdigit():
        found.append("a length that is no number")
    return found
