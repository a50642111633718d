"""The platform as a user starts it: `inferx up` in a folder of its own, stopped after the tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.containerd_daemon import Containerd
from tests.helpers.ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL_SERVER = ROOT / "tests" / "helpers" / "model_server.py"
START_SECONDS = 120.0  # on a machine full of tests; an idle one takes two or three


def eventually(check: Callable[[], Any], seconds: float = 60.0, what: str = "condition") -> Any:
    """The first true value of `check`, which is asked until the deadline."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            if value := check():
                return value
        except (httpx.HTTPError, AssertionError, KeyError, IndexError) as error:
            last = error
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what} (last: {last!r})")


def function(name: str, *flags: str, vram_mb: int = 350, **policy: Any) -> dict[str, Any]:
    """A manifest of the test model server with its policy written into it."""
    values = {
        "max_replica": 1,
        "parallel": 64,
        "queue_len": 600,
        "queue_timeout": 30.0,
        "scalein_timeout": 0.05,
        **policy,
    }
    return {
        "type": "function",
        "tenant": "public",
        "namespace": "test",
        "name": name,
        "object": {
            "spec": {
                "image": "test/model-server",
                "entrypoint": ["$(INFERX_PYTHON)", str(MODEL_SERVER)],
                "commands": list(flags),
                "resources": {
                    "CPU": 100,
                    "Mem": 200,
                    "GPU": {"Type": "Any", "Count": 1, "vRam": vram_mb},
                },
                "endpoint": {"port": 8000, "schema": "Http", "probe": "/health"},
                "sample_query": {"path": "pid", "loadingTimeout": 30, "body": {}},
                "standby": {"gpu": "Mem", "pageable": "Mem", "pinned": "Mem"},
                "policy": {"Obj": values},
            }
        },
    }


@dataclass
class Platform:
    """A running `inferx up` and what a test asks of it."""

    folder: Path
    port: int
    process: subprocess.Popen[str]
    output: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=60.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Creates the objects, as `inferx apply` does."""
        for manifest in manifests:
            answer = self.client.put("/object/", json=manifest)
            assert answer.status_code in (200, 201), answer.text

    def start_namespace(self) -> None:
        """The tenant and namespace that `function` uses."""
        tenant = {"type": "tenant", "tenant": "system", "namespace": "system", "name": "public"}
        space = {"type": "namespace", "tenant": "public", "namespace": "system", "name": "test"}
        empty = {"object": {"spec": {}, "status": {"disable": False}}}
        self.apply({**tenant, **empty}, {**space, **empty})

    def call(self, name: str, path: str = "echo", **options: Any) -> httpx.Response:
        method = options.pop("method", "GET")
        return self.client.request(method, f"/funccall/public/test/{name}/{path}", **options)

    def pods(self, name: str | None = None) -> list[dict[str, Any]]:
        """The scheduler's view of the pods, ended ones left out."""
        answer = self.client.get(f"/pods/public/test/{name}/" if name else "/pods/public/test/")
        assert answer.status_code == 200, answer.text
        pods: list[dict[str, Any]] = answer.json()
        ended = ("Terminated", "Failed")
        return [pod for pod in pods if pod["object"]["status"]["state"] not in ended]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a counter's or gauge's samples that carry these labels."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if found and all(
                f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()
            ):
                total += float(found[2])
        return total

    def children(self) -> dict[str, int]:
        """Process ids by service name, as `up` wrote them."""
        state = json.loads((self.folder / "up.json").read_text())
        return {name: int(pid) for name, pid in state["pids"].items()}

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


def start_platform(
    folder: Path, *flags: str, port: int | None = None, **environment: str
) -> Platform:
    """Starts `inferx up` and waits until the gateway is ready."""
    port = port or free_port()
    output = folder.parent / f"{folder.name}.out"
    command = [sys.executable, "-m", "inferx", "up", "--dir", str(folder), "--port", str(port)]
    with output.open("w") as stream:
        process = subprocess.Popen(
            [*command, *flags], stdout=stream, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip
    platform = Platform(folder, port, process, output)

    def ready() -> bool:
        assert process.poll() is None, f"inferx up ended: {output.read_text()}"
        return platform.client.get("/readyz").status_code == 200

    try:
        eventually(ready, START_SECONDS, f"inferx up is ready; see {output}")
    except AssertionError:
        with suppress(ProcessLookupError):  # it has ended by itself, and says why
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        platform.client.close()
        raise AssertionError(output.read_text()) from None
    return platform


@contextmanager
def running_platform(folder: Path, *flags: str, **environment: str) -> Iterator[Platform]:
    """A platform that ends with the block, however that ends."""
    platform = start_platform(folder, *flags, **environment)
    try:
        yield platform
    finally:
        code = platform.stop()
    assert code == 0, platform.output.read_text()


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    daemon = Containerd(tmp_path_factory.mktemp("containerd"))
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Entries of node.json for a runtime that saves workers: runc, or what `ON_BOTH` says."""
    name = getattr(request, "param", "runc")
    if name == "runc":
        yield {"runtime": name}
        return
    daemon: Containerd = request.getfixturevalue(name)
    yield {"runtime": name, "containerSocket": str(daemon.socket)}
    assert daemon.containers() == []


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two small simulated GPUs with room for one worker each (350 MB and its context of 450 MB)."""
    folder = tmp_path_factory.mktemp("platform") / "inferx"
    with running_platform(folder, "--gpus", "2x1000", "--idle-park-ms", "500") as running:
        running.start_namespace()
        yield running
