"""Runtimes without an agent: one worker of the test server at a time, and what is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from inferx import procfs
from inferx.agent.runtimes.boxes import Places
from inferx.agent.runtimes.containerd import ContainerdRuntime
from inferx.agent.runtimes.docker import DockerRuntime
from inferx.agent.runtimes.process import ProcessRuntime
from inferx.agent.runtimes.protocol import Runtime, Worker, WorkerSpec
from inferx.agent.runtimes.runc import STATE_ROOT, RuncRuntime
from inferx.agent.spec import parse_alloc, parse_launch
from tests.helpers import docker_engine

ROOT = Path(__file__).resolve().parents[2]
SERVER = "tests/helpers/agent_worker.py"
DEADLINE_S = 40.0
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/root"}


class Kit:
    """One runtime in a folder of the test's own."""

    def __init__(
        self, name: str, folder: Path, path: str = ENVIRONMENT["PATH"], socket: Path | None = None
    ) -> None:
        self.folder = folder
        self._spec: dict[str, Any] = {"image": "", "entrypoint": ["$(INFERX_PYTHON)", SERVER]}
        environment = {**ENVIRONMENT, "PATH": path}
        self.runtime: Runtime
        if name == "process":
            self.runtime = ProcessRuntime(ROOT, environment)
        elif name == "docker" and socket is not None:
            self.runtime = DockerRuntime(socket)
            self._spec["image"] = docker_engine.IMAGE
            self._spec["entrypoint"] = ["$(INFERX_PYTHON)", str(ROOT / SERVER)]
            self._spec["mounts"] = docker_engine.mounts(ROOT)
        else:
            places = Places(ROOT, folder / "images", "10.213.0.0/16", (folder / "hidden",))
            if name == "containerd" and socket is not None:
                self.runtime = ContainerdRuntime(places, environment, socket)
            else:
                self.runtime = RuncRuntime(places, environment)

    def spec(self, name: str, *mode: str, mem_mb: int = 500, **more: Any) -> WorkerSpec:
        """A worker of the test server in that mode."""
        function = {
            **self._spec,
            "commands": list(mode or ("ok",)),
            "resources": {"CPU": 100, "Mem": mem_mb},
            "endpoint": {"port": 8000},
            **more,
        }
        launch = parse_launch(json.dumps(function))
        folder = self.folder / "pods" / name
        folder.mkdir(parents=True, exist_ok=True)
        return WorkerSpec(
            pod_id=name,
            launch=launch,
            alloc=parse_alloc(json.dumps({"CPU": 500, "Mem": mem_mb})),
            folder=folder,
            host=self.runtime.listen_host,
            port=self.runtime.port_for(launch, ()),
        )

    async def start(self, name: str, *mode: str, **more: Any) -> tuple[Worker, WorkerSpec]:
        spec = self.spec(name, *mode, **more)
        return await self.runtime.start(spec), spec


async def ask(worker: Worker, spec: WorkerSpec, path: str = "/") -> dict[str, Any]:
    """The worker's answer, once it listens."""
    deadline = time.monotonic() + DEADLINE_S
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        while True:
            try:
                answer = await client.get(f"http://{worker.host}:{spec.port}{path}")
                return dict(answer.json())
            except httpx.TransportError:
                if time.monotonic() > deadline or worker.exited.done():
                    raise
                await asyncio.sleep(0.01)


async def answers(worker: Worker, spec: WorkerSpec) -> bool:
    """Whether it answers a single question within half a second."""
    async with httpx.AsyncClient(trust_env=False, timeout=0.5) as client:
        try:
            return (await client.get(f"http://{worker.host}:{spec.port}/")).status_code == 200
        except httpx.TransportError:
            return False


async def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        await asyncio.sleep(0.01)
    return value


def leftovers(folder: Path) -> list[str]:
    """Everything on this machine that still belongs to workers of this folder."""
    found = [f"mount {line.split()[1]}" for line in _lines("/proc/mounts") if str(folder) in line]
    claims = Path("/run/inferx/net")
    for claim in claims.iterdir() if claims.is_dir() else ():
        owner = claim.read_text() if claim.is_file() else ""
        if owner.startswith(str(folder)):
            found.append(f"network {claim.name}")
    for bundle in [str(box) for box in folder.rglob("box")]:
        found.append(f"folder {bundle}")
    listed = subprocess.run(
        ["runc", "--root", str(STATE_ROOT), "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for container in json.loads(listed or "[]") or []:
        if container["bundle"].startswith(str(folder)):
            found.append(f"container {container['id']}")
    for entry in procfs.PROC.iterdir():
        if entry.name.isdigit() and (stat := procfs.stat(int(entry.name))) and stat.is_live:
            found += _uses(entry, folder)
    return found


def _uses(entry: Path, folder: Path) -> list[str]:
    try:
        line = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    mine = int(entry.name) == os.getpid()
    return [] if mine or os.fsencode(folder) not in line else [f"process {entry.name}"]


def network_state() -> set[str]:
    """Namespaces, links and packet filter rules of this machine that have to do with workers."""
    state = {f"netns {path.name}" for path in Path("/run/netns").glob("inferx-*")}
    state |= {f"link {path.name}" for path in Path("/sys/class/net").glob("ifx*")}
    for tool in ("iptables-legacy-save", "iptables-save"):
        rules = subprocess.run(["sh", "-c", f"{tool} 2>/dev/null || :"], capture_output=True)
        state |= {line for line in rules.stdout.decode().splitlines() if "CRIU" in line}
    return state


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
