"""What the second door tells the ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from inferx.gateway.door import AsgiDoor
from tests.helpers.proxy_kit import Rig, no_control

CALLS = 200
SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "path": "/funccall/t/n/f/x",
    "raw_path": b"/funccall/t/n/f/x",
    "query_string": b"",
    "headers": [(b"host", b"h"), (b"content-length", b"3")],
}


async def test_a_refusal_is_told_whole(tmp_path: Path) -> None:
    """A head without its end would look like a stream's, and Granian ends the upload of such a call
    with it."""
    async with Rig(tmp_path) as rig:
        rig.function(disabled="not today")
        door = AsgiDoor(rig.proxy, no_control)
        door.start()
        for _ in range(CALLS):
            frames = iter([{"type": "http.request", "body": b"a", "more_body": True}])
            told: list[MutableMapping[str, Any]] = []

            async def receive(frames: Any = frames) -> dict[str, Any]:
                return next(frames, None) or await asyncio.get_running_loop().create_future()

            async def send(message: MutableMapping[str, Any], told: Any = told) -> None:
                told.append(message)

            await door(SCOPE, receive, send)
            start, body = told
            assert (start["status"], body["more_body"]) == (403, False)
            assert b"not today" in body["body"]
        door.stop()
