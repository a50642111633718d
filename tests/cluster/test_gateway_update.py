"""Gateways are replaced one by one under load, as a Deployment does it, and no call is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.helpers.ports import free_port

from .conftest import Platform, eventually, function

pytestmark = pytest.mark.xdist_group("update")
CALLERS = 6
CHUNKS = 10
ROUTE = f"/funccall/public/test/updated/stream?n={CHUNKS}&ms=30"


@dataclass
class OwnGateway:
    """One more gateway of a running platform."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def ready(self) -> bool:
        return httpx.get(f"{self.url}/readyz").status_code == 200


@pytest.fixture
def gateways(platform: Platform, tmp_path: Path) -> Iterator[list[OwnGateway]]:
    """Three of them; what is left running is killed."""
    started = []
    for number in range(3):
        folder, port = tmp_path / str(number), free_port()
        folder.mkdir()
        document = json.loads((platform.folder / "node.json").read_text())
        document |= {"gatewayPort": port, "dataDir": str(folder), "metricsPort": 0}
        (folder / "node.json").write_text(json.dumps(document))
        command = [sys.executable, "-m", "inferx", "run", "gateway", "--config"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, str(folder / "node.json")], stdout=log, stderr=log, env=os.environ
            )
        started.append(OwnGateway(f"http://127.0.0.1:{port}", process, folder / "log"))
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


class Load:
    """Callers that stream through the gateway that is in the rotation when each call begins."""

    def __init__(self) -> None:
        self.rotation = ""
        self.done = threading.Event()
        self.failures: list[str] = []
        self.calls: Counter[str] = Counter()
        self.beginning: Counter[str] = Counter()
        """Calls that chose a gateway and have no answer's head from it yet."""
        self._lock = threading.Lock()

    def call(self) -> None:
        while not self.done.is_set():
            with self._lock:
                url = self.rotation
                self.beginning[url] += 1
            begun = False
            try:
                with httpx.stream("GET", f"{url}{ROUTE}", timeout=60) as answer:
                    begun = self._has_begun(url)
                    answer.read()
                assert answer.status_code == 200, answer.text
                assert answer.text.count("data: ") == CHUNKS, answer.text
                with self._lock:
                    self.calls[url] += 1
            except (httpx.HTTPError, AssertionError) as error:
                self.failures.append(f"{url}: {error!r}")
                begun = begun or self._has_begun(url)

    def _has_begun(self, url: str) -> bool:
        with self._lock:
            self.beginning[url] -= 1
        return True

    def leave(self, old: OwnGateway, new: OwnGateway) -> None:
        """New calls go to `new`; returns when the last one has begun at `old`, and may run on."""
        with self._lock:
            self.rotation = new.url
        eventually(lambda: self.beginning[old.url] == 0, 60, "nobody is on the way to the old one")

    def wait(self, gateway: OwnGateway, more: int) -> None:
        """Until so many more calls have gone through `gateway`."""
        wanted = self.calls[gateway.url] + more
        eventually(lambda: self.calls[gateway.url] >= wanted, 60, f"calls ({self.failures})")


def test_a_rolling_update_loses_no_call(platform: Platform, gateways: list[OwnGateway]) -> None:
    """The new one is ready before the old one leaves the rotation; then the old one is stopped."""
    platform.apply(function("updated"))
    assert platform.call("updated", "pid").status_code == 200
    for gateway in gateways:
        eventually(gateway.ready, 60, "another gateway is ready")
    load = Load()
    load.rotation = gateways[0].url
    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(load.call) for _ in range(CALLERS)]
        try:
            for old, new in pairwise(gateways):
                load.wait(old, 2 * CALLERS)
                load.leave(old, new)
                old.process.send_signal(signal.SIGTERM)
                load.wait(new, 2 * CALLERS)
                assert old.process.wait(60) == 0, old.log.read_text()
        finally:
            load.done.set()
        for caller in callers:
            caller.result()
    assert load.failures == []
    assert load.calls.keys() == {gateway.url for gateway in gateways}
