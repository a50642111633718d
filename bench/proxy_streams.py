"""The chat backend of `bench/proxy.py` and the clients that its streams go to.

`proxy_streams.py serve` prints its port and answers `/v1/chat/completions`: whole, or as a stream
whose `max_tokens` names its kind. `proxy_streams.py load PORT MODEL KIND STREAMS` reads streams
and prints one JSON line.
"""

import asyncio
import json
import re
import sys
import time

from proxy_host import KEY_OF_ALL

PACED, BURST, IDLE = 100, 1000, 1  # chunks of one stream, which also name its kind
PACE_S = 0.02
IDLE_PATIENCE_S = 45.0  # for all idle streams to begin
BURST_ROUNDS = 3
STAMP_BYTES = 40
COUNTED_MIN = 0.98
KINDS = {"paced": PACED, "burst": BURST, "idle": IDLE}
STAMP = re.compile(rb'"T(\d+)"')
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n"
EVENT = (
    'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    '[{"index":0,"delta":{"role":"assistant","content":"T%d"},"finish_reason":null}]}\n\n'
)
WHOLE = {
    "id": "c", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": "x" * 800}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


async def stream(writer: asyncio.StreamWriter, count: int) -> None:
    writer.write(HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked\r\n"))
    for _ in range(count):
        writer.write(chunk((EVENT % time.monotonic_ns()).encode()))
        await writer.drain()
        if count == PACED:
            await asyncio.sleep(PACE_S)
    if count == IDLE:
        await asyncio.sleep(3600)
    writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = json.dumps(WHOLE).encode()
    whole = HEAD % (b"application/json", b"Content-Length: %d\r\n" % len(body)) + body
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = re.search(rb"content-length: *(\d+)", head)
            asked = await reader.readexactly(int(size[1])) if size else b""
            if head.startswith(b"post") and b"transfer-encoding" in head:
                raise SystemExit("bench-proxy: the backend expects a Content-Length")
            wanted = json.loads(asked) if asked else {}
            if wanted.get("stream"):
                # Some gateways pass it on under its newer name.
                count = wanted.get("max_tokens") or wanted["max_completion_tokens"]
                await stream(writer, int(count))
            else:
                writer.write(whole)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def serve() -> None:
    server = await asyncio.start_server(serve_one, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def read_stream(port: int, model: str, kind: str, delays: list[float]) -> None:
    asked = {"model": model, "stream": True, "max_tokens": KINDS[kind],
             "messages": [{"role": "user", "content": "hello"}]}  # fmt: skip
    body = json.dumps(asked).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
        f"Authorization: Bearer {KEY_OF_ALL}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(head.encode() + body)
    left, found, last, ended = b"", 0, 0, False
    while found < KINDS[kind] and not ended:
        data = await reader.read(65536)
        if not data:
            raise SystemExit(f"bench-proxy: a stream broke off after {found} chunks: {left!r}")
        now = time.monotonic_ns()
        ended = data.endswith(b"0\r\n\r\n")
        left += data
        for stamp in STAMP.finditer(left):
            delays.append((now - int(stamp[1])) / 1e6)
            found += 1
            last = stamp.end()
        # A proxy may cut a stamp in two by chunks of its own: that one is not counted.
        left = left[last:][-STAMP_BYTES:]
        last = 0
    if found < KINDS[kind] * COUNTED_MIN:
        raise SystemExit(f"bench-proxy: {found} of {KINDS[kind]} chunks came: {data[-300:]!r}")
    if kind == "idle":
        await asyncio.sleep(3600)
    writer.close()


async def load(port: int, model: str, kind: str, streams: int) -> None:
    delays: list[float] = []
    started = time.monotonic()
    rounds = BURST_ROUNDS if kind == "burst" else 1
    for _ in range(rounds):
        tasks = [
            asyncio.create_task(read_stream(port, model, kind, delays)) for _ in range(streams)
        ]
        if kind == "idle":
            give_up = time.monotonic() + IDLE_PATIENCE_S
            while len(delays) < streams and time.monotonic() < give_up:
                done = [task for task in tasks if task.done()]
                await asyncio.gather(*done)
                await asyncio.sleep(0.05)
        else:
            await asyncio.gather(*tasks)
    spent = time.monotonic() - started
    delays.sort()
    quantile = {q: delays[min(len(delays) - 1, int(len(delays) * q))] for q in (0.5, 0.99)}
    row = {"chunks": len(delays), "spent_s": spent, "p50_ms": quantile[0.5],
           "p99_ms": quantile[0.99]}  # fmt: skip
    print(json.dumps(row), flush=True)
    if kind == "idle":
        await asyncio.sleep(3600)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        asyncio.run(load(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])))
