"""How the data plane behaves, measured: `make bench-manners`. The tests ask the same functions.

The plane runs in a process of its own, its worker and its clients here, over raw sockets on the
loopback. Rows go to stdout as JSON lines.
"""

import asyncio
import contextlib
import itertools
import json
import os
import resource
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REQUEST = b"GET /funccall/t/n/f/%d HTTP/1.1\r\nHost: a\r\n%b\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DEADLINE_S = 120.0
TOKEN_EVERY_S = 0.005
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Plane:
    """A data plane in a process of its own; its worker's connections come to `accepted`."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port = process, port
        self.accepted: asyncio.Queue[Pair] = asyncio.Queue()
        self.server: asyncio.Server | None = None

    async def tell(self, command: str) -> int:
        """Has a command done; returns the resident KiB after it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command.encode() + b"\n")
        await self.process.stdin.drain()
        return int(await self.process.stdout.readline())

    async def listen(self) -> int:
        """Starts the worker's server; returns its port."""

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.accepted.put((reader, writer))

        self.server = await asyncio.start_server(accept, "127.0.0.1", 0)
        return int(self.server.sockets[0].getsockname()[1])

    async def add_worker(self, slots: int = 64) -> None:
        await self.tell(f"worker {await self.listen()} {slots}")

    async def client(self, number: int = 0, fields: bytes = b"", buffer: int = 0) -> Pair:
        """A connection on which a request was sent."""
        sock = socket.socket()
        sock.setblocking(False)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        pair = await asyncio.open_connection(sock=sock)
        pair[1].write(REQUEST % (number, fields))
        return pair


@contextlib.asynccontextmanager
async def plane() -> AsyncIterator[Plane]:
    """Runs a data plane until the block ends."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "manners_host.py"), stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    running = Plane(process, int(await process.stdout.readline()))
    try:
        yield running
    finally:
        if running.server is not None:
            running.server.close()
        process.stdin.close()
        async with asyncio.timeout(DEADLINE_S):
            await process.wait()


async def client_gone(rounds: int, streaming: bool) -> list[float]:
    """Milliseconds from a client's leaving to the end of its worker's connection."""
    taken = []
    async with asyncio.timeout(DEADLINE_S), plane() as running:
        await running.add_worker()
        for _ in range(rounds):
            reader, writer = await running.client()
            from_plane, to_plane = await running.accepted.get()
            await from_plane.readuntil(b"\r\n\r\n")
            if streaming:
                to_plane.write(CHUNKED + b"1\r\na\r\n")
                await reader.readuntil(b"\r\na\r\n")
            started = time.perf_counter()
            writer.close()
            await from_plane.read()
            taken.append((time.perf_counter() - started) * 1000)
            to_plane.close()
    return taken


async def stalled_reader(seconds: float) -> tuple[float, float]:
    """MiB by which the plane grows, and MiB that it takes, while a client does not read."""
    async with asyncio.timeout(DEADLINE_S), plane() as running:
        await running.add_worker()
        # One call that is read, so that everything which is made once is there.
        reader, writer = await running.client()
        from_plane, to_plane = await running.accepted.get()
        await from_plane.readuntil(b"\r\n\r\n")
        to_plane.write(OK)
        await reader.readuntil(b"ok")
        writer.close()
        before = await running.tell("rss")
        stalled = await running.client(buffer=64 << 10)
        stalled[1].transport.pause_reading()  # type: ignore[attr-defined]
        await from_plane.readuntil(b"\r\n\r\n")
        to_plane.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40))
        sent, piece = 0, b"x" * 65536
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    to_plane.write(piece)
                    sent += len(piece)
                    await to_plane.drain()
        after = await running.tell("rss")
        stalled[1].transport.abort()
        to_plane.transport.abort()
    return (after - before) / 1024, sent / 2**20


async def lock_held(hold_ms: int) -> tuple[float, float]:
    """The largest gaps in ms between tokens sent every 5 ms, at the client and at the worker,
    while the plane's process keeps the interpreter lock."""
    async with asyncio.timeout(DEADLINE_S), plane() as running:
        await running.add_worker()
        reader, writer = await running.client()
        from_plane, to_plane = await running.accepted.get()
        await from_plane.readuntil(b"\r\n\r\n")
        to_plane.write(CHUNKED)
        await reader.readuntil(b"\r\n\r\n")
        sent: list[float] = []

        async def send() -> None:
            while True:
                sent.append(time.perf_counter())
                to_plane.write(b"1\r\nt\r\n")
                await asyncio.sleep(TOKEN_EVERY_S)

        sending = asyncio.create_task(send())
        holding = asyncio.create_task(running.tell(f"hold {hold_ms}"))
        arrived: list[float] = []
        while not holding.done():
            await reader.readexactly(6)
            arrived.append(time.perf_counter())
        sending.cancel()
        for end in (writer, to_plane):
            end.close()
    assert len(arrived) > 10, "the tokens stood still"

    def largest(times: list[float]) -> float:
        return max(late - early for early, late in itertools.pairwise(times)) * 1000

    return largest(arrived), largest(sent)


async def parked(calls: int, refused: int) -> dict[str, Any]:
    """Parks `calls` calls, of which `refused` give up early; then one worker serves the others."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    served: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                served.append(int(head.split(b" ", 2)[1][1:]))
                writer.write(OK)
        writer.close()

    async with asyncio.timeout(DEADLINE_S), plane() as running:
        before = await running.tell("rss")
        pairs = []
        for number in range(calls):
            wait = b"X-Inferx-Timeout: 1\r\n" if number < refused else b""
            pairs.append(await running.client(number, wait))
        statuses = [await status(reader) for reader, _ in pairs[:refused]]
        after = await running.tell("rss")
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        started = time.perf_counter()
        await running.tell(f"worker {server.sockets[0].getsockname()[1]} 1")
        statuses += [await status(reader) for reader, _ in pairs[refused:]]
        seconds = time.perf_counter() - started
        for _, writer in pairs:
            writer.transport.abort()
        server.close()
    return {
        "growth_mib": (after - before) / 1024,
        "kib_per_call": (after - before) / calls,
        # Connections are served by several threads, so neighbours may swap on their way in.
        "displaced_max": max(abs(at + refused - number) for at, number in enumerate(served)),
        "served": statuses.count(200),
        "refused": statuses.count(504),
        "answer_s": seconds,
    }


async def status(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])


async def main() -> None:
    print(f"load average at start: {os.getloadavg()[0]:.1f}", file=sys.stderr)

    def row(what: str, **figures: Any) -> None:
        figures = {k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}
        print(json.dumps({"bench": "manners", "what": what, **figures}), flush=True)

    for streaming in (False, True):
        taken = await client_gone(100, streaming)
        phase = "mid-stream" if streaming else "silent"
        row(f"client gone, {phase}", p50_ms=statistics.median(taken), max_ms=max(taken))
    growth, took = await stalled_reader(6.0)
    row("stalled reader, 6 s", growth_mib=growth, taken_mib=took)
    gap, sent_gap = await lock_held(3000)
    row("interpreter lock held 3 s", gap_ms=gap, sent_gap_ms=sent_gap)
    row("10,000 parked calls", **await parked(10_000, 1_000))


if __name__ == "__main__":
    asyncio.run(main())
