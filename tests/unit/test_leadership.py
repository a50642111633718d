"""Two schedulers, one lead: handed over, taken over, never held by both, and fenced afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferx import statesvc
from inferx.domain import codec
from inferx.domain.nodeconfig import NodeConfig, read_config
from inferx.errors import AlreadyExists, NotFound, StaleEpoch, Unavailable
from inferx.rpc import client, convert, ixmeta_pb2_grpc
from inferx.rpc import ixmeta_pb2 as pb
from inferx.rpc.replicas import Replicas
from inferx.scheduler import Scheduler
from inferx.scheduler.leader import Leadership
from inferx.store.presence import Lease, Presence, State
from tests.helpers.ports import free_ports
from tests.helpers.state_client import Client, until

_stub: Any = ixmeta_pb2_grpc.IxMetaServiceStub


@pytest.fixture
async def config(tmp_path: Path) -> AsyncIterator[NodeConfig]:
    """The configuration of a running state service."""
    state, first = free_ports(2)
    found = read_config(
        {
            "statSvcPort": state,
            "schedulerPort": first,
            "dataDir": str(tmp_path / "one"),
            "leaderLeaseMs": 1000,
        }
    )
    service = await statesvc.start(found)
    yield found
    await service.stop()


def other(config: NodeConfig, tmp_path: Path) -> NodeConfig:
    """The same platform's second scheduler."""
    (port,) = free_ports(1)
    return replace(config, scheduler_port=port, data_dir=tmp_path / "two")


async def started(config: NodeConfig) -> tuple[Scheduler, asyncio.Task[None]]:
    scheduler = Scheduler(config)
    await scheduler.start()
    return scheduler, asyncio.create_task(scheduler.lead())


async def test_the_lead_is_handed_over_at_once(config: NodeConfig, tmp_path: Path) -> None:
    first, leading = await started(config)
    await leading
    second, waiting = await started(other(config, tmp_path))
    assert (first.leadership.leads(), waiting.done()) == (True, False)
    begun = time.monotonic()
    await first.stop()
    await waiting
    # Its lease lives for a second; nobody waited for that.
    assert time.monotonic() - begun < 0.9
    assert second.epoch > first.epoch
    assert not first.leadership.leads()
    await second.stop()


async def test_a_leader_that_cannot_renew_steps_down_before_another_leads(
    config: NodeConfig, tmp_path: Path
) -> None:
    first, leading = await started(config)
    await leading
    second, waiting = await started(other(config, tmp_path))

    async def silent(method: str, request: object, timeout_s: float = 5.0) -> None:
        raise Unavailable("cut off")

    first._state.leases.call = silent  # type: ignore[method-assign,assignment]
    both = False

    def handed_over() -> bool:
        nonlocal both
        both |= first.leadership.leads() and second.leadership.leads()
        return second.leadership.leads()

    await until(handed_over)
    assert not both
    await waiting
    assert isinstance(await first.failed, StaleEpoch)
    await asyncio.gather(first.stop(), second.stop())


async def test_writes_of_a_former_leader_are_refused(config: NodeConfig, tmp_path: Path) -> None:
    first, leading = await started(config)
    await leading
    old = first.epoch
    await first.stop()
    second, waiting = await started(other(config, tmp_path))
    await waiting
    state = Client(config.statesvc_port)
    await state.create("tenant", ("system", "system", "t"), {"spec": {}})
    await state.create("namespace", ("t", "system", "n"), {"spec": {}})
    pod = codec.new("pod", ("t", "n", "p1"), {"spec": {"funcname": "f", "fprevision": 1}})
    message = convert.to_proto(pod)
    message.src_epoch = old
    with pytest.raises(StaleEpoch):
        await client.call(state.stub.Create, pb.CreateRequestMessage(obj=message))
    message.src_epoch = second.epoch
    await client.call(state.stub.Create, pb.CreateRequestMessage(obj=message))
    delete = pb.DeleteRequestMessage(
        obj_type="pod", tenant="t", namespace="n", name="p1", src_epoch=old
    )
    with pytest.raises(StaleEpoch):
        await client.call(state.stub.Delete, delete)
    await state.close()
    await second.stop()


async def test_the_lock_proves_that_the_former_scheduler_is_dead(config: NodeConfig) -> None:
    config = replace(config, leader_lease_ms=30_000)
    first, leading = await started(config)
    await leading
    # As if killed: the lock is gone, the object and its lease are not.
    first.leadership._dead.leave()
    first.leadership._lease = None
    await first._port.close()
    begun = time.monotonic()
    second, waiting = await started(config)
    await waiting
    assert time.monotonic() - begun < 10
    assert second.epoch > first.epoch
    await asyncio.gather(first.stop(), second.stop())


async def test_a_lease_counts_from_before_it_was_asked_for(config: NodeConfig) -> None:
    state = State(config.state_svc_addrs)
    before = time.monotonic()
    lease = await Lease.grant(state, 1000)
    assert before + lease.left_s() <= time.monotonic() + 0.9
    await lease.end()
    assert not lease.valid()
    with pytest.raises(NotFound):
        await state.leases.call("Keep", pb.KeepLeaseRequest(lease=lease.number))
    await state.close()


async def test_a_presence_comes_back_after_its_lease_was_lost(config: NodeConfig) -> None:
    state = State(config.state_svc_addrs)
    lapses: list[bool] = []
    obj = codec.new("gateway", ("system", "system", "g1"), {"spec": {"gateway_id": "1"}})
    presence = Presence(state, obj, 1000, lambda: lapses.append(presence.valid()))
    running = asyncio.create_task(presence.run())
    await presence.present.wait()
    assert presence._lease is not None
    await state.leases.call("End", pb.EndLeaseRequest(lease=presence._lease.number))
    await until(lambda: bool(lapses))
    await presence.present.wait()
    reader = Client(config.statesvc_port)
    assert await reader.names("gateway") == ["g1"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await presence.withdraw()
    assert await reader.names("gateway") == []
    await reader.close()
    await state.close()


async def test_replicas_go_on_with_who_answers(config: NodeConfig) -> None:
    (dead,) = free_ports(1)
    service = Replicas((f"127.0.0.1:{dead}", *config.state_svc_addrs), _stub)
    answer = await service.call("Version", pb.VersionRequestMessage())
    assert answer.version == statesvc.VERSION
    await service.close()
    alone = Replicas((f"127.0.0.1:{dead}",), _stub)
    with pytest.raises(Unavailable):
        await alone.call("Version", pb.VersionRequestMessage(), 0.5)
    await alone.close()


async def test_what_an_earlier_attempt_left_is_no_lead(config: NodeConfig, tmp_path: Path) -> None:
    """Its lease is not the one that would be kept: the lead would end while we believe in it."""
    state = State(config.state_svc_addrs)
    leadership = Leadership(state, "127.0.0.1:1", 1000, tmp_path)
    call, answers = state.objects.call, [Unavailable("the answer was lost"), None]

    async def lossy(method: str, request: Any, timeout_s: float = 5.0) -> Any:
        answer = await call(method, request, timeout_s)
        if method == "Create" and (lost := answers.pop(0)) is not None:
            raise lost
        return answer

    state.objects.call = lossy  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="the answer was lost"):
        await leadership._try()
    with pytest.raises(AlreadyExists):
        await leadership._try()
    assert not leadership.leads()
    state.objects.call = call  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        while not leadership.epoch:
            with contextlib.suppress(AlreadyExists):
                leadership.epoch = await leadership._try()
    assert leadership.leads()
    await leadership.resign()
    await state.close()


async def test_the_lead_may_be_answered_twice(config: NodeConfig, tmp_path: Path) -> None:
    state = State(config.state_svc_addrs)
    leadership = Leadership(state, "127.0.0.1:1", 1000, tmp_path)
    call = state.objects.call

    async def twice(method: str, request: Any, timeout_s: float = 5.0) -> Any:
        if method == "Create":
            await call(method, request, timeout_s)
        return await call(method, request, timeout_s)

    state.objects.call = twice  # type: ignore[method-assign]
    leadership.epoch = await leadership._try()
    assert leadership.leads()
    await leadership.resign()
    await state.close()


async def test_a_leader_that_cannot_keep_its_lead_for_whatever_reason_ends(
    config: NodeConfig,
) -> None:
    scheduler, leading = await started(config)
    await leading

    call = scheduler._state.leases.call

    async def broken(method: str, request: object, timeout_s: float = 5.0) -> None:
        raise ValueError("this test says so")

    scheduler._state.leases.call = broken  # type: ignore[method-assign,assignment]
    async with asyncio.timeout(10):
        assert "ValueError: this test says so" in (await scheduler.failed).message
    scheduler._state.leases.call = call  # type: ignore[method-assign]
    await scheduler.stop()


async def test_a_presence_goes_on_whatever_went_wrong_once(config: NodeConfig) -> None:
    state, lapses = State(config.state_svc_addrs), []
    obj = codec.new("gateway", ("system", "system", "g1"), {"spec": {"gateway_id": "1"}})
    presence = Presence(state, obj, 1000, lambda: lapses.append(True))
    call, faults = state.leases.call, [ValueError("this test says so")]

    async def broken(method: str, request: Any, timeout_s: float = 5.0) -> Any:
        if method == "Keep" and faults:
            raise faults.pop()
        return await call(method, request, timeout_s)

    state.leases.call = broken  # type: ignore[method-assign]
    running = asyncio.create_task(presence.run())
    async with asyncio.timeout(20):
        await until(lambda: bool(lapses))
        await presence.present.wait()
    assert presence.valid()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await presence.withdraw()
    await state.close()
