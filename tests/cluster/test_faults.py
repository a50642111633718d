"""Wrong starts and processes that die: nothing is lost, and each message says what to do."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.ports import free_port

from .conftest import ROOT, START_SECONDS, Platform, eventually, function, start_platform

pytestmark = pytest.mark.xdist_group("faults")


def up(folder: Path, port: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferx", "up", "--dir", str(folder), "--port", str(port)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=START_SECONDS, check=False
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_port_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = up(tmp_path / "inferx", port)
    assert ended.returncode != 0
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_second_up_in_the_same_folder(platform: Platform) -> None:
    ended = up(platform.folder, free_port())
    assert ended.returncode != 0
    assert str(platform.process.pid) in ended.stderr
    assert platform.url in ended.stderr


def test_up_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "inferx"
    running = start_platform(folder, "--gpus", "1x24000")
    running.start_namespace()
    running.apply(function("here"))
    worker = running.call("here", "pid").json()["pid"]
    pids = [worker, *running.children().values()]
    assert all(alive(pid) for pid in pids)
    assert running.stop() == 0, running.output.read_text()
    assert not [pid for pid in pids if alive(pid)]
    assert not list(folder.rglob("*.sock"))

    # The same folder again: the objects are still there.
    running = start_platform(folder, "--gpus", "1x24000")
    assert running.call("here", "pid").status_code == 200
    assert running.stop() == 0, running.output.read_text()


def test_killed_supervisor_leaves_a_folder_that_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "inferx"
    running = start_platform(folder, "--gpus", "1x24000")
    running.start_namespace()
    running.apply(function("here"))
    worker = running.call("here", "pid").json()["pid"]
    services = list(running.children().values())
    running.client.close()
    running.process.kill()
    running.process.wait()
    eventually(lambda: not any(alive(pid) for pid in services), what="the services end with it")

    running = start_platform(folder, "--gpus", "1x24000")
    assert running.call("here", "pid").status_code == 200
    assert running.stop() == 0, running.output.read_text()
    assert not alive(worker)
