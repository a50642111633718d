"""Raw workers and raw clients for the tests of the data plane. Must never hide a byte."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import orjson
from granian.constants import Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from inferx._ext import Proxy
from inferx.gateway.door import AsgiDoor
from tests.helpers.ports import free_port

DEADLINE_S = 10.0
BACKLOG = 1024
DOORS = ("rust", "granian")
LIMITS: dict[str, Any] = {"threads": 2}


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.002)
    return found


@dataclass
class Message:
    """A request or an answer as it came over the wire."""

    start: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split()[1])

    def get(self, name: str) -> str | None:
        """The one value of a header."""
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    def json(self) -> Any:
        return orjson.loads(self.body)


class Wire:
    """One connection, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        """Close at once, with a reset: without one, the end would queue behind unread data."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def head(self) -> Message:
        """The next head, without its body."""
        async with asyncio.timeout(DEADLINE_S):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        start, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers = [(name, value.strip()) for name, value in (line.split(":", 1) for line in lines)]
        return Message(start, headers)

    async def message(self, *, head_only: bool = False) -> Message:
        """The next request or answer with its whole body."""
        message = await self.head()
        async with asyncio.timeout(DEADLINE_S):
            if head_only or " 204 " in message.start or " 304 " in message.start:
                return message
            if message.get("transfer-encoding") == "chunked":
                while chunk := await self.chunk():
                    message.body += chunk
                while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                    name, value = line.decode().split(":", 1)
                    message.trailers.append((name, value.strip()))
            elif (length := message.get("content-length")) is not None:
                message.body = await self.reader.readexactly(int(length))
            elif message.start.startswith("HTTP/"):
                message.body = await self.reader.read()
        return message

    async def chunk(self) -> bytes:
        """The next chunk's data, empty for the last one."""
        async with asyncio.timeout(DEADLINE_S):
            size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size == 0:
                return b""
            data = await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
            return data

    async def closed(self) -> bytes:
        """What still comes until the other side has closed."""
        async with asyncio.timeout(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


async def abort(wires: list[Wire]) -> None:
    """Closes connections at once; returns when their sockets are closed."""
    for wire in wires:
        wire.abort()
    # How each of them ended is not of interest any more.
    await asyncio.gather(*(wire.writer.wait_closed() for wire in wires), return_exceptions=True)


class RawWorker:
    """A model server whose every connection the test speaks by hand, or that `answer` serves."""

    def __init__(
        self,
        answer: Callable[[Wire, Message], Awaitable[None]] | None = None,
        path: Path | None = None,
    ) -> None:
        self._answer = answer
        self._path = path
        self._listener = socket.socket()
        self._sockets: list[socket.socket] = []
        self._wires: list[Wire] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted: asyncio.Queue[Wire] = asyncio.Queue()
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> RawWorker:
        if self._path is not None:
            self._listener.close()
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
        else:
            self._listener.bind(("127.0.0.1", 0))
            self.port = self._listener.getsockname()[1]
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._on_connection)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await abort(self._wires)
        for sock in self._sockets:
            sock.close()  # one whose task was cancelled before it began

    def _on_connection(self) -> None:
        """Accepts here and not in a task: so each connection is known from its first moment."""
        with suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            self._sockets.append(sock)
            self.connections += 1
            task = asyncio.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        wire = Wire(*await asyncio.open_connection(sock=sock, limit=1 << 20))
        self._wires.append(wire)
        if self._answer is None:
            await self.accepted.put(wire)
            return
        try:
            while True:
                await self._answer(wire, await wire.message())
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            wire.close()

    async def accept(self) -> Wire:
        """The next connection of the data plane."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.accepted.get()


async def echo(wire: Wire, request: Message) -> None:
    """Answers with the request itself."""
    headers = "".join(f"{name}: {value}\n" for name, value in request.headers)
    text = f"{request.start}\n{headers}\n".encode() + request.body
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text), text)


class GranianDoor:
    """Granian before the data plane, as the gateway runs it with `--listener granian`."""

    def __init__(self, proxy: Proxy) -> None:
        self._door = AsgiDoor(proxy, no_control)
        self._server: Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens; returns the port."""
        self._door.start()
        port = free_port()
        settings = HTTP1Settings(header_read_timeout=300)
        self._server = Server(
            self._door, port=port, interface=Interfaces.ASGINL, websockets=False,
            log_enabled=False, backlog=BACKLOG, http1_settings=settings,
        )  # fmt: skip
        self._serving = asyncio.create_task(self._server.serve())
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert not self._serving.done()
            assert time.monotonic() < deadline
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return port
            except OSError:
                await asyncio.sleep(0.005)

    def leave(self) -> None:
        """As the gateway does a while before it stops Granian."""
        self._door.leave()

    async def stop(self) -> None:
        """Ends when all connections have ended."""
        assert self._server is not None
        assert self._serving is not None
        self._server.stop()  # type: ignore[no-untyped-call]
        async with asyncio.timeout(DEADLINE_S):
            await self._serving
        self._door.stop()


async def no_control(scope: Any, receive: Any, send: Any) -> None:
    """In the place of the control routes."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"no such route"})


class Rig:
    """A data plane with its events, and clients for it."""

    def __init__(self, tmp_path: Path, door: str = "rust", **limits: Any) -> None:
        self.control_path = tmp_path / "control.sock"
        self.door = door
        self._granian: GranianDoor | None = None
        port = limits.pop("port", 0)
        self.proxy = Proxy("127.0.0.1", port, self.control_path, **{**LIMITS, **limits})
        self.events: list[tuple[Any, ...]] = []
        self.port = 0
        self._handles = iter(range(1, 10_000))
        self._wires: list[Wire] = []

    async def __aenter__(self) -> Rig:
        if self.door == "rust":
            self.port = self.proxy.start()
        else:
            self._granian = GranianDoor(self.proxy)
            self.port = await self._granian.start()
        self.proxy.set_synced()
        self.proxy.set_not_ready(None)
        loop = asyncio.get_running_loop()
        loop.add_reader(self.proxy.event_fd, self._on_events)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.proxy.event_fd)
        await abort(self._wires)
        if self._granian is not None:
            await self._granian.stop()
        assert await asyncio.to_thread(self.proxy.drain, 5000), "some connections did not end"

    def _on_events(self) -> None:
        self.events += self.proxy.take_events()

    def leave(self) -> None:
        """Granian is going to be stopped."""
        assert self._granian is not None
        self._granian.leave()

    def function(self, key: str = "t/n/f", **changes: Any) -> None:
        """Creates or updates a function."""
        definition: dict[str, Any] = {
            "revision": 1, "parallel": 50, "queue_len": 100, "queue_timeout_ms": 8000,
            "wait_ratio": 0.1, "scalein_timeout_ms": 60_000,
        }  # fmt: skip
        self.proxy.upsert_function(key, **{**definition, **changes})

    def add(self, port: int, key: str = "t/n/f", **changes: Any) -> int:
        """Adds a worker; returns its handle."""
        handle = next(self._handles)
        worker: dict[str, Any] = {
            "revision": 1, "lease_id": handle, "pod_id": f"pod{handle}", "host": "127.0.0.1",
            "port": port, "slots": 50, "start": "warm",
        }  # fmt: skip
        assert self.proxy.add_worker(key, **{**worker, **changes})
        return handle

    async def event(self, kind: str) -> tuple[Any, ...]:
        """The next event of a kind, taken out of those seen."""

        def found() -> tuple[Any, ...] | None:
            return next((event for event in self.events if event[0] == kind), None)

        event: tuple[Any, ...] = await until(found, f"no event {kind}")
        self.events.remove(event)
        return event

    def stats(self, key: str | None = "t/n/f") -> dict[str, Any]:
        """The counters of a function, or of the whole plane."""
        stats: dict[str, Any] = orjson.loads(self.proxy.stats())
        found: dict[str, Any] = stats if key is None else stats["functions"][key]
        return found

    async def gauge(self, name: str, value: int, key: str | None = "t/n/f") -> None:
        """Waits until a counter has a value."""
        await until(lambda: self.stats(key)[name] == value, f"{name} never was {value}")

    def records(self) -> list[list[Any]]:
        """The access records since the last call."""
        unpacker = msgpack.Unpacker()
        unpacker.feed(self.proxy.take_records())
        return list(unpacker)

    async def client(self, receive_buffer: int | None = None) -> Wire:
        """A connection to the data plane."""
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        wire = Wire(*await asyncio.open_connection(sock=sock, limit=1 << 20))
        self._wires.append(wire)
        return wire

    async def request(
        self,
        path: str = "/funccall/t/n/f/x",
        method: str = "GET",
        body: bytes | None = None,
        headers: str = "",
        wire: Wire | None = None,
    ) -> Wire:
        """Sends a request and returns its connection."""
        wire = wire or await self.client()
        length = f"Content-Length: {len(body)}\r\n" if body is not None else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\n{length}{headers}\r\n"
        await wire.send(head.encode(), body or b"")
        return wire

    async def call(self, *args: Any, **kwargs: Any) -> Message:
        """Sends a request and returns its answer."""
        wire = await self.request(*args, **kwargs)
        method = kwargs.get("method", args[1] if len(args) > 1 else "GET")
        return await wire.message(head_only=method == "HEAD")
