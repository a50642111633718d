"""A service of a running platform is killed: objects and workers stay, the next call works.

Must never wait for a fixed time; the next call itself is what is waited for.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from inferx.up import processes

from .conftest import Platform, eventually, function, running_platform

pytestmark = pytest.mark.xdist_group("faults")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("faults") / "inferx"
    with running_platform(folder, "--gpus", "1x24000", "--idle-park-ms", "500") as running:
        running.start_namespace()
        running.apply(function("kept"))
        assert running.call("kept", "pid").status_code == 200
        yield running
        pids = [*running.children().values(), running.call("kept", "pid").json()["pid"]]
        # Whatever the agent's own fate, its workers end with the platform.
        os.kill(running.children()["nodeagent"], signal.SIGKILL)
    assert [pid for pid in pids if processes.start_ticks(pid) is not None] == []
    assert not list(folder.glob("*.sock"))


@pytest.mark.parametrize("service", ["statesvc", "scheduler", "nodeagent", "gateway"])
def test_a_killed_service_comes_back_and_the_next_call_works(
    platform: Platform, service: str
) -> None:
    before = platform.call("kept", "pid").json()["pid"]
    killed = platform.children()[service]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: platform.children()[service] != killed, what=f"{service} runs again")
    eventually(lambda: platform.client.get("/readyz").status_code == 200, what="ready again")
    answer = platform.call("kept", "pid")
    assert answer.status_code == 200, answer.text
    assert answer.json()["pid"] == before, "the worker was started again"
    # Reading objects needs the state service itself, which may still be starting.
    route = "/object/function/public/test/kept/"
    eventually(lambda: platform.client.get(route).status_code == 200, what="the object is there")
    assert f"{service} (process {killed}) was killed by SIGKILL" in platform.output.read_text()


def test_an_applied_object_after_the_state_service_was_killed(platform: Platform) -> None:
    killed = platform.children()["statesvc"]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: platform.children()["statesvc"] != killed, what="it runs again")

    def applied() -> bool:
        route = "/object/function/public/test/later/"
        if platform.client.get(route).status_code == 200:
            return True
        return platform.client.put("/object/", json=function("later")).status_code == 201

    eventually(applied, what="a function is created")
    eventually(lambda: platform.call("later", "pid").status_code == 200, what="it is called")


def test_another_gateway_takes_over_under_load_and_no_call_fails(platform: Platform) -> None:
    assert platform.call("kept", "pid").status_code == 200
    stop = threading.Event()

    def call_until_stopped() -> list[str]:
        wrong = []
        with httpx.Client(base_url=platform.client.base_url, timeout=60, trust_env=False) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/funccall/public/test/kept/pid", json={})
                    if answer.status_code != 200:
                        wrong.append(answer.text)
                except httpx.HTTPError as error:
                    wrong.append(repr(error))
        return wrong

    replaced = platform.children()["gateway"]
    with ThreadPoolExecutor(4) as threads:
        callers = [threads.submit(call_until_stopped) for _ in range(4)]
        os.kill(platform.process.pid, signal.SIGUSR1)
        said = "the other gateway has taken over"
        try:
            eventually(lambda: said in platform.output.read_text(), 60.0, said)
        finally:
            stop.set()
    assert [wrong for caller in callers for wrong in caller.result()] == []
    assert platform.children()["gateway"] != replaced
    assert platform.call("kept", "pid").status_code == 200
