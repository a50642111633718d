"""Leases and returns as the extension serves them, and what it passes to grpc.aio behind it."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from bench import lease as bench
from inferx import telemetry
from inferx._ext import SchedulerCore, SchedulerServer
from inferx.config import ServiceTls
from inferx.domain.nodeconfig import read_config
from inferx.errors import BadRequest, Forbidden, InferxError, StaleLease, Unavailable
from inferx.rpc import client, ixmeta_pb2, na_pb2_grpc, tls
from inferx.rpc import na_pb2 as pb
from inferx.scheduler.port import Port
from tests.helpers.ports import free_port
from tests.helpers.state_client import until
from tests.unit.test_scheduler_service import Cluster
from tests.unit.test_service_tls import Authority

MESSAGES = Path(__file__).parents[2] / "ext/scheduler_server/src/messages.rs"
HELD_S = 3.0
LONGEST_S = 1.5  # a pair takes milliseconds; without isolation it is as long as the lock is held
BURST = 2_000


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    ports = {"statSvcPort": free_port(), "schedulerPort": free_port()}
    # A scheduler whose interpreter lock is held does not renew its lead either.
    times = {"idleParkMs": 60_000, "leaderLeaseMs": 30_000}
    running = Cluster(read_config({**ports, **times, "dataDir": str(tmp_path)}))
    await running.start()
    yield running
    await running.stop()


def test_the_messages_are_those_of_the_proto_file() -> None:
    """A field that one side lacks would be lost without a word."""
    kept: dict[str, dict[str, tuple[str, int]]] = {}
    for name, body in re.findall(r"pub struct (\w+) \{(.*?)\n\}", MESSAGES.read_text(), re.S):
        field = r"#\[prost\((\w+), tag = \"(\d+)\"\)\]\s+pub (\w+): \w+,"
        kept[name] = {what: (kind, int(tag)) for kind, tag, what in re.findall(field, body)}
    kinds = {3: "int64", 8: "bool", 9: "string", 13: "uint32"}
    for message in (
        pb.LeaseWorkerReq, pb.LeaseWorkerResp, pb.ReturnWorkerReq, pb.ReturnWorkerResp,
    ):  # fmt: skip
        found = message.DESCRIPTOR.fields
        assert kept.pop(message.DESCRIPTOR.name) == {
            field.name: (kinds[field.type], field.number) for field in found
        }
    assert not kept


async def test_warm_leases_flow_while_the_interpreter_lock_is_held(cluster: Cluster) -> None:
    await cluster.function("f", parallel=10)
    await cluster.give_back(await cluster.lease("f"))
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    address = f"127.0.0.1:{cluster.scheduler.port}"
    arguments = (address, 8, 2, 60.0, results, spawn.Event())
    caller = spawn.Process(target=bench.call_until_told, args=arguments)
    caller.start()
    brain = cluster.scheduler.brain
    before = brain.stats()["grants_warm"]
    await until(lambda: brain.stats()["grants_warm"] > before + 10)
    granted = brain.stats()["grants_warm"]
    # PyDLL, unlike CDLL, keeps the lock: no line of Python runs in this process meanwhile.
    ctypes.PyDLL(None).usleep(int(HELD_S * 1e6))
    during = brain.stats()["grants_warm"] - granted
    arguments[-1].set()
    took: list[float] = await asyncio.to_thread(results.get, timeout=30)
    await asyncio.to_thread(caller.join)
    assert during > 10
    assert max(took) < LONGEST_S


async def test_a_burst_of_callers_that_leave_takes_its_tickets_along(cluster: Cluster) -> None:
    await cluster.function("f", queue_len=BURST)
    cluster.agent.gate.clear()
    brain = cluster.scheduler.brain
    leaving = [asyncio.create_task(cluster.lease("f")) for _ in range(BURST)]
    await until(lambda: brain.stats()["tickets"] == BURST)
    for task in leaving:
        task.cancel()
    await until(lambda: brain.stats()["tickets"] == 0)
    cluster.agent.gate.set()
    lease = await cluster.lease("f")
    assert brain.stats()["leases"] == 1, "and the connection has survived it"
    await cluster.give_back(lease)


async def test_a_request_that_is_sent_twice_waits_once(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    brain = cluster.scheduler.brain
    first = asyncio.create_task(cluster.lease("f", "same"))
    await until(lambda: brain.stats()["tickets"] == 1)
    second = asyncio.create_task(cluster.lease("f", "same"))
    third = asyncio.create_task(cluster.lease("f", "other"))
    await until(lambda: brain.stats()["tickets"] == 2)
    first.cancel()
    third.cancel()
    await until(lambda: brain.stats()["tickets"] == 1)
    cluster.agent.gate.set()
    lease = await second
    assert brain.stats()["leases"] == 1
    await cluster.give_back(lease)


async def test_the_callers_own_deadline_ends_its_wait(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    request = pb.LeaseWorkerReq(tenant="t", namespace="n", funcname="f", deadline_ms=60_000)
    with pytest.raises(Unavailable, match="no answer in time"):
        await client.call(cluster.gateway.LeaseWorker, request, 0.3)
    await until(lambda: cluster.scheduler.brain.stats()["tickets"] == 0)
    cluster.agent.gate.set()


async def test_nothing_is_granted_when_the_lead_ends(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    waiting = asyncio.create_task(cluster.lease("f"))
    brain, epoch = cluster.scheduler.brain, cluster.scheduler.epoch
    await until(lambda: brain.stats()["tickets"] == 1)
    # What happens when the lease in the store is not renewed in time.
    leadership = cluster.scheduler.leadership
    assert leadership._lease is not None
    leadership._lease.tell(lambda until: None)
    brain.server.lead(epoch, brain.now_ms() - 1)
    with pytest.raises(Unavailable, match="does not lead"):
        await cluster.lease("f")
    cluster.agent.gate.set()
    with pytest.raises(Unavailable, match="does not lead"):
        await waiting


async def test_who_waits_is_sent_away_when_the_scheduler_stops(cluster: Cluster) -> None:
    await cluster.function("f")
    cluster.agent.gate.clear()
    waiting = [asyncio.create_task(cluster.lease("f")) for _ in range(3)]
    await until(lambda: cluster.scheduler.brain.stats()["tickets"] == 3)
    stopping = asyncio.create_task(cluster.scheduler.stop())
    for wait in waiting:
        with pytest.raises(Unavailable, match="is stopping"):
            await wait
    cluster.agent.gate.set()
    await stopping
    await cluster.start_scheduler()


async def test_what_is_not_legal_is_named(cluster: Cluster) -> None:
    with pytest.raises(BadRequest, match=r"funcname: .*not a legal name"):
        await cluster.lease("no/name")
    with pytest.raises(BadRequest, match="funcname: must not be empty"):
        await cluster.lease("")
    for wrong in ("", "x", "-1", "1" * 20):
        request = pb.ReturnWorkerReq(lease_id=wrong)
        with pytest.raises(BadRequest, match="lease_id: expected a decimal number"):
            await client.call(cluster.gateway.ReturnWorker, request)


async def test_streams_pass_through(cluster: Cluster) -> None:
    watch = cluster.view.Watch(ixmeta_pb2.ListRequestMessage(obj_type="pod"))
    await cluster.function("f")
    lease = await cluster.lease("f")
    seen = ""
    async with asyncio.timeout(20):
        async for event in watch:
            seen = event.obj.name or seen
            if seen == lease.id:
                break
    watch.cancel()
    with pytest.raises(InferxError):
        await client.call(cluster.view.Get, ixmeta_pb2.GetRequestMessage(obj_type="nothing"))


async def test_leases_are_counted(cluster: Cluster) -> None:
    await cluster.function("f")
    await cluster.give_back(await cluster.lease("f"))
    await cluster.lease("f")
    with pytest.raises(InferxError):
        await cluster.lease("nobody")
    text = telemetry.metrics_text().decode()
    for line in (
        'inferx_scheduler_leases_total{start="cold"} 1.0',
        'inferx_scheduler_leases_total{start="warm"} 1.0',
        'inferx_scheduler_lease_wait_seconds_count{start="warm"} 1.0',
        'inferx_scheduler_lease_wait_seconds_bucket{le="+Inf",start="cold"} 1.0',
        'inferx_scheduler_refusals_total{code="function_not_found"} 1.0',
    ):
        assert line in text


# ---- certificates ----


class Behind(na_pb2_grpc.SchedulerServiceServicer):
    """Answers as the scheduler's own servicer would, to whom it may."""

    async def KillPod(self, request: pb.KillPodReq, context: Any) -> pb.KillPodResp:
        return pb.KillPodResp(status=pb.NOT_FOUND)


def open_server() -> SchedulerServer:
    server = SchedulerServer(SchedulerCore("ab"), 10_000, {"forbidden": 7, "stale_lease": 9}, [1.0])
    server.lead(1, 2**60)
    server.open()
    return server


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[Port]:
    opened = Port(open_server(), tmp_path)
    yield opened
    await opened.close()
    tls.use(ServiceTls())


def register(server: grpc.aio.Server) -> None:
    add: Any = na_pb2_grpc.add_SchedulerServiceServicer_to_server
    add(Behind(), server)


async def ask(number: int, files: ServiceTls, verb: str, request: Any, claim: str = "") -> Any:
    """One call with a certificate, and maybe with a lie about who calls."""
    tls.use(files)
    channel = client.channel(f"127.0.0.1:{number}")
    stub: Any = na_pb2_grpc.SchedulerServiceStub(channel)  # type: ignore[no-untyped-call]
    metadata = [("inferx-peer-name", claim)] if claim else []
    try:
        return await client.call(getattr(stub, verb), request, 5.0, metadata)
    finally:
        await channel.close(None)


async def test_only_gateways_and_operators_get_through(port: Port, tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    tls.use(ours.issue("scheduler"))
    await port.open("127.0.0.1:0", [register])
    give_back, kill = pb.ReturnWorkerReq(lease_id="5"), pb.KillPodReq(id="p")
    for name in ("gateway", "operator"):
        with pytest.raises(StaleLease):
            await ask(port.number, ours.issue(name), "ReturnWorker", give_back)
        answer = await ask(port.number, ours.issue(name), "KillPod", kill)
        assert answer.status == pb.NOT_FOUND
    for name in ("statsvc", "node:n1", "gateway:x", "admin"):
        for verb, request in (("ReturnWorker", give_back), ("KillPod", kill)):
            for claim in ("", "gateway"):
                with pytest.raises(Forbidden):
                    await ask(port.number, ours.issue(name), verb, request, claim)
    theirs = Authority(tmp_path, "theirs").issue("gateway")
    mixed = replace(theirs, ca=ours.issue("x").ca)
    for stranger in (theirs, mixed, ServiceTls()):
        with pytest.raises(Unavailable):
            await ask(port.number, stranger, "ReturnWorker", give_back)


def replace_files(old: ServiceTls, new: ServiceTls) -> None:
    """The same paths with other contents."""
    for into, out_of in ((old.cert, new.cert), (old.key, new.key), (old.ca, new.ca)):
        Path(into).write_bytes(Path(out_of).read_bytes())


async def test_replaced_certificates_are_used(port: Port, tmp_path: Path) -> None:
    ours, next_year = Authority(tmp_path, "ours"), Authority(tmp_path, "next")
    files = ours.issue("scheduler")
    tls.use(files)
    await port.open("127.0.0.1:0", [register])
    give_back = pb.ReturnWorkerReq(lease_id="5")
    with pytest.raises(StaleLease):
        await ask(port.number, ours.issue("gateway"), "ReturnWorker", give_back)
    replace_files(files, replace(files, key=files.ca))  # in the middle of being replaced
    with pytest.raises(StaleLease):
        await ask(port.number, ours.issue("gateway"), "ReturnWorker", give_back)
    replace_files(files, next_year.issue("scheduler"))
    with pytest.raises(StaleLease):
        await ask(port.number, next_year.issue("gateway"), "ReturnWorker", give_back)
    with pytest.raises(Unavailable):
        await ask(port.number, ours.issue("gateway"), "ReturnWorker", give_back)


async def test_a_taken_port_is_named(port: Port, tmp_path: Path) -> None:
    await port.open("127.0.0.1:0", [register])
    second = Port(open_server(), tmp_path)
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port.number}: is it in use"):
        await second.open(f"127.0.0.1:{port.number}", [register])
    await second.close()
