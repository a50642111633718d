"""What a gateway does when its leader is frozen, or does not know it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partialmethod
from pathlib import Path

import pytest

from inferx.domain.cluster import SchedulerRecord
from inferx.domain.references import SCHEDULER_KEY
from inferx.errors import Unavailable
from inferx.gateway import workers
from tests.helpers.gateway_kit import FakeScheduler, Platform, platform, until
from tests.helpers.ports import free_ports
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
        # Once more under its id when an announcement came in between.
        assert len({lease.request_id for lease in other.leases}) == 1


async def test_who_waits_for_news_gets_no_worker_that_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No lease is ever confirmed but by an announcement, as when a frozen gateway wakes up.
    monkeypatch.setattr(workers, "LEASES_LIVE_S", 0.0)
    rare = partialmethod(workers.Workers.__init__, heartbeat_s=NEVER_S)
    monkeypatch.setattr(workers.Workers, "__init__", rare)
    async with RawWorker(echo) as worker, platform(tmp_path) as up:
        up.scheduler.worker_port = worker.port
        await up.function(policy={"Obj": {"scalein_timeout": NEVER_S}})
        await up.function("g")
        waiting = asyncio.create_task(up.http.get(CALL))
        await up.shows("workers", 1)
        await up.parked(1)
        monkeypatch.setattr(workers, "LEASES_LIVE_S", NEVER_S)
        up.scheduler.rejected = ["1"]
        up.scheduler.refusal = Unavailable("no")
        doubtful = asyncio.create_task(up.http.get(CALL.replace("/f/", "/g/")))
        await until(lambda: len(up.scheduler.connects) > 1, "nothing was announced")
        up.scheduler.refusal = None
        assert (await waiting).headers["x-inferx-pod"] != "pod1"
        assert (await doubtful).status_code == 200


async def test_a_lease_that_was_not_announced_is_asked_for_again(up: Platform) -> None:
    up.scheduler.granting.clear()
    call = asyncio.create_task(up.http.get(CALL))
    await until(lambda: up.scheduler.leases, "no lease was asked for")
    announced = len(up.scheduler.connects)
    up.scheduler.known = False  # the next heartbeat fails
    await until(lambda: len(up.scheduler.connects) > announced, "nothing was announced")
    up.scheduler.granting.set()
    assert (await call).status_code == 200
    first, second = up.scheduler.leases
    assert first.request_id == second.request_id


async def test_a_lease_that_was_granted_before_leases_lapsed_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = partialmethod(workers.Workers.__init__, heartbeat_s=0.05)
    monkeypatch.setattr(workers.Workers, "__init__", often)
    async with RawWorker(echo) as worker, platform(tmp_path) as up:
        up.scheduler.worker_port = worker.port
        await up.function()
        up.scheduler.granting.clear()
        call = asyncio.create_task(up.http.get(CALL))
        await until(lambda: up.scheduler.leases, "no lease was asked for")
        monkeypatch.setattr(workers, "LEASES_LIVE_S", 0.0)
        beats = up.scheduler.refreshes
        await until(lambda: up.scheduler.refreshes > beats + 1, "there were no heartbeats")
        monkeypatch.setattr(workers, "LEASES_LIVE_S", NEVER_S)
        up.scheduler.granting.set()
        assert (await call).status_code == 200
        first, second = up.scheduler.leases
        assert first.request_id == second.request_id
