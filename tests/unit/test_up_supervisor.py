"""The supervisor with small stand-in services: order, restarts, refusals, nothing left behind.

The services listen on the ports of node.json as the real ones do; what they log tells the order.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inferx.errors import ConfigError
from inferx.up import processes, settings
from tests.helpers.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
import os, signal, socket, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NODES = b'[{"name": "local", "object": {"spec": {}, "status": {"state": "Ready"}}}]'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(NODES)))
        self.end_headers()
        self.wfile.write(NODES)


def run(config):
    name = sys.argv[sys.argv.index("run") + 1]
    events = Path(config.data_dir) / "events"

    def event(what):
        with events.open("a") as out:
            out.write(f"{what} {name}\\n")

    port = {
        "statesvc": config.statesvc_port, "scheduler": config.scheduler_port,
        "nodeagent": config.podmgr_port, "gateway": config.gateway_port,
    }[name]

    def stop(*_):
        event("stop")
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    if (Path(config.data_dir) / f"break-{name}").exists():
        print("the reason why it broke", flush=True)
        return 7
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", str(events)])
    event("start")
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler, bind_and_activate=False)
    if name == "gateway":
        server.socket.close()
        server.socket = socket.socket(fileno=config.listen_fd)
    else:
        server.server_bind()
        server.server_activate()
    server.serve_forever()
"""
SERVICES = ("statesvc", "scheduler", "nodeagent", "gateway")
DEADLINE_S = 90.0  # a machine full of tests takes many seconds to start an interpreter


def eventually(check: Callable[[], Any], seconds: float = DEADLINE_S) -> Any:
    """The first true value of `check`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := check():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {check()!r}")


def mentioning(text: str) -> list[int]:
    """Processes whose command line mentions `text`, this one and zombies left out."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return [pid for pid in found if processes.start_ticks(pid) is not None]


class Up:
    """An `inferx up` of stand-in services in a folder of its own."""

    def __init__(self, base: Path) -> None:
        (base / "lib" / "services").mkdir(parents=True)
        (base / "lib" / "services" / "__init__.py").touch()
        for name in SERVICES:
            (base / "lib" / "services" / f"{name}.py").write_text(STAND_IN)
        self.base, self.folder = base, base / "data"
        self.port = free_port()
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Starts it; its output is the process's stderr."""
        path = os.pathsep.join((str(self.base / "lib"), str(ROOT / "python")))
        command = [sys.executable, "-m", "inferx", "up", "--dir", str(self.folder)]
        process = subprocess.Popen(
            [*command, "--port", str(self.port), "--gpus", "1x1000", *options],
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True,
            cwd=self.base,
        )  # fmt: skip
        self.started.append(process)
        return process

    def ready(self, process: subprocess.Popen[str]) -> str:
        """Its output up to the line that says that it is ready."""
        assert process.stderr is not None
        seen = ""
        for line in process.stderr:
            seen += line
            if "ready after" in line and line.startswith("inferx: ready"):
                return seen
        raise AssertionError(f"ended with {process.wait()}: {seen}")

    def state(self) -> dict[str, Any]:
        """up.json."""
        found: dict[str, Any] = json.loads((self.folder / "up.json").read_text())
        return found

    def events(self) -> list[str]:
        """What the services noted, in order."""
        return (self.folder / "events").read_text().splitlines()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path)
    yield running
    for process in running.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE_S)
        elif process.stderr is not None:
            process.stderr.close()
    # What the services of a killed supervisor had started is nobody's any more.
    for left in mentioning(str(tmp_path)):
        os.kill(left, signal.SIGKILL)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and the rest of the output."""
    _, output = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def test_starts_in_order_stops_in_order_and_leaves_nothing(platform: Up) -> None:
    process = platform.start()
    output = platform.ready(process)
    assert f"http://127.0.0.1:{platform.port}" in output
    assert "1 simulated GPUs of 1000 MB" in output
    state = platform.state()
    assert state["pid"] == process.pid
    assert tuple(state["pids"]) == SERVICES
    assert platform.events()[0] == "start statesvc"
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 0, output
    stopped = [line.split()[1] for line in platform.events() if line.startswith("stop")]
    assert stopped == ["gateway", "scheduler", "nodeagent", "statesvc"]
    assert mentioning(str(platform.folder)) == []
    assert not (platform.folder / "up.json").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_a_killed_service_comes_back(platform: Up, service: str) -> None:
    process = platform.start()
    platform.ready(process)
    killed = platform.state()["pids"][service]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: platform.events().count(f"start {service}") == 2)
    assert platform.state()["pids"][service] != killed
    # What the killed process had started is gone with it; only the new one's is there.
    eventually(lambda: len(mentioning(str(platform.folder / "events"))) == len(SERVICES))
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 0
    assert f"{service} (process {killed}) was killed by SIGKILL; starting it again" in output


def test_interrupted_while_it_starts_it_leaves_nothing(platform: Up) -> None:
    process = platform.start()
    assert process.stderr is not None
    while "statesvc is up" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 0, output
    assert "Traceback" not in output
    assert mentioning(str(platform.folder)) == []


def test_a_second_one_in_the_same_folder_is_refused(platform: Up) -> None:
    process = platform.start()
    platform.ready(process)
    code, output = finish(platform.start())
    assert code == 1
    assert f"runs in {platform.folder} already" in output
    assert f"process {process.pid}" in output
    assert f"http://127.0.0.1:{platform.port}" in output
    assert platform.state()["pid"] == process.pid


def test_a_taken_port_is_named_with_its_holder(platform: Up) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", platform.port))
        holder.listen()
        code, output = finish(platform.start())
    assert code == 1
    assert f"port {platform.port} is taken by process {os.getpid()}" in output
    assert "--port" in output
    assert not (platform.folder / "events").exists(), "a service was started"


def test_a_service_that_keeps_failing_ends_it_with_its_log(platform: Up) -> None:
    platform.folder.mkdir()
    (platform.folder / "break-scheduler").touch()
    code, output = finish(platform.start())
    assert code == 1
    assert "scheduler failed 4 times in a row, last ended with exit code 7" in output
    assert "the reason why it broke" in output
    assert "Traceback" not in output
    assert mentioning(str(platform.folder)) == []


def test_services_end_with_a_killed_supervisor_and_the_next_one_starts(platform: Up) -> None:
    first = platform.start()
    platform.ready(first)
    old = platform.state()
    first.kill()
    finish(first)
    second = platform.start()
    platform.ready(second)
    assert not any(
        processes.is_same(pid, old["start_ticks"][name]) for name, pid in old["pids"].items()
    )
    assert platform.state()["pid"] == second.pid


def test_a_stuck_leftover_is_ended_by_the_next_start(platform: Up) -> None:
    first = platform.start()
    platform.ready(first)
    old = platform.state()
    stuck = old["pids"]["gateway"]
    os.kill(stuck, signal.SIGSTOP)
    first.kill()
    finish(first)
    second = platform.start()
    output = platform.ready(second)
    assert not processes.is_same(stuck, old["start_ticks"]["gateway"])
    assert f"ending gateway (process {stuck}), left over" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "many"], "--gpus many: expected auto, real, or COUNTxMB"),
        (["--gpus", "0x100"], "--gpus 0x100"),
        (["--port", "70000"], "--port 70000: expected a port from 1 to 65535"),
    ],
)
def test_wrong_options_are_named(platform: Up, options: list[str], words: str) -> None:
    code, output = finish(platform.start(*options))
    assert code == 1
    assert words in output
    assert not platform.folder.exists()


def test_an_engine_that_is_not_there_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.ENGINE_SOCKETS, "docker", tmp_path / "docker.sock")
    with pytest.raises(ConfigError, match=r"--runtime docker: .*docker.sock: No such file.* start"):
        settings.check_runtime("docker")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "docker.sock"))
        engine.listen()
        settings.check_runtime("docker")
    settings.check_runtime("process")
