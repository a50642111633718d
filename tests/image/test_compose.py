"""Three nodes in containers with real etcd and PostgreSQL: the demo, crashes, updates, drains."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cluster import GATEWAYS, OURS, Cluster, eventually
from .conftest import ETCD, POSTGRES
from .engine import Engine

RECOVERY_SECONDS = 120.0
LEAVING_SECONDS = 2.0  # what the manifests' preStop gives a load balancer, shortened


@contextmanager
def started(engine: Engine, version: str, folder: Path, *more_files: str) -> Iterator[Cluster]:
    names = {
        "INFERX_IMAGE": f"inferx/inferx-demo:{version}",
        "ETCD_IMAGE": ETCD,
        "POSTGRES_IMAGE": POSTGRES,
        "DOCKER_SOCKET": str(engine.folder / "sock"),
    }
    running = Cluster(engine, folder, names, *more_files)
    try:
        for gateway in GATEWAYS:
            eventually(lambda gateway=gateway: running.ready(gateway), 120, f"{gateway} is ready")
        running.apply()
        yield running
    finally:
        running.compose("down", "-v", "-t", "45")
        running.client.close()


@pytest.fixture(scope="module")
def cluster(
    engine: Engine, images: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Workers are containers of the Docker Engine; none of them is left at the end."""
    folder = tmp_path_factory.mktemp("cluster")
    with started(engine, images, folder, "docker-compose.docker.yml") as running:
        yield running
    assert engine.docker("ps", "-aq", "--filter", "label=inferx.pod") == ""


def test_a_killed_worker_is_replaced(cluster: Cluster) -> None:
    assert len(cluster.embed("gateway-1")) == 384
    workers = cluster.engine.docker("ps", "-q", "--filter", "label=inferx.pod").split()
    assert len(workers) == 1
    cluster.engine.docker("kill", workers[0])
    eventually(lambda: len(cluster.embed("gateway-1")) == 384, RECOVERY_SECONDS, "another worker")


def test_the_demo_is_served_through_both_gateways(cluster: Cluster) -> None:
    vectors = [cluster.embed(gateway) for gateway in GATEWAYS]
    assert len(vectors[0]) == 384
    assert vectors[0] == pytest.approx(vectors[1], abs=1e-5)
    nodes = cluster.client.get(f"{GATEWAYS['gateway-1']}/nodes/").json()
    assert {node["name"] for node in nodes} == {"node-1", "node-2", "node-3"}


@pytest.mark.parametrize("service", [*OURS, "etcd", "postgres"])
def test_a_crash_of_any_container_is_survived(cluster: Cluster, service: str) -> None:
    """After the crash the demo answers again through both gateways, and the container is back."""
    name = cluster.name(service)
    cluster.engine.kill_like_a_crash(name)
    for gateway in GATEWAYS:
        eventually(
            lambda gateway=gateway: len(cluster.embed(gateway)) == 384,
            RECOVERY_SECONDS,
            f"{gateway} serves after {service} crashed",
        )
    state = ("inspect", "-f", "{{.State.Running}} {{.RestartCount}}", name)
    eventually(
        lambda: cluster.engine.docker(*state).startswith("true"), RECOVERY_SECONDS, "it is back"
    )
    assert int(cluster.engine.docker(*state).split()[1]) >= 1


def test_a_rolling_update_of_the_gateways_loses_no_call(cluster: Cluster) -> None:
    """Callers behind a balancer that learns of endpoints as a Service does: before the stop."""
    rotation = set(GATEWAYS)
    done, failures, counts = threading.Event(), [], dict.fromkeys(GATEWAYS, 0)

    def call() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            gateway = sorted(rotation)[turn % len(rotation)]
            try:
                assert len(cluster.stream(gateway, 10).split()) == 10
                counts[gateway] += 1
            except Exception as error:
                failures.append(f"{gateway}: {error!r}")

    assert cluster.stream("gateway-1", 1)
    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call) for _ in range(8)]
        try:
            for gateway in GATEWAYS:
                rotation.discard(gateway)
                time.sleep(LEAVING_SECONDS)  # the delay under test, not a wait for something
                cluster.compose("up", "-d", "--no-deps", "--force-recreate", "-t", "45", gateway)
                eventually(lambda gateway=gateway: cluster.ready(gateway), 60, f"{gateway} is back")
                rotation.add(gateway)
        finally:
            done.set()
        for caller in callers:
            caller.result()
    assert failures == []
    assert min(counts.values()) > 10


def test_a_stop_drains(cluster: Cluster) -> None:
    """A stream that runs when its gateway is stopped ends as it should, and the exit is orderly."""
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(cluster.stream, "gateway-2", 50)
        busy = "inferx_function_active"
        url = f"{GATEWAYS['gateway-2']}/metrics"

        def streaming() -> bool:
            lines = cluster.client.get(url).text.splitlines()
            return any(one.startswith(busy) and one.endswith(" 1.0") for one in lines)

        eventually(streaming, 20, "the stream runs")
        cluster.compose("stop", "-t", "45", "gateway-2")
        assert stream.result().split() == [str(number) for number in range(50)]
    services = ("node-1", "node-2", "node-3", "scheduler-1", "scheduler-2", "gateway-1", "statesvc")
    cluster.compose("stop", "-t", "45", *services)
    for service in OURS:
        code = cluster.engine.docker("inspect", "-f", "{{.State.ExitCode}}", cluster.name(service))
        assert code == "0", f"{service}: {cluster.logs()}"
