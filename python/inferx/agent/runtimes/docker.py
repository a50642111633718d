"""The `docker` runtime: a worker is a container of the node's Docker Engine, asked over its socket.

Must never touch a container without the label of the pod's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import httpx

from inferx import procfs
from inferx.agent.logs import PodLog
from inferx.agent.runtimes.bundle import gpu_devices
from inferx.agent.runtimes.command import LINK, command_of
from inferx.agent.runtimes.protocol import Checkpoints, Exit, Worker, WorkerSpec
from inferx.agent.spec import devices_of
from inferx.domain.function import FunctionSpec
from inferx.errors import BadRequest, InferxError, StartFailed, Unavailable

log = logging.getLogger("inferx.agent.docker")

SOCKET = Path("/var/run/docker.sock")
ANY_HOST = "0.0.0.0"  # noqa: S104 # nosec B104 - in the container's own network namespace
API = "/v1.41"
LABEL = "inferx.pod"
CALL_TIMEOUT_S = 60.0
FIRST_LOG_LINES = 1000
_SIGNAL_BASE = 128
_FRAME_BYTES = 8  # of the header before each piece of a log


class Engine:
    """The Docker Engine's HTTP API, as much of it as is needed here."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._client: httpx.AsyncClient | None = None

    async def ask(
        self, method: str, path: str, *, timeout_s: float | None = CALL_TIMEOUT_S, **more: Any
    ) -> Any:
        """The answer's JSON, None for an empty one. 304 (nothing to change) is fine.

        Raises BadRequest, StartFailed or Unavailable with what the engine said.
        """
        try:
            answer = await self.client.request(method, API + path, timeout=timeout_s, **more)
        except httpx.HTTPError as error:
            raise Unavailable(f"Docker at {self._socket} does not answer: {error}") from error
        if answer.status_code < 400:
            return answer.json() if answer.content else None
        try:
            said = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            said = answer.text
        if answer.status_code == 404:
            raise _Missing(said)
        kind = StartFailed if answer.status_code in (400, 409, 500) else Unavailable
        raise kind(f"Docker: {said}")

    @property
    def client(self) -> httpx.AsyncClient:
        """The connection; made within the running event loop."""
        if self._client is None:
            transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
            self._client = httpx.AsyncClient(transport=transport, base_url="http://docker")
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


class _Missing(StartFailed):
    """The engine does not know the container or the image."""


class DockerWorker:
    """A container. Its output is copied into the pod's log while an agent runs; what was written
    meanwhile is fetched by the next one."""

    notes: tuple[str, ...] = ()

    def __init__(self, engine: Engine, state: Mapping[str, Any], folder: Path) -> None:
        self._engine = engine
        self._id = str(state["Id"])
        self._pid = int(state["State"]["Pid"])
        self.host = address_of(state)
        self._log = PodLog(folder)
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._copy_log()), asyncio.create_task(self._watch())]

    @property
    def record(self) -> Mapping[str, Any]:
        return {"container": self._id, "pid": self._pid, "address": self.host}

    def pids(self) -> list[int]:
        return procfs.descendants(self._pid)

    async def freeze(self) -> None:
        if not (await self._state())["Paused"]:
            await self._engine.ask("POST", f"/containers/{self._id}/pause")

    async def thaw(self) -> None:
        if (await self._state())["Paused"]:
            await self._engine.ask("POST", f"/containers/{self._id}/unpause")

    async def stop(self, grace_s: float) -> None:
        with contextlib.suppress(_Missing):
            await self.thaw()
            # Number one of a process namespace gets no signal that it has no handler for.
            seconds = round(grace_s) if procfs.catches(self._pid, signal.SIGTERM) else 0
            path = f"/containers/{self._id}/stop?t={seconds}"
            await self._engine.ask("POST", path, timeout_s=grace_s + CALL_TIMEOUT_S)
        await asyncio.wait([self.exited], timeout=CALL_TIMEOUT_S)
        await self._end_tasks(wait=True)
        await remove(self._engine, self._id)

    def let_go(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _state(self) -> dict[str, Any]:
        found = await self._engine.ask("GET", f"/containers/{self._id}/json")
        return dict(found["State"])

    async def _watch(self) -> None:
        """Wait for the container's end."""
        try:
            await self._engine.ask("POST", f"/containers/{self._id}/wait", timeout_s=None)
            state = await self._state()
        except _Missing:
            self._ended(Exit(note="its container was removed by somebody else"))
            return
        except InferxError as error:
            # Without the engine nobody can say whether it runs: it has to be started again.
            self._ended(Exit(note=error.message))
            return
        note = "over its memory limit, resources.Mem" if state["OOMKilled"] else ""
        code = int(state["ExitCode"])
        if code > _SIGNAL_BASE:
            self._ended(Exit(signal=code - _SIGNAL_BASE, note=note))
        else:
            self._ended(Exit(code=code, note=note))

    def _ended(self, how: Exit) -> None:
        if not self.exited.done():
            self.exited.set_result(how)

    async def _copy_log(self) -> None:
        since = self._log.path.stat().st_mtime if self._log.path.exists() else 0
        query = f"stdout=1&stderr=1&follow=1&since={since:.9f}&tail={FIRST_LOG_LINES}"
        path = f"{API}/containers/{self._id}/logs?{query}"
        output = self._log.open_for_worker()
        try:
            async with self._engine.client.stream("GET", path, timeout=None) as answer:
                rest = b""
                async for piece in answer.aiter_bytes():
                    text, rest = _unframe(rest + piece)
                    os.write(output, text)
        except httpx.HTTPError as error:
            log.warning("the log of container %s ends here: %s", self._id[:12], error)
        finally:
            os.close(output)

    async def _end_tasks(self, *, wait: bool) -> None:
        if wait:  # the last of its output
            await asyncio.wait(self._tasks, timeout=1.0)
        self.let_go()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class DockerRuntime:
    """Workers in containers of the engine's own images, network and limits."""

    name = "docker"
    listen_host = ANY_HOST
    checkpoints: Checkpoints | None = None  # its own take half a minute; see the runc runtime

    def __init__(self, socket: Path = SOCKET, network: str = "") -> None:
        self._engine = Engine(socket)
        self._network = network  # "" = the engine's default

    def check(self, launch: FunctionSpec) -> None:
        if not launch.image:
            raise BadRequest("spec.image: needed on a node with the docker runtime")

    def port_for(self, launch: FunctionSpec, taken: Container[int]) -> int:
        return launch.endpoint.port  # each has an address of its own

    async def start(self, spec: WorkerSpec) -> Worker:
        await self._clear(spec.folder)
        name = f"inferx-{spec.pod_id}-{spec.folder.stat().st_ino:x}"
        made = None
        try:
            made = await self._engine.ask(
                "POST", f"/containers/create?name={name}", json=_container(spec, self._network)
            )
            await self._engine.ask("POST", f"/containers/{made['Id']}/start")
            state = await self._engine.ask("GET", f"/containers/{made['Id']}/json")
            return DockerWorker(self._engine, state, spec.folder)
        except _Missing as error:
            raise StartFailed(f"spec.image: {spec.launch.image!r}: {error.message}") from error
        except BaseException:
            if made is not None:
                await remove(self._engine, made["Id"])
            raise

    async def adopt(self, folder: Path, record: Mapping[str, Any]) -> Worker | None:
        for found in await self._of(folder):
            state = await self._engine.ask("GET", f"/containers/{found['Id']}/json")
            if state["State"]["Running"]:
                return DockerWorker(self._engine, state, folder)
        await self._clear(folder)
        return None

    async def close(self) -> None:
        """Close the connections to the engine."""
        await self._engine.close()

    async def _of(self, folder: Path) -> list[dict[str, Any]]:
        filters = json.dumps({"label": [f"{LABEL}={folder}"]})
        found = await self._engine.ask(
            "GET", "/containers/json", params={"all": "1", "filters": filters}
        )
        return list(found)

    async def _clear(self, folder: Path) -> None:
        for found in await self._of(folder):
            await remove(self._engine, found["Id"])


def address_of(state: Mapping[str, Any]) -> str:
    """The container's address, as the engine tells; raises StartFailed when it has none."""
    for network in state["NetworkSettings"]["Networks"].values():
        if network["IPAddress"]:
            return str(network["IPAddress"])
    if not state["State"]["Running"]:
        return ""  # it has ended already, which its exit will tell
    raise StartFailed("Docker gave the container no address")


async def remove(engine: Engine, container: str) -> None:
    """Kill and remove a container with its volumes; one that is gone is fine."""
    deadline = time.monotonic() + CALL_TIMEOUT_S
    while True:
        try:
            await engine.ask("DELETE", f"/containers/{container}?force=1&v=1")
            return
        except _Missing:
            return
        except StartFailed as error:
            # "removal is already in progress" is said to who asks while it is.
            if time.monotonic() > deadline:
                raise InferxError(f"container {container} stays: {error.message}") from error
            await asyncio.sleep(0.05)


def _container(spec: WorkerSpec, network: str) -> dict[str, Any]:
    """The body of a create request."""
    argv, environment = command_of(spec, {}, link=LINK)
    devices = [str(index) for index in devices_of(spec.alloc)] if gpu_devices(spec) else []
    host: dict[str, Any] = {
        "Binds": [
            *(f"{mount.host_path}:{mount.mount_path}" for mount in spec.launch.mounts),
            *([f"{spec.link}:{LINK}"] if spec.link.is_dir() else ()),
        ],
        "SecurityOpt": ["no-new-privileges"],
    }
    if network:
        host["NetworkMode"] = network
    if spec.alloc.mem_mb:
        host |= {
            "Memory": spec.alloc.mem_mb << 20,
            "ShmSize": max(64, spec.alloc.mem_mb // 2) << 20,
        }
    if spec.alloc.cpu_millis:
        host["CpuShares"] = max(2, spec.alloc.cpu_millis * 1024 // 1000)
    if devices:
        request = {"Driver": "nvidia", "DeviceIDs": devices, "Capabilities": [["gpu"]]}
        host["DeviceRequests"] = [request]
    body: dict[str, Any] = {
        "Image": spec.launch.image,
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": {LABEL: str(spec.folder)},
        "HostConfig": host,
    }
    # What the function does not name is the image's, as with `docker run`.
    count = len(spec.launch.entrypoint)
    if count:
        body["Entrypoint"] = argv[:count]
    if argv[count:]:
        body["Cmd"] = argv[count:]
    return body


def _unframe(data: bytes) -> tuple[bytes, bytes]:
    """The text in the whole frames of `data`, and what is left of it."""
    text = b""
    while len(data) >= _FRAME_BYTES:
        size = int.from_bytes(data[4:_FRAME_BYTES], "big")
        if len(data) < _FRAME_BYTES + size:
            break
        text += data[_FRAME_BYTES : _FRAME_BYTES + size]
        data = data[_FRAME_BYTES + size :]
    return text, data
