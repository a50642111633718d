"""Calls that wait for a cold worker, and that worker: `proxy_parked.py PORT COUNT`.

Prints the port of its worker when all calls are out; when a line comes in, it expects the calls to
be answered and prints one JSON line.
"""

import asyncio
import json
import re
import sys
import time

OPEN_AT_ONCE = 50
SLOTS = 64
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NUMBER = re.compile(rb"N(\d+)N")


class Worker:
    """Answers each call and notes the order in which they came."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                body = await reader.readuntil(b"N.")
                self.seen.append(int(NUMBER.search(body)[1]))
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def out_of_order(self) -> int:
        """Calls that came later than more than the slots' worth of younger ones."""
        late, newest = 0, 0
        for number in self.seen:
            late += number < newest - SLOTS - OPEN_AT_ONCE
            newest = max(newest, number)
        return late


async def send(port: int, number: int) -> tuple:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b"N%dN" % number + b"." * 250
    head = "POST /funccall/public/bench/g/x HTTP/1.1\r\nHost: bench\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return reader, writer


async def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    worker = Worker()
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    wires = []
    for first in range(0, count, OPEN_AT_ONCE):
        numbers = range(first, min(count, first + OPEN_AT_ONCE))
        wires += await asyncio.gather(*(send(port, number) for number in numbers))
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started = time.monotonic()
    answers = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in wires))
    answered = sum(answer.startswith(b"HTTP/1.1 200") for answer in answers)
    row = {
        "answered": answered,
        "out_of_order": worker.out_of_order(),
        "spent_s": time.monotonic() - started,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
