"""Several gateways side by side: one pod's slots are shared, none is promised twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.helpers.ports import free_port

from .conftest import Platform, eventually, function, running_platform

pytestmark = pytest.mark.xdist_group("gateways")
PARALLEL = 4


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("gateways") / "inferx"
    with running_platform(folder, "--gpus", "1x1000") as running:
        running.start_namespace()
        yield running


@pytest.fixture(scope="module")
def other(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a second gateway of the same platform."""
    port, folder = free_port(), tmp_path_factory.mktemp("other")
    command = [sys.executable, "-m", "inferx", "run", "gateway", "--config",
               str(platform.folder / "node.json")]  # fmt: skip
    environment = {**os.environ, "GATEWAY_PORT": str(port), "INFERX_DATA_DIR": str(folder)}
    with Path(folder, "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, Path(folder, "log").read_text()
        return httpx.get(f"{url}/readyz").status_code == 200

    try:
        eventually(ready, 60.0, "the second gateway is ready")
        yield url
    finally:
        process.terminate()
        assert process.wait(60) == 0, Path(folder, "log").read_text()


def call(url: str, name: str, path: str) -> httpx.Response:
    return httpx.get(f"{url}/funccall/public/test/{name}/{path}", timeout=60.0)


def test_two_gateways_share_the_slots_of_one_pod(platform: Platform, other: str) -> None:
    policy = {"parallel": PARALLEL, "scalein_timeout": 0.2, "queue_timeout": 30.0}
    platform.apply(function("shared", "--start-seconds", "1", **policy))
    urls = [platform.url, other] * PARALLEL
    together = threading.Barrier(len(urls))

    def caller(url: str) -> list[httpx.Response]:
        together.wait(30.0)
        return [call(url, "shared", "wait?ms=20") for _ in range(15)]

    with ThreadPoolExecutor(len(urls)) as pool:
        answers = [answer for answers in pool.map(caller, urls) for answer in answers]
    assert {answer.status_code for answer in answers} == {200}, [a.text for a in answers][:3]
    assert len({answer.json()["pid"] for answer in answers}) == 1, "one pod served both"
    assert len(platform.pods("shared")) == 1
    assert call(other, "shared", "pid").json()["max"] <= PARALLEL, "no slot was promised twice"


def stream_until(stop: threading.Event, url: str, name: str) -> int:
    """Streams, one after the other; returns how many."""
    done = 0
    while not stop.is_set():
        answer = call(url, name, "stream?n=20&ms=10")
        assert answer.text.count("data: ") == 20, answer.text
        done += 1
    return done


@pytest.mark.parametrize("parallel", [1, PARALLEL])
def test_a_busy_gateway_leaves_the_other_its_share(
    platform: Platform, other: str, parallel: int
) -> None:
    """One keeps all slots busy for good; the other's calls get their share all the same."""
    name = f"fair{parallel}"
    platform.apply(function(name, parallel=parallel, scalein_timeout=1.0, queue_timeout=60.0))
    assert call(platform.url, name, "pid").status_code == 200
    stop = threading.Event()
    with ThreadPoolExecutor(2 * parallel + 2) as pool:
        try:
            busy = [
                pool.submit(stream_until, stop, platform.url, name) for _ in range(2 * parallel)
            ]
            eventually(
                lambda: platform.metric("inferx_function_active", function=name) == parallel,
                what="all slots are busy",
            )
            both = pool.map(lambda _: call(other, name, "stream?n=20&ms=10"), range(2))
            assert {answer.status_code for answer in both} == {200}
        finally:
            stop.set()
        assert min(task.result(90.0) for task in busy) > 0
    assert len(platform.pods(name)) == 1
    assert call(other, name, "pid").json()["max"] <= parallel, "no slot was promised twice"


def test_what_one_gateway_gives_back_the_other_gets(platform: Platform, other: str) -> None:
    platform.apply(function("passed-on", parallel=1, scalein_timeout=0.1))
    first = call(platform.url, "passed-on", "pid")
    second = call(other, "passed-on", "pid")
    again = call(platform.url, "passed-on", "pid")
    assert [first.status_code, second.status_code, again.status_code] == [200] * 3
    assert first.json()["pid"] == second.json()["pid"] == again.json()["pid"]
