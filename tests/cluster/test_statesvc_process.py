"""The state service as a process: stops in order, survives kill -9, says why it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.ports import free_port
from tests.helpers.state_client import Client

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = (
    "import pathlib, sys; from inferx import config; from services import statesvc; "
    "sys.exit(statesvc.run(config.load(pathlib.Path(sys.argv[1]), {})))"
)


class Process:
    """One state service on a folder."""

    def __init__(self, folder: Path, port: int | None = None, **entries: object) -> None:
        self.port = port or free_port()
        folder.mkdir(exist_ok=True)
        self._config = folder / f"node-{self.port}.json"
        self._config.write_text(
            json.dumps(
                {
                    "statSvcPort": self.port,
                    "dataDir": str(folder),
                    "logFormat": "json",
                    "auditdbAddr": "postgresql://audit:hunter2@db/audit",
                    **entries,
                }
            )
        )
        self.log: list[str] = []
        self.ready = False

    async def start(self) -> Process:
        """Start it and wait until it says that it is ready, or is gone."""
        env = {**os.environ, "PYTHONPATH": f"{ROOT / 'python'}:{ROOT}"}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", MAIN, str(self._config),
            env=env, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stderr is not None
        async with asyncio.timeout(60):
            async for line in self.process.stderr:
                self.log.append(line.decode())
                self.ready = "ready" in self.log[-1]
                if self.ready:
                    break
        return self

    async def end(self, number: signal.Signals) -> int:
        """Send a signal, unless it could not start, and wait for the exit status."""
        if self.ready:
            self.ready = False
            self.process.send_signal(number)
        _, rest = await asyncio.wait_for(self.process.communicate(), 30)
        self.log += (rest or b"").decode().splitlines()
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Process]:
    started = await Process(tmp_path).start()
    yield started
    await started.end(signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_stops_in_order(service: Process, number: signal.Signals) -> None:
    client = Client(service.port)
    watching = asyncio.create_task(client.watch(100, "tenant"))
    await client.create("tenant", ("system", "system", "t"))
    assert await service.end(number) == 0
    await asyncio.gather(watching, return_exceptions=True)
    await client.close()
    lines = [json.loads(line) for line in service.log]
    assert all(line["service"] == "statesvc" for line in lines)
    assert not [line for line in lines if line["level"] in ("warning", "error")]
    assert "hunter2" not in "".join(service.log)


async def test_objects_survive_kill_9(service: Process, tmp_path: Path) -> None:
    client = Client(service.port)
    for number in range(20):
        revision, _ = await client.create("tenant", ("system", "system", f"t{number}"))
    await service.end(signal.SIGKILL)
    again = await Process(tmp_path, service.port).start()
    assert len(await client.names("tenant")) == 21
    later, _ = await client.create("tenant", ("system", "system", "later"))
    assert later > revision
    await client.close()
    assert await again.end(signal.SIGTERM) == 0


async def test_a_second_one_on_the_same_folder_says_so(service: Process, tmp_path: Path) -> None:
    second = await Process(tmp_path).start()
    assert await second.end(signal.SIGTERM) == 1
    message = json.loads(second.log[-1])["message"]
    assert "in use by another process" in message
    assert str(service.process.pid) in message


async def test_it_says_which_entries_have_no_effect(tmp_path: Path) -> None:
    started = await Process(tmp_path, dataDirr="/elsewhere").start()
    assert await started.end(signal.SIGTERM) == 0
    first = json.loads(started.log[0])
    message = "configuration: dataDirr: unknown field, kept but without effect"
    assert (first["level"], first["message"]) == ("warning", message)


async def test_a_taken_port_is_named(service: Process, tmp_path: Path) -> None:
    second = await Process(tmp_path / "other", service.port).start()
    assert await second.end(signal.SIGTERM) == 1
    assert f"cannot listen on 127.0.0.1:{service.port}" in "".join(second.log)
