"""A gateway whose leader is frozen turns to the next one as soon as there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from inferx.domain.cluster import SchedulerRecord
from inferx.domain.references import SCHEDULER_KEY
from inferx.gateway import workers
from tests.helpers.gateway_kit import FakeScheduler, Platform, free_ports, platform, until
from tests.helpers.proxy_kit import RawWorker, echo
from tests.helpers.state_client import Client

CALL = "/funccall/public/demo/f/x"
NEVER_S = 600.0


@pytest.fixture
async def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Platform]:
    # No call to a frozen scheduler ends by itself while a test lasts.
    monkeypatch.setattr(workers, "_RPC_TIMEOUT_S", NEVER_S)
    monkeypatch.setattr(workers, "_HEARTBEAT_TIMEOUT_S", NEVER_S)
    async with RawWorker(echo) as worker, platform(tmp_path) as up:
        up.scheduler.worker_port = worker.port
        await up.function(policy={"Obj": {"scalein_timeout": 0.1}})
        yield up


@asynccontextmanager
async def another_leads(up: Platform) -> AsyncIterator[FakeScheduler]:
    """A second scheduler, which is the leader from now on."""
    other = FakeScheduler()
    other.worker_port = up.scheduler.worker_port
    (port,) = free_ports(1)
    server = await other.serve(port)
    state = Client(up.config.statesvc_port)
    try:
        record = SchedulerRecord(f"127.0.0.1:{port}", "other").to_raw()
        other.epoch, _ = await state.create("scheduler", SCHEDULER_KEY, record)
        yield other
    finally:
        await state.close()
        await server.stop(0)


async def stuck(up: Platform, method: str) -> None:
    await until(lambda: method in up.scheduler.stuck, f"{method} was not called")


async def test_a_heartbeat_without_an_answer_is_given_up(up: Platform) -> None:
    up.scheduler.frozen = {"RefreshGateway"}
    await stuck(up, "RefreshGateway")
    async with another_leads(up) as other:
        await until(lambda: other.connects, "the gateway did not announce itself")


async def test_an_announcement_without_an_answer_is_given_up(up: Platform) -> None:
    up.scheduler.frozen = {"ConnectScheduler"}
    up.scheduler.known = False  # the next heartbeat fails
    await stuck(up, "ConnectScheduler")
    async with another_leads(up) as other:
        await until(lambda: other.connects, "the gateway did not announce itself")


async def test_a_return_without_an_answer_goes_to_the_next(up: Platform) -> None:
    up.scheduler.frozen = {"ReturnWorker"}
    assert (await up.http.get(CALL)).status_code == 200
    await stuck(up, "ReturnWorker")
    async with another_leads(up) as other:
        await until(lambda: other.returns, "the lease was not given back")
        assert [returned.lease_id for returned in other.returns] == ["1"]


async def test_a_lease_without_an_answer_is_asked_of_the_next(up: Platform) -> None:
    up.scheduler.frozen = {"LeaseWorker"}
    call = asyncio.create_task(up.http.get(CALL))
    await stuck(up, "LeaseWorker")
    async with another_leads(up) as other:
        assert (await call).status_code == 200
        assert len(other.leases) == 1
