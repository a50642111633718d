"""The scheduler over gRPC: a real state service below, a stand-in agent beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferx import statesvc
from inferx.config import NodeConfig
from inferx.domain import codec
from inferx.domain.nodeconfig import read_config
from inferx.errors import (
    FunctionNotFound,
    NoCapacity,
    NotFound,
    QueueTimeout,
    StaleLease,
    StartFailed,
)
from inferx.rpc import client, convert, ixmeta_pb2, ixmeta_pb2_grpc, na_pb2_grpc
from inferx.rpc import na_pb2 as pb
from inferx.scheduler import Scheduler
from inferx.scheduler.brain import TAKEOVER_MS
from tests.helpers.fake_agent import FakeAgent
from tests.helpers.ports import free_port
from tests.helpers.state_client import until

GATEWAY = 7


class Cluster:
    """A state service, an agent and a scheduler in this process."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.agent = FakeAgent()
        self.scheduler: Scheduler
        self.state: Any

    async def start(self) -> None:
        self._service = await statesvc.start(self.config)
        self._channel = client.channel(self.config.state_svc_addrs[0])
        stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self.state = stub(self._channel)
        await self.create("tenant", ("system", "system", "t"), {"spec": {}})
        await self.create("namespace", ("t", "system", "n"), {"spec": {}})
        self.agent.keeps_snapshots = True
        node = await self.agent.start()
        await self.create("node", ("system", "system", "n1"), node.to_raw())
        await self.start_scheduler()

    async def start_scheduler(self) -> None:
        self.scheduler = Scheduler(self.config)
        await self.scheduler.start()
        await self.scheduler.lead()
        self._gateway = client.channel(f"127.0.0.1:{self.scheduler.port}")
        stub: Any = na_pb2_grpc.SchedulerServiceStub
        self.gateway = stub(self._gateway)
        meta: Any = ixmeta_pb2_grpc.IxMetaServiceStub
        self.view = meta(self._gateway)

    async def stop_scheduler(self) -> None:
        await self._gateway.close(None)
        await self.scheduler.stop()

    async def stop(self) -> None:
        await self.stop_scheduler()
        await self.agent.stop()
        await self._channel.close(None)
        await self._service.stop()

    async def create(self, kind: str, key: tuple[str, str, str], raw: dict[str, Any]) -> int:
        obj = convert.to_proto(codec.new(kind, key, raw))
        answer = await client.call(self.state.Create, ixmeta_pb2.CreateRequestMessage(obj=obj))
        return int(answer.revision)

    async def replace(self, kind: str, key: tuple[str, str, str], raw: dict[str, Any]) -> None:
        get = ixmeta_pb2.GetRequestMessage(
            obj_type=kind, tenant=key[0], namespace=key[1], name=key[2]
        )
        known = await client.call(self.state.Get, get)
        obj = convert.to_proto(codec.new(kind, key, raw))
        request = ixmeta_pb2.UpdateRequestMessage(obj=obj, expect_rev=known.obj.revision)
        await client.call(self.state.Update, request)

    async def function(
        self, name: str, vram_mb: int = 14_000, tenant: str = "t", **policy: Any
    ) -> int:
        spec = {
            "image": "i",
            "resources": {
                "CPU": 100,
                "Mem": 200,
                "GPU": {"Type": "Any", "Count": 1, "vRam": vram_mb},
            },
            "policy": {"Obj": policy},
        }
        return await self.create("function", (tenant, "n", name), {"spec": spec})

    async def lease(
        self, name: str, request_id: str = "", wait_ms: int = 20_000, tenant: str = "t"
    ) -> Any:
        request = pb.LeaseWorkerReq(
            tenant=tenant,
            namespace="n",
            funcname=name,
            fprevision=1,
            gateway_id=GATEWAY,
            request_id=request_id,
            deadline_ms=wait_ms,
        )
        return await client.call(self.gateway.LeaseWorker, request, 30.0)

    async def give_back(self, lease: Any, failed: bool = False) -> None:
        request = pb.ReturnWorkerReq(lease_id=lease.lease_id, id=lease.id, failworker=failed)
        await client.call(self.gateway.ReturnWorker, request)

    async def snapshots(self) -> dict[str, dict[str, Any]]:
        """What is recorded of snapshots, by function."""
        request = ixmeta_pb2.ListRequestMessage(obj_type="snapshot")
        listed = await client.call(self.state.List, request)
        raws = [json.loads(obj.data) for obj in listed.objs]
        return {raw["spec"]["funcname"]: {**raw["spec"], **raw["status"]} for raw in raws}

    async def recorded(self, function: str, state: str) -> dict[str, Any]:
        """The function's snapshot, once it is recorded in that state."""
        async with asyncio.timeout(20):
            known: dict[str, Any] = {}
            while known.get("state") != state:
                known = (await self.snapshots()).get(function, {})
        return known

    async def pods(self) -> list[dict[str, Any]]:
        request = ixmeta_pb2.ListRequestMessage(obj_type="pod")
        answer = await client.call(self.view.List, request)
        return [json.loads(obj.data) for obj in answer.objs]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    config = read_config(
        {
            "statSvcPort": free_port(),
            "schedulerPort": free_port(),
            "dataDir": str(tmp_path),
            "idleParkMs": 50,
        }
    )
    running = Cluster(config)
    await running.start()
    yield running
    await running.stop()


async def test_cold_park_resume_and_what_people_see(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f", "r1")
    assert (lease.start, lease.slots, lease.hostport, lease.keepalive) == ("cold", 50, 7_000, False)
    assert lease.epoch == cluster.scheduler.epoch
    assert cluster.agent.epochs == {cluster.scheduler.epoch}
    again = await cluster.lease("f", "r1")
    assert (again.lease_id, again.id) == (lease.lease_id, lease.id)
    await cluster.give_back(lease)
    with pytest.raises(StaleLease):
        await cluster.give_back(lease)
    await until(lambda: ("park", lease.id) in cluster.agent.asked)
    second = await cluster.lease("f")
    assert (second.start, second.id) == ("resume", lease.id)

    states: list[str] = []
    async with asyncio.timeout(5):
        while states != ["Working"]:
            states = [pod["status"]["state"] for pod in await cluster.pods()]


async def test_a_lease_that_is_over_cannot_be_replayed(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f", "r1")
    brain = cluster.scheduler.brain
    worker = pb.WorkerId(id=lease.id, lease_id=lease.lease_id, slots=lease.slots)

    async def announced_by(gateway_id: int) -> list[str]:
        request = pb.ConnectReq(gateway_id=gateway_id, workers=[worker])
        answer = await client.call(cluster.gateway.ConnectScheduler, request)
        return list(answer.rejected_lease_ids)

    assert await announced_by(GATEWAY + 1) == [lease.lease_id], "a lease that another holds"
    await cluster.give_back(lease)
    for gateway_id in (GATEWAY, GATEWAY + 1):
        assert await announced_by(gateway_id) == [lease.lease_id]
    other = await cluster.lease("f", "r2")
    assert other.lease_id != lease.lease_id
    for failed in (False, True):
        with pytest.raises(StaleLease):
            await cluster.give_back(lease, failed)
    assert brain.stats()["leases"] == 1, "the lease that followed is still held"
    assert ("terminate", lease.id) not in cluster.agent.asked


async def test_a_burst_starts_one_pod(cluster: Cluster) -> None:
    await cluster.function("f", parallel=40)
    request = pb.LeaseWorkerReq(
        tenant="t", namespace="n", funcname="f", gateway_id=GATEWAY, slots=1, deadline_ms=9_000
    )
    leases = await asyncio.gather(
        *(client.call(cluster.gateway.LeaseWorker, request, 10.0) for _ in range(32))
    )
    assert len({lease.id for lease in leases}) == 1
    assert len({lease.lease_id for lease in leases}) == 32
    assert [verb for verb, _ in cluster.agent.asked] == ["create"]


async def test_refusals_say_why(cluster: Cluster) -> None:
    with pytest.raises(FunctionNotFound):
        await cluster.lease("nobody")
    await cluster.function("huge", vram_mb=90_000)
    with pytest.raises(NoCapacity, match="too_little_gpu_memory: 1"):
        await cluster.lease("huge")
    cluster.agent.failure = StartFailed("the weights are missing")
    await cluster.function("broken")
    for _ in range(2):
        with pytest.raises(StartFailed, match="the weights are missing"):
            await cluster.lease("broken")
    assert len(cluster.agent.asked) == 1, "a broken function backs off"


async def test_the_limit_of_pods_is_named(cluster: Cluster) -> None:
    await cluster.agent.stop()
    cluster.agent.max_pods = 1
    node = await cluster.agent.start()
    await cluster.replace("node", ("system", "system", "n1"), node.to_raw())
    await cluster.function("f")
    await cluster.function("g")
    await cluster.lease("f")
    with pytest.raises(NoCapacity, match="too_many_pods: 1"):
        await cluster.lease("g", wait_ms=300)


async def test_a_tenant_of_higher_priority_is_served_first(cluster: Cluster) -> None:
    limit = {"priority": 5, "weight": 2}
    await cluster.create("tenant", ("system", "system", "u"), {"spec": {"limit": limit}})
    await cluster.create("namespace", ("u", "system", "n"), {"spec": {}})
    for name, tenant in (("a", "t"), ("b", "t"), ("elder", "t"), ("urgent", "u")):
        await cluster.function(name, vram_mb=23_000, tenant=tenant)
    held = [await cluster.lease("a"), await cluster.lease("b")]  # both GPUs
    brain = cluster.scheduler.brain
    waits = []
    for name, tenant in (("elder", "t"), ("urgent", "u")):
        waits.append(asyncio.create_task(cluster.lease(name, tenant=tenant)))
        await until(lambda: brain.stats()["tickets"] == len(waits))
    await cluster.give_back(held[0])
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    elder, urgent = waits
    assert urgent.done()
    assert not elder.done()
    elder.cancel()


async def test_a_slow_start_ends_at_the_deadline(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    with pytest.raises(QueueTimeout, match="the worker is"):
        await cluster.lease("f", wait_ms=200)
    cluster.agent.gate.set()
    await cluster.lease("f")
    assert [verb for verb, _ in cluster.agent.asked] == ["create"], "the start went on meanwhile"


async def test_why_requests_wait_is_told_before_their_time_is_over(cluster: Cluster) -> None:
    for name in ("a", "b", "c"):
        await cluster.function(name, vram_mb=23_000)
    await cluster.lease("a")
    await cluster.lease("b")  # both GPUs
    waiting = asyncio.create_task(cluster.lease("c"))
    await until(lambda: cluster.scheduler.brain.stats()["tickets"] == 1)
    names = [pb.FunctionName(tenant="t", namespace="n", funcname=name) for name in "abcx"]
    request = pb.ExplainWaitReq(gateway_id=GATEWAY, functions=names)
    answer = await client.call(cluster.gateway.ExplainWait, request)
    (told,) = answer.reasons
    assert told.function.funcname == "c"
    assert "too_little_gpu_memory: 1" in told.reason
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_caller_that_leaves_takes_its_ticket_along(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    leaving = asyncio.create_task(cluster.lease("f"))
    brain = cluster.scheduler.brain
    await until(lambda: brain.stats()["tickets"] == 1 and cluster.agent.asked)
    leaving.cancel()
    await until(lambda: brain.stats()["tickets"] == 0)
    cluster.agent.gate.set()
    await until(lambda: ("park", cluster.agent.asked[0][1]) in cluster.agent.asked)
    assert brain.stats()["leases"] == 0


async def test_a_dead_pod_is_replaced(cluster: Cluster) -> None:
    await cluster.function("f")
    first = await cluster.lease("f")
    cluster.agent.forget(first.id)
    await until(lambda: not cluster.scheduler.brain.pods())
    second = await cluster.lease("f")
    assert (second.start, second.id != first.id) == ("cold", True)
    await cluster.give_back(second, failed=True)
    await until(lambda: ("terminate", second.id) in cluster.agent.asked)


async def test_a_new_scheduler_takes_over(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f")
    before = cluster.scheduler.epoch
    await cluster.create(
        "gateway", ("system", "system", "g7"), {"spec": {"gateway_id": str(GATEWAY)}}
    )
    await cluster.stop_scheduler()
    await cluster.start_scheduler()
    assert cluster.scheduler.epoch > before
    with pytest.raises(NotFound):
        await client.call(cluster.gateway.RefreshGateway, pb.RefreshGatewayReq(gateway_id=GATEWAY))
    worker = pb.WorkerId(id=lease.id, lease_id=lease.lease_id, slots=lease.slots)
    gone = pb.WorkerId(id="nothing", lease_id="5", slots=1)
    request = pb.ConnectReq(gateway_id=GATEWAY, workers=[worker, gone])
    answer = await client.call(cluster.gateway.ConnectScheduler, request)
    assert (answer.rejected_lease_ids, answer.epoch) == (["5"], cluster.scheduler.epoch)
    await client.call(cluster.gateway.RefreshGateway, pb.RefreshGatewayReq(gateway_id=GATEWAY))
    assert cluster.scheduler.brain.stats()["leases"] == 1
    await cluster.give_back(lease)
    again = await cluster.lease("f")
    assert (again.id, again.hostport) == (lease.id, 7_000)
    assert [verb for verb, _ in cluster.agent.asked if verb != "park"][:1] == ["create"]


async def test_a_gateway_with_a_lease_on_an_unknown_pod_holds_up_nobody(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f")
    await cluster.create(
        "gateway", ("system", "system", "g7"), {"spec": {"gateway_id": str(GATEWAY)}}
    )
    await cluster.stop_scheduler()
    await cluster.start_scheduler()
    lost = pb.WorkerId(id="on a node that died with the leader", lease_id="5", slots=1)
    request = pb.ConnectReq(gateway_id=GATEWAY, workers=[lost])
    answer = await client.call(cluster.gateway.ConnectScheduler, request)
    assert answer.rejected_lease_ids == ["5"]
    asked = pb.LeaseWorkerReq(
        tenant="t", namespace="n", funcname="f", gateway_id=GATEWAY + 1, slots=1,
        deadline_ms=TAKEOVER_MS // 2,
    )  # fmt: skip
    found = await client.call(cluster.gateway.LeaseWorker, asked, TAKEOVER_MS / 1000)
    assert found.id == lease.id


async def test_kill_and_delete(cluster: Cluster) -> None:
    await cluster.function("f")
    lease = await cluster.lease("f")
    unknown = await client.call(cluster.gateway.KillPod, pb.KillPodReq(id="nothing"))
    assert unknown.status == pb.NOT_FOUND
    killed = await client.call(cluster.gateway.KillPod, pb.KillPodReq(id=lease.id))
    assert killed.status == pb.OK
    await until(lambda: not cluster.scheduler.brain.pods())
    second = await cluster.lease("f")
    request = ixmeta_pb2.DeleteRequestMessage(
        obj_type="function", tenant="t", namespace="n", name="f"
    )
    await client.call(cluster.state.Delete, request)
    await until(lambda: ("terminate", second.id) in cluster.agent.asked)
    with pytest.raises(FunctionNotFound):
        await cluster.lease("f")


async def test_a_new_leader_tells_every_agent_its_epoch_before_it_serves(cluster: Cluster) -> None:
    assert cluster.agent.epochs == {cluster.scheduler.epoch}
    before = cluster.scheduler.epoch
    await cluster.stop_scheduler()
    await cluster.start_scheduler()
    assert cluster.scheduler.epoch > before
    assert cluster.agent.epochs == {before, cluster.scheduler.epoch}


async def test_a_snapshot_is_permitted_recorded_and_restored(cluster: Cluster) -> None:
    revision = await cluster.function("f", standby_per_node=0)
    lease = await cluster.lease("f")
    assert (lease.start, cluster.agent.saves) == ("cold", [True])
    known = await cluster.recorded("f", "Scheduled")
    assert (known["node"], known["fprevision"]) == ("n1", revision)
    cluster.agent.show_snapshot(("t", "n", "f"), revision, state="Ready", size_mb=7, tier="host")
    known = await cluster.recorded("f", "Done")
    assert (known["size_mb"], known["tier"]) == (7, "host")
    await client.call(cluster.gateway.KillPod, pb.KillPodReq(id=lease.id))
    assert (await cluster.lease("f")).start == "snapshot"
    await cluster.stop_scheduler()
    await cluster.start_scheduler()
    assert (await cluster.recorded("f", "Done"))["size_mb"] == 7
    request = ixmeta_pb2.DeleteRequestMessage(
        obj_type="function", tenant="t", namespace="n", name="f"
    )
    await client.call(cluster.state.Delete, request)
    async with asyncio.timeout(20):
        while await cluster.snapshots():
            pass


async def test_a_snapshot_that_fails_is_counted_and_backs_off(cluster: Cluster) -> None:
    revision = await cluster.function("f", standby_per_node=0)
    lease = await cluster.lease("f")
    failed = {"state": "Failed", "failures": 1, "reason": "the disk is full"}
    cluster.agent.show_snapshot(("t", "n", "f"), revision, **failed)
    known = await cluster.recorded("f", "ScheduleFail")
    assert (known["failures"], known["reason"]) == (1, "the disk is full")
    await client.call(cluster.gateway.KillPod, pb.KillPodReq(id=lease.id))
    await cluster.lease("f")
    assert cluster.agent.saves == [True, False], "the call is served without another attempt"


async def test_a_node_without_snapshots_says_so(cluster: Cluster) -> None:
    cluster.agent.keeps_snapshots = False
    await cluster.agent.stop()
    node = await cluster.agent.start()
    await cluster.replace("node", ("system", "system", "n1"), node.to_raw())
    await cluster.function("f")
    await cluster.lease("f")
    assert (await cluster.recorded("f", "Cannot"))["reason"] == "node n1 keeps no snapshots"
