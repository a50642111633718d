"""The platform under load: a gateway that stops fails nobody.

That nothing grows under mixed load is watched beside all tests, by `scripts/test`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest

from bench import soak

from .conftest import Platform, eventually, function, running_platform, start_platform

LOAD_SECONDS_MAX = 600  # the load is ended when the gateways have come and gone
STREAMS, TOKENS, TOKEN_MS = 16, 60, 50
CALLERS = 8  # half of them over kept connections


@pytest.fixture(params=["rust", "granian"])
def platform(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("load") / "inferx"
    with running_platform(folder, "--gpus", "1x1000", "--listener", request.param) as running:
        running.start_namespace()
        running.apply(function("f", scalein_timeout=60.0))
        assert running.call("f", "pid").status_code == 200
        yield running


def read_stream(url: str, started: threading.Barrier) -> list[str]:
    with httpx.stream("GET", url, timeout=60.0) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        first = next(lines)
        started.wait(30.0)
        return [line for line in (first, *lines) if line]


def call_until_over(url: str, over: threading.Event, answered: list[int], *, keep: bool) -> None:
    """Calls, over one kept connection or each over its own; any failure is raised."""
    with httpx.Client(timeout=60.0, headers={} if keep else {"Connection": "close"}) as client:
        while not over.is_set():
            answer = client.get(url)
            assert answer.status_code == 200, answer.text
            answered.append(answer.status_code)


@pytest.mark.xdist_group("load")
def test_a_gateway_that_is_terminated_fails_nobody(platform: Platform) -> None:
    """SIGTERM under load: all streams finish, and the next gateway serves meanwhile on the same
    socket, so no call fails."""
    base = f"{platform.url}/funccall/public/test/f"
    started = threading.Barrier(STREAMS + 1)
    over = threading.Event()
    answered: list[int] = []
    gateway = platform.children()["gateway"]
    with ThreadPoolExecutor(STREAMS + CALLERS) as pool:
        url = f"{base}/stream?n={TOKENS}&ms={TOKEN_MS}"
        streams = [pool.submit(read_stream, url, started) for _ in range(STREAMS)]
        started.wait(30.0)
        callers = [
            pool.submit(call_until_over, f"{base}/wait?ms=5", over, answered, keep=number % 2 == 0)
            for number in range(CALLERS)
        ]
        try:
            eventually(lambda: len(answered) >= CALLERS, what="the load runs")
            os.kill(gateway, signal.SIGTERM)
            for stream in streams:
                assert stream.result(60.0) == [f"data: {number}" for number in range(TOKENS)]
            eventually(lambda: platform.children()["gateway"] != gateway, 60.0, "a new gateway")
            said = f"gateway (process {gateway}) ended with exit code 0"
            eventually(lambda: said in platform.output.read_text(), 60.0, said)
            served = len(answered)
            eventually(lambda: len(answered) > served + CALLERS, 60.0, "the next gateway serves")
        finally:
            over.set()
        for caller in callers:
            caller.result(60.0)


def _stopped(platform: Platform) -> None:
    assert platform.stop() == 0, platform.output.read_text()


def call_on_fresh_connections(url: str, over: threading.Event) -> int:
    """Calls, each on a connection of its own; any failure is raised."""
    done = 0
    while not over.is_set():
        answer = httpx.post(f"{url}/funccall/public/test/unary/echo", content=b"x", timeout=60.0)
        assert answer.status_code == 200, answer.text
        done += 1
    return done


def ask_on_one_connection(url: str, over: threading.Event) -> int:
    """Asks for an object again and again, as dashboards do; any failure is raised."""
    done = 0
    with httpx.Client(base_url=url, timeout=60.0) as client:
        while not over.is_set():
            answer = client.get("/object/function/public/test/unary/")
            assert answer.status_code == 200, answer.text
            done += 1
    return done


@pytest.mark.xdist_group("load")
@pytest.mark.parametrize("listener", ["rust", "granian"])
def test_gateways_come_and_go_under_load_and_no_call_fails(tmp_path: Path, listener: str) -> None:
    """SIGUSR1 asks for another gateway; SIGTERM to a gateway, twice, makes the next one start."""
    platform = start_platform(tmp_path / "inferx", "--gpus", "3x1000", "--listener", listener)
    over = threading.Event()

    def another_serves(before: int) -> bool:
        """By its own word, on a connection of its own."""
        serving = int(httpx.get(f"{platform.url}/readyz", timeout=60.0).headers["x-inferx-process"])
        return serving == platform.children()["gateway"] != before

    with ExitStack() as stack:
        stack.callback(lambda: _stopped(platform))
        soak.deploy(platform)
        running = stack.enter_context(soak.load(platform, LOAD_SECONDS_MAX, users=8))
        stack.callback(running.terminate)
        pool = stack.enter_context(ThreadPoolExecutor(3))
        stack.callback(over.set)
        others = [
            pool.submit(each, platform.url, over)
            for each in (call_on_fresh_connections, call_on_fresh_connections,
                         ask_on_one_connection)
        ]  # fmt: skip
        eventually(lambda: platform.metric("inferx_calls_total") > 50, 60.0, "the load runs")
        gateway = platform.children()["gateway"]
        platform.process.send_signal(signal.SIGUSR1)
        said = "has taken over"
        eventually(lambda: said in platform.output.read_text(), 90.0, said)
        for _ in range(2):
            eventually(partial(another_serves, gateway), 60.0, "another gateway serves")
            gateway = platform.children()["gateway"]
            os.kill(gateway, signal.SIGTERM)
        eventually(partial(another_serves, gateway), 60.0, "the last gateway serves")
        assert running.poll() is None, "the load still runs"
        running.terminate()
        running.wait(60)
        over.set()
        assert min(task.result(60.0) for task in others) > 0
        said = f"gateway (process {gateway}) ended with exit code 0"
        eventually(lambda: said in platform.output.read_text(), 60.0, said)
    requests, failed, errors = soak.totals(platform)
    assert requests > 100
    assert failed == 0, errors
