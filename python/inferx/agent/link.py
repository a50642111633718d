"""The agent's end of the two sockets that it shares with a pod's worker (`inferx.worker`).

Must never believe a worker: what it sends is bounded and checked, and it may answer nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inferx.errors import InferxError, Unavailable
from inferx.worker import AGENTS, MESSAGE_BYTES_MAX, OURS, REGIONS_MAX

log = logging.getLogger("inferx.agent.link")

FOLDER_NAME = "link"  # in the pod's folder
REQUEST_BOUND_S = 10.0
# What a worker asks for: the answer's JSON, and a descriptor that is closed once it was sent.
Serve = Callable[[Mapping[str, Any]], int | None]


class WorkerLink:
    """One pod's sockets. `serve` answers the worker's requests or raises InferxError."""

    def __init__(self, pod_folder: Path, serve: Serve) -> None:
        self._folder = pod_folder / FOLDER_NAME
        self._serve = serve
        self._listener: socket.socket | None = None
        self._opened = -1
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Listen for the worker; raises Unavailable when the folder cannot be made."""
        if self._listener is not None:
            return
        try:
            # The pod's folder is the agent's alone; a worker may be another user inside of it.
            self._folder.mkdir(exist_ok=True)
            self._folder.chmod(0o777)
            self._opened = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
            (self._folder / AGENTS).unlink(missing_ok=True)
            self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(self._path(AGENTS))
            (self._folder / AGENTS).chmod(0o666)
            listener.listen()
            listener.setblocking(False)
        except OSError as error:
            self.close()
            raise Unavailable(f"no socket for the worker in {self._folder}: {error}") from error
        self._task = asyncio.create_task(self._accept(listener), name="worker link")

    def close(self) -> None:
        """Listen no more; the worker's own socket stays."""
        if self._task is not None:
            self._task.cancel()
        if self._listener is not None:
            self._listener.close()
            (self._folder / AGENTS).unlink(missing_ok=True)
        if self._opened >= 0:
            os.close(self._opened)
        self._task, self._listener, self._opened = None, None, -1

    async def ask(
        self, command: Mapping[str, Any], descriptors: Sequence[int] = (), *, timeout_s: float
    ) -> tuple[dict[str, Any], list[int]] | None:
        """The worker's answer and the descriptors in it; None when no worker listens here.

        Raises Unavailable with what it said, or that it says nothing.
        """
        if self._opened < 0:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.setblocking(False)
            try:
                async with asyncio.timeout(timeout_s):
                    loop = asyncio.get_running_loop()
                    await loop.sock_connect(channel, self._path(OURS))
                    request = json.dumps(command).encode() + b"\n"
                    socket.send_fds(channel, [request], list(descriptors))
                    data, got = await _read_all(channel)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except TimeoutError as error:
                what = command["do"]
                raise Unavailable(f"the worker has not answered `{what}` in {timeout_s:g} s") from (
                    error
                )
            except OSError as error:
                raise Unavailable(f"the worker cannot be asked to {command['do']}: {error}") from (
                    error
                )
        return _judged(command, data, got)

    # ---- inside ----

    def _path(self, name: str) -> str:
        """As an address it would often be too long."""
        return f"/proc/self/fd/{self._opened}/{name}"

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            channel, _ = await loop.sock_accept(listener)
            with channel:
                channel.setblocking(False)
                try:
                    async with asyncio.timeout(REQUEST_BOUND_S):
                        await self._answer(channel)
                except (OSError, TimeoutError) as error:
                    log.warning("a worker's request was not answered: %r", error)

    async def _answer(self, channel: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        data = b""
        while not data.endswith(b"\n") and len(data) < MESSAGE_BYTES_MAX:
            piece = await loop.sock_recv(channel, MESSAGE_BYTES_MAX)
            if not piece:
                return
            data += piece
        descriptor = None
        try:
            request = json.loads(data)
            if not isinstance(request, dict):
                raise ValueError("not an object")
            descriptor = self._serve(request)
            answer: dict[str, Any] = {}
        except InferxError as error:
            answer = {"error": error.message}
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": f"not understood: {error!r}"}
        try:
            sent = [descriptor] if descriptor is not None else []
            socket.send_fds(channel, [json.dumps(answer).encode() + b"\n"], sent)
        finally:
            if descriptor is not None:
                os.close(descriptor)


async def _read_all(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Everything until the other side hangs up: a saved process must have no connection left."""
    data, descriptors = b"", []
    try:
        while len(data) <= MESSAGE_BYTES_MAX:
            await _readable(channel)
            piece, got, _, _ = socket.recv_fds(channel, MESSAGE_BYTES_MAX, REGIONS_MAX)
            descriptors += got
            if not piece:
                return data, descriptors
            data += piece
        raise OSError("its answer is too long")
    except BaseException:
        close_all(descriptors)
        raise


async def _readable(channel: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def is_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(channel, is_ready)
    try:
        await ready
    finally:
        loop.remove_reader(channel)


def _judged(
    command: Mapping[str, Any], data: bytes, descriptors: list[int]
) -> tuple[dict[str, Any], list[int]]:
    try:
        answer = json.loads(data)
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        if "error" in answer:
            raise Unavailable(f"the worker cannot {command['do']}: {answer['error']}")
    except ValueError as error:
        close_all(descriptors)
        raise Unavailable(f"the worker's answer to `{command['do']}` is not JSON") from error
    except Unavailable:
        close_all(descriptors)
        raise
    return answer, descriptors


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that came in a message."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
