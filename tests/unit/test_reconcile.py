"""Store, agents and core made to tell different stories, and put right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferx.domain import codec, nodeconfig
from inferx.domain.objects import GpuDevice, Node, NodeResources
from inferx.errors import BadRequest, NoCapacity, StartFailed
from inferx.rpc import client, convert, ixmeta_pb2
from inferx.scheduler import reconcile
from inferx.scheduler.intents import EPOCH_ANNOTATION
from tests.helpers.ports import free_ports
from tests.helpers.state_client import Client, until
from tests.unit.test_scheduler_service import Cluster


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    for name, value in (("EVERY_S", 0.02), ("UNKNOWN_GRACE_S", 0.1), ("MISSING_GRACE_S", 0.1)):
        monkeypatch.setattr(reconcile, name, value)
    monkeypatch.setattr(reconcile, "AUDIT_EVERY_S", 0.05)
    state, port = free_ports(2)
    config = nodeconfig.read_config(
        {
            "statSvcPort": state,
            "schedulerPort": port,
            "dataDir": str(tmp_path),
            "idleParkMs": 60_000,
        }
    )
    running = Cluster(config)
    await running.start()
    yield running
    await running.stop()


async def stored(cluster: Cluster) -> dict[str, Any]:
    request = ixmeta_pb2.ListRequestMessage(obj_type="pod")
    answer = await client.call(cluster.state.List, request)
    return {obj.name: convert.from_proto(obj) for obj in answer.objs}


async def eventually(cluster: Cluster, wanted: dict[str, str]) -> dict[str, Any]:
    """The pods of the store, once they are in these states."""
    async with asyncio.timeout(20):
        while True:
            pods = await stored(cluster)
            if {name: pod.spec.status.state for name, pod in pods.items()} == wanted:
                return pods
            await asyncio.sleep(0.01)


def stranger(state: str = "Ready") -> dict[str, Any]:
    """A pod as an agent shows it."""
    alloc = {"CPU": 1, "Mem": 1, "GPU": {"vRam": 100, "contextOverhead": 0, "devices": [0]}}
    spec = {"funcname": "f", "fprevision": 1, "node": "n1", "alloc_resources": alloc}
    return {
        "type": "pod", "tenant": "t", "namespace": "n", "name": "stranger0001",
        "object": {"spec": spec, "status": {"state": state}},
    }  # fmt: skip


async def test_a_pod_is_recorded_before_its_agent_hears_of_it(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    asking = asyncio.create_task(cluster.lease("f"))
    await until(lambda: bool(cluster.agent.asked))
    pods = await stored(cluster)
    (pod_id,) = pods
    assert cluster.agent.asked == [("create", pod_id)]
    assert pods[pod_id].spec.node == "n1"
    assert pods[pod_id].meta.annotations[EPOCH_ANNOTATION] == str(cluster.scheduler.epoch)
    cluster.agent.gate.set()
    await asking


async def test_an_ended_pod_is_forgotten_and_a_failed_one_is_remembered(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f")
    assert list(await stored(cluster)) == [lease.id]
    cluster.scheduler.brain.kill(lease.id)
    await eventually(cluster, {})
    cluster.agent.failure = StartFailed("the weights are missing")
    with pytest.raises(StartFailed):
        await cluster.lease("f")
    failed = [pod_id for _, pod_id in cluster.agent.asked if pod_id != lease.id]
    # Its agent does not show it: the order's failure was all there was of it.
    await until(lambda: not cluster.scheduler.brain.pods())
    assert failed
    await eventually(cluster, {})


async def test_a_pod_that_its_agent_lost_is_failed_and_released(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f")
    await cluster.stop_scheduler()
    cluster.agent.forget(lease.id)
    await cluster.start_scheduler()
    await until(lambda: not cluster.scheduler.brain.pods())
    await eventually(cluster, {})
    again = await cluster.lease("f")
    assert again.id != lease.id


async def test_a_pod_that_nobody_ordered_is_never_leased_and_ends(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent._pods["stranger0001"] = stranger()
    cluster.agent._show("stranger0001")
    lease = await cluster.lease("f")
    assert lease.id != "stranger0001"
    await until(lambda: ("terminate", "stranger0001") in cluster.agent.asked)
    assert ("terminate", lease.id) not in cluster.agent.asked


async def test_a_node_whose_memory_does_not_add_up_gets_nothing(cluster: Cluster) -> None:
    await cluster.function("f")
    gpus = (GpuDevice(0, "A", 24_000), GpuDevice(1, "A", 24_000))
    resources = NodeResources(8_000, 16_000, 0, gpus, 450, 1)
    node = Node("127.0.0.1", 1, 1, resources=resources, vram_used_mb=(500, 0))
    key = ("system", "system", "n1")
    cluster.agent.view.put(codec.new("node", key, node.to_raw()))
    reader = Client(cluster.scheduler.port)

    async def seen() -> list[str]:
        return await reader.names("node")

    async with asyncio.timeout(20):
        while await seen() != ["n1"]:  # noqa: ASYNC110 (another process's view has no event here)
            await asyncio.sleep(0.01)
    shown = convert.from_proto(await reader.get("node", key))
    assert shown.spec.state == "Quarantined"
    assert "GPU 0: 500 MB are taken, its pods account for 0" in shown.spec.reason
    with pytest.raises(NoCapacity):
        await cluster.lease("f", wait_ms=200)
    node = replace(node, vram_used_mb=(0, 0))
    cluster.agent.view.put(codec.new("node", key, node.to_raw()))
    await cluster.lease("f")
    assert await seen() == []
    await reader.close()


def test_a_ledger_is_judged_by_the_pods_that_it_counts() -> None:
    pods = {"a": 7, "b": 9}
    assert reconcile.is_accounted(10, pods, None)
    assert not reconcile.is_accounted(8, pods, None), "b has changed since"
    assert not reconcile.is_accounted(8, pods, {"a": 7, "b": 6})
    assert reconcile.is_accounted(8, pods, dict(pods)), "long enough ago"
    assert reconcile.is_accounted(1, {}, None)


async def test_a_record_that_cannot_be_written_holds_up_no_other(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("f", "g"):
        await cluster.function(name)
    stuck, other = await cluster.lease("f"), await cluster.lease("g")
    intents = cluster.scheduler._intents
    ended, faults = intents.ended, iter([ValueError("this test says so")])

    async def refuse(obj: Any) -> None:
        for fault in faults:
            raise fault  # even that does not end the rounds
        if obj.meta.name == stuck.id:
            raise BadRequest("this test says so")
        await ended(obj)

    monkeypatch.setattr(intents, "ended", refuse)
    for lease in (stuck, other):
        cluster.scheduler.brain.kill(lease.id)
    async with asyncio.timeout(20):
        while True:
            if list(await stored(cluster)) == [stuck.id]:
                return
            await asyncio.sleep(0.01)
