"""The platform under load: nothing fails, nothing grows, and a gateway that stops fails nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from bench import soak

from .conftest import ROOT, Platform, eventually, function, start_platform

SOAK_SECONDS = 45
TAKEOVER_SECONDS = 25
STREAMS, TOKENS, TOKEN_MS = 16, 60, 50


@pytest.mark.xdist_group("soak")
def test_mixed_load_fails_nothing_and_leaves_memory_and_descriptors_flat() -> None:
    command = [sys.executable, str(ROOT / "bench" / "soak.py"), "--seconds", str(SOAK_SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(params=["rust", "granian"])
def platform(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("load") / "inferx"
    running = start_platform(folder, "--gpus", "1x1000", "--listener", request.param)
    running.start_namespace()
    running.apply(function("f", scalein_timeout=60.0))
    assert running.call("f", "pid").status_code == 200
    yield running
    assert running.stop() == 0, running.output.read_text()


def read_stream(url: str, started: threading.Barrier) -> list[str]:
    with httpx.stream("GET", url, timeout=60.0) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        first = next(lines)
        started.wait(30.0)
        return [line for line in (first, *lines) if line]


@pytest.mark.xdist_group("load")
def test_a_gateway_that_is_terminated_finishes_what_it_took(platform: Platform) -> None:
    """SIGTERM under load: all streams finish, no call that was accepted fails."""
    base = f"{platform.url}/funccall/public/test/f"
    started = threading.Barrier(STREAMS + 1)
    refused = threading.Event()

    answered: list[int] = []

    def call_until_refused() -> None:
        while not refused.is_set():
            try:
                answer = httpx.get(f"{base}/wait?ms=5", timeout=60.0)
            except (httpx.ConnectError, httpx.ReadError):
                # Not accepted any more (the system resets what still waits to be accepted):
                # whoever asks asks the next gateway.
                refused.set()
                return
            assert answer.status_code == 200, answer.text
            answered.append(answer.status_code)

    gateway = platform.children()["gateway"]
    with ThreadPoolExecutor(STREAMS + 4) as pool:
        url = f"{base}/stream?n={TOKENS}&ms={TOKEN_MS}"
        streams = [pool.submit(read_stream, url, started) for _ in range(STREAMS)]
        started.wait(30.0)
        callers = [pool.submit(call_until_refused) for _ in range(4)]
        eventually(lambda: len(answered) >= 8, what="the load runs")
        os.kill(gateway, signal.SIGTERM)
        for stream in streams:
            assert stream.result(60.0) == [f"data: {number}" for number in range(TOKENS)]
        for caller in callers:
            caller.result(60.0)
    eventually(lambda: platform.children()["gateway"] != gateway, 60.0, "a new gateway")
    eventually(lambda: platform.call("f", "pid").status_code == 200, 60.0, "it serves")
    assert "ended with exit code 0" in platform.output.read_text()


@pytest.mark.xdist_group("load")
def test_another_gateway_takes_over_under_load_and_no_call_fails(tmp_path: Path) -> None:
    platform = start_platform(tmp_path / "inferx", "--gpus", "3x1000")
    try:
        soak.deploy(platform)
        running = soak.load(platform, TAKEOVER_SECONDS, users=8)
        gateway = platform.children()["gateway"]
        eventually(lambda: platform.metric("inferx_calls_total") > 50, what="the load runs")
        platform.process.send_signal(signal.SIGUSR1)
        eventually(lambda: "has taken over" in platform.output.read_text(), 90.0, "a take-over")
        assert platform.children()["gateway"] != gateway
        assert running.poll() is None, "the load still runs"
        output, errors = running.communicate(timeout=120)
    finally:
        assert platform.stop() == 0, platform.output.read_text()
    requests, failed = soak.totals(output)
    assert requests > 100
    assert failed == 0, errors
