"""Probes of the real services: alive whatever happens to the others, ready only with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.conftest import eventually
from tests.cluster.etcd_server import EtcdServer
from tests.helpers.ports import free_port


@contextmanager
def running(service: str, folder: Path, **entries: Any) -> Iterator[str]:
    """`inferx run SERVICE`; yields the address of its probes."""
    port = free_port()
    path = folder / f"{service}.json"
    ports = ("gatewayPort", "statSvcPort", "schedulerPort", "podMgrPort", "qletStateSvcPort")
    document = {
        "dataDir": str(folder / service),
        "simulatedGPUs": {"count": 1, "vramMB": 1000},
        **{name: free_port() for name in ports},
        **entries,
        "metricsPort": port,
    }
    path.write_text(json.dumps(document))
    with (folder / f"{service}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferx", "run", service, "--config", str(path)],
            stdout=log, stderr=log, env={**os.environ, "INFERX_STOP_PODS": "1"},
        )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(60) == 0, (folder / f"{service}.log").read_text()


def status(url: str) -> int:
    return httpx.get(url, timeout=5).status_code


def test_the_state_service_is_ready_only_with_etcd(tmp_path: Path) -> None:
    server = EtcdServer(tmp_path)
    try:
        with running("statesvc", tmp_path, etcdAddrs=[server.address]) as url:
            eventually(lambda: status(f"{url}/readyz") == 200, what="ready")
            server.kill()
            eventually(lambda: status(f"{url}/readyz") == 503, what="not ready without etcd")
            assert httpx.get(f"{url}/readyz").json()["reason"]
            assert status(f"{url}/healthz") == 200
            assert "inferx_ready 0.0" in httpx.get(f"{url}/metrics").text
            server.start()
            eventually(lambda: status(f"{url}/readyz") == 200, 40, what="ready again")
    finally:
        server.kill()


def test_the_others_are_alive_and_wait_for_the_state_service(tmp_path: Path) -> None:
    state, scheduler = free_port(), free_port()
    where = {
        "stateSvcAddrs": [f"127.0.0.1:{state}"],
        "schedulerPort": scheduler,
        "schedulerAddr": f"127.0.0.1:{scheduler}",
    }
    with ExitStack() as stack:
        one, two, three = (
            stack.enter_context(running(service, tmp_path, **where))
            for service in ("scheduler", "nodeagent", "gateway")
        )
        for url in (one, two, three):
            eventually(lambda url=url: status(f"{url}/healthz") == 200, 60, what="alive")
            answer = httpx.get(f"{url}/readyz")
            assert answer.status_code == 503
            assert "waiting for" in answer.json()["reason"] or "starting" in answer.text
        with running("statesvc", tmp_path, **where, statSvcPort=state):
            for url in (one, two, three):
                eventually(lambda url=url: status(f"{url}/readyz") == 200, 60, what="ready")
            assert "inferx_gateway_requests_total" in httpx.get(f"{three}/metrics").text
            assert "inferx_scheduler_now" in httpx.get(f"{one}/metrics").text
            stack.close()  # a leader that loses the state service ends with an error, rightly
