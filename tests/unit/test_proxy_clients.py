"""The clients that people use, through both doors: openai, httpx, curl, Node, websockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
import websockets

from tests.helpers.proxy_kit import DEADLINE_S, DOORS, Message, RawWorker, Rig, Wire, echo

WORDS = ["one ", "two ", "three"]
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
NODE = """
const base = process.argv[1];
const post = await fetch(base + '/x?a=b', {method: 'POST', body: 'body'});
const stream = await fetch(base + '/v1/chat/completions',
  {method: 'POST', body: JSON.stringify({stream: true}), duplex: 'half'});
let pieces = 0, text = '';
for await (const piece of stream.body) { pieces++; text += new TextDecoder().decode(piece); }
const control = new AbortController();
const endless = await fetch(base + '/endless', {signal: control.signal});
const reader = endless.body.getReader();
await reader.read();
control.abort();
const left = await reader.read().catch(error => error.name);
console.log(JSON.stringify({status: post.status, echo: await post.text(), pieces, text, left}));
"""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Model:
    """A model server: chat completions, whole and streamed; everything else is echoed."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def answer(self, wire: Wire, request: Message) -> None:
        path = request.start.split()[1]
        if path == "/endless":
            await self.endless(wire)
        elif not path.endswith("/chat/completions"):
            await echo(wire, request)
        elif request.json().get("stream"):
            await self.stream(wire, endless=request.json().get("max_tokens") == 0)
        else:
            message = {"role": "assistant", "content": "".join(WORDS)}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            body = json.dumps(
                {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
                 "choices": [choice]}
            ).encode()  # fmt: skip
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
            await wire.send(f"{head}{len(body)}\r\n\r\n".encode(), body)

    async def stream(self, wire: Wire, endless: bool) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for word in WORDS:
            event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                     "choices": [{"index": 0, "delta": {"content": word}}]}  # fmt: skip
            await wire.send(chunk(b"data: %b\n\n" % json.dumps(event).encode()))
        if endless:
            await wire.closed()
            self.left.set()
            return
        await wire.send(chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n")

    async def endless(self, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"a"))
        await wire.closed()
        self.left.set()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture(params=DOORS)
async def rig(tmp_path: Path, request: pytest.FixtureRequest, model: Model) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, request.param) as rig, RawWorker(model.answer) as worker:
        rig.function("public/demo/f")
        rig.add(worker.port, "public/demo/f")
        yield rig


def base(rig: Rig) -> str:
    return f"http://127.0.0.1:{rig.port}"


def call_base(rig: Rig) -> str:
    return f"{base(rig)}/funccall/public/demo/f"


async def run(*command: str, stdin: bytes = b"") -> bytes:
    """The output of a program that must succeed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(DEADLINE_S * 3):
        output, errors = await process.communicate(stdin)
    assert process.returncode == 0, errors.decode()
    return output


def sync_chat(url: str) -> tuple[str, list[str], openai.NotFoundError]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(model="demo/f", messages=HELLO)
        stream = client.chat.completions.create(model="demo/f", messages=HELLO, stream=True)
        words = [event.choices[0].delta.content or "" for event in stream]
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="demo/nobody", messages=HELLO)
        return whole.choices[0].message.content or "", words, caught.value


async def test_the_openai_client(rig: Rig) -> None:
    whole, words, unknown = await asyncio.to_thread(sync_chat, f"{base(rig)}/v1")
    assert (whole, words) == ("".join(WORDS), WORDS)
    assert unknown.code == "model_not_found"


async def test_the_async_openai_client(rig: Rig, model: Model) -> None:
    url = f"{base(rig)}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model="demo/f", messages=HELLO) for _ in range(8))
        )
        assert [answer.choices[0].message.content for answer in answers] == ["".join(WORDS)] * 8
        stream = await client.chat.completions.create(
            model="public/demo/f", messages=HELLO, stream=True
        )
        assert [event.choices[0].delta.content async for event in stream] == WORDS
        left = await client.chat.completions.create(
            model="demo/f", messages=HELLO, stream=True, max_tokens=0
        )
        assert (await anext(aiter(left))).choices[0].delta.content == WORDS[0]
        await left.close()
        async with asyncio.timeout(DEADLINE_S):
            await model.left.wait()
    await rig.gauge("active", 0, "public/demo/f")


async def test_httpx(rig: Rig, model: Model) -> None:
    async def upload() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"piece"

    async with httpx.AsyncClient(base_url=call_base(rig), timeout=DEADLINE_S) as client:
        seen = (await client.post("/x?a=%20", content=upload())).text
        assert seen.startswith("POST /x?a=%20 HTTP/1.1\n")
        assert seen.endswith("\n\n" + "piece" * 3)
        assert (await client.head("/x")).status_code == 200
        async with client.stream("GET", "/endless") as answer:
            assert await anext(answer.aiter_raw()) == b"a"
        async with asyncio.timeout(DEADLINE_S):
            await model.left.wait()


async def test_curl(rig: Rig) -> None:
    url = f"{call_base(rig)}/x"
    assert b"GET /x HTTP/1.1\n" in await run("curl", "-sSf", url)
    head = await run("curl", "-sSfI", url)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    chunked = await run("curl", "-sSf", "-T", "-", url, stdin=b"from a pipe")
    assert b"transfer-encoding: chunked\n" in chunked.lower()
    assert chunked.endswith(b"\n\nfrom a pipe")
    # Large enough for curl to wait for `100 Continue` first.
    large = b"x" * 1_500_000
    answer = await run("curl", "-sSf", "--data-binary", "@-", url, stdin=large)
    assert answer.endswith(b"\n\n" + large)
    stream = ("curl", "-sSfN", f"{call_base(rig)}/v1/chat/completions", "-d", '{"stream": true}')
    assert (await run(*stream)).count(b"data: ") == len(WORDS) + 1


async def test_fetch_of_node(rig: Rig, model: Model) -> None:
    output = await run("node", "--input-type=module", "-e", NODE, call_base(rig))
    seen = json.loads(output)
    assert seen["status"] == 200
    assert seen["echo"].startswith("POST /x?a=b HTTP/1.1\n")
    assert seen["text"].count("data: ") == len(WORDS) + 1
    assert seen["left"] == "AbortError"
    async with asyncio.timeout(DEADLINE_S):
        await model.left.wait()


async def test_a_websocket_client(tmp_path: Path) -> None:
    async def serve(connection: websockets.ServerConnection) -> None:
        assert connection.request is not None
        await connection.send(connection.request.path)
        async for message in connection:
            await connection.send(message)

    async with Rig(tmp_path) as rig, websockets.serve(serve, "127.0.0.1", 0) as server:
        rig.function()
        rig.add(next(iter(server.sockets)).getsockname()[1])
        url = f"ws://127.0.0.1:{rig.port}/funccall/t/n/f/chat?room=1"
        async with websockets.connect(url, compression=None) as client:
            assert await client.recv() == "/chat?room=1"
            for message in ("text", b"bytes", "x" * 300_000):
                await client.send(message)
                assert await client.recv() == message
            await (await client.ping())
            await rig.gauge("active", 1)
        await rig.gauge("active", 0)
