"""The second door: inference calls that an ASGI server has read, handed to the data plane.

Must never hold more than a few frames of a call, and never wait for one call in another's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import orjson

from inferx._ext import Door, DoorCall, Proxy

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEALTH = ("/", "/healthz", "/readyz")
_VERSIONS = {"1": b"HTTP/1.0", "1.0": b"HTTP/1.0"}
_CLOSE = (b"connection", b"close")
# How long a client may go on with an upload that nobody reads any more.
_LINGER_S = 1.0
_BROKEN_STREAM = b'event: error\ndata: {"error": {"code": "worker_failed", "message": %s}}\n\n'


class _Call:
    """One call on its way: what Rust knows of it, and who waits for news of it."""

    def __init__(self, call: DoorCall) -> None:
        self.call = call
        self.started = False
        self.readable = asyncio.Event()
        self.writable = asyncio.Event()

    async def next_part(self) -> tuple[Any, ...]:
        """The next part of the answer."""
        while True:
            self.readable.clear()
            if (part := self.call.take()) is not None:
                return part
            await self.readable.wait()

    async def push(self, frame: bytes) -> None:
        """Hands in a frame of the upload as soon as there is room for it."""
        while True:
            self.writable.clear()
            if self.call.push(frame):
                return
            await self.writable.wait()


class _Body:
    """A request's body as it comes, and whether it has ended."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        message = await self._receive()
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body")
        return message

    async def linger(self) -> None:
        """Throws away what still comes, for a while. Who is answered before has his stream reset,
        which some clients take for a failure, though it is none (RFC 9113, 8.1). Often they owe no
        more than the mark of the end, which they send in a frame of its own behind the last byte.
        Granian waits only behind an answer that it was given whole; it ends a stream's upload with
        the stream.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._ended:
                    await self()


class AsgiDoor:
    """An ASGI app: calls go to `proxy`, everything else (lifespan, too) to `control`."""

    def __init__(self, proxy: Proxy, control: App) -> None:
        self._proxy = proxy
        self._control = control
        self._door: Door | None = None
        self._calls: dict[int, _Call] = {}
        self._leaving = False

    def start(self) -> None:
        """Begin; must be called on the running event loop."""
        self._door = self._proxy.open_door()
        asyncio.get_running_loop().add_reader(self._door.ready_fd, self._on_ready)

    def leave(self) -> None:
        """From now on each answer over HTTP/1 is the last one of its connection. The other versions
        have words of their own for it, which the server says when it is stopped."""
        self._leaving = True

    def stop(self) -> None:
        """End; no call may be open any more."""
        if self._door is not None:
            asyncio.get_running_loop().remove_reader(self._door.ready_fd)
            self._door = None

    def _on_ready(self) -> None:
        for number in self._door.ready() if self._door is not None else ():
            if (call := self._calls.get(number)) is not None:
                call.readable.set()
                call.writable.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._control(scope, receive, send)
            return
        is_http_2 = scope["http_version"] == "2"

        def answer(message: Message) -> Awaitable[None]:
            if self._leaving and not is_http_2 and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], _CLOSE]}
            return send(message)

        body = _Body(receive)
        if _is_call(scope["method"], scope["path"]):
            await self._pass(scope, body, answer)
        else:
            await self._control(scope, body, answer)
        if is_http_2:
            await body.linger()

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands one call to the data plane."""
        call, first = await self._open(scope, receive)
        self._calls[call.call.id] = call
        upload = asyncio.create_task(_upload(call, first, receive))
        answer = asyncio.create_task(_answer(call, send))
        try:
            await asyncio.wait((upload, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                # The client left or its upload broke off; which of them cannot be told here.
                call.call.leave()
                answer.cancel()
                with suppress(asyncio.CancelledError):
                    await answer
                if not call.started:
                    await _refuse(send, "the request body is malformed or was cut")
        finally:
            self._calls.pop(call.call.id, None)
            call.call.leave()
            for task in (upload, answer):
                task.cancel()
            await asyncio.gather(upload, answer, return_exceptions=True)

    async def _open(self, scope: Scope, receive: Receive) -> tuple[_Call, Message | None]:
        if self._door is None:
            raise RuntimeError("the gateway has not started")
        version = _VERSIONS.get(scope["http_version"], b"HTTP/1.1")
        lines = [b"%b %b %b" % (scope["method"].encode(), _target(scope), version)]
        # Here a connection cannot become a tunnel, whatever the client asks for.
        fields = [(name, value) for name, value in scope["headers"] if name != b"upgrade"]
        if version == b"HTTP/1.0":
            # The server fills in an empty Host, which only HTTP/1.1 needs.
            fields = [field for field in fields if field != (b"host", b"")]
        first = None
        if scope["http_version"] == "2" and not any(
            name == b"content-length" for name, _ in fields
        ):
            # In HTTP/2 only the first frame tells whether there is a body.
            first = await receive()
            if first.get("more_body"):
                fields.append((b"transfer-encoding", b"chunked"))
            elif first.get("body"):
                fields.append((b"content-length", b"%d" % len(first["body"])))
        lines += [b"%b: %b" % field for field in fields]
        chunked = any(name == b"transfer-encoding" for name, _ in fields)
        return _Call(self._door.open(b"\r\n".join(lines) + b"\r\n\r\n", chunked)), first


def _is_call(method: str, path: str) -> bool:
    """Whether the data plane answers this, as its own listener would."""
    if path in _HEALTH:
        return method in ("GET", "HEAD")
    if path.startswith("/v1/"):
        return method == "POST" and path != "/v1/models"
    return path == "/funccall" or path.startswith("/funccall/")


def _target(scope: Scope) -> bytes:
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


async def _upload(call: _Call, first: Message | None, receive: Receive) -> None:
    """Hands the upload in; returns when the client has left."""
    while True:
        message = first or await receive()
        first = None
        if message["type"] == "http.disconnect":
            return
        if frame := message.get("body"):
            await call.push(frame)
        if not message.get("more_body"):
            call.call.finish()


async def _answer(call: _Call, send: Send) -> None:
    """Hands the answer back."""
    kind, status, fields, *body = await call.next_part()
    call.started = True
    await send({"type": "http.response.start", "status": status, "headers": fields})
    if kind == "whole":
        await send({"type": "http.response.body", "body": body[0], "more_body": False})
        return
    is_stream = any(
        name == b"content-type" and value.startswith(b"text/event-stream") for name, value in fields
    )
    part = call.call.take()
    if part is None or part[0] == "broken":
        # Some servers send the head only with the first piece of the body, which may be far.
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        part = part or await call.next_part()
    while part[0] == "data":
        following = call.call.take()
        last = following is not None and following[0] == "end"
        await send({"type": "http.response.body", "body": part[1], "more_body": not last})
        if last:
            return
        part = following or await call.next_part()
    if part[0] == "end":
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    # The answer stays without its end, so that the server cuts the connection; an event stream
    # tells why, for clients that take any end for the ordinary one.
    if is_stream:
        text = _BROKEN_STREAM % orjson.dumps(part[1])
        await send({"type": "http.response.body", "body": text, "more_body": True})


async def _refuse(send: Send, message: str) -> None:
    body = orjson.dumps({"error": {"code": "bad_request", "message": message}})
    length = (b"content-length", b"%d" % len(body))
    fields = [(b"content-type", b"application/json"), length, _CLOSE]
    await send({"type": "http.response.start", "status": 400, "headers": fields})
    await send({"type": "http.response.body", "body": body, "more_body": False})
