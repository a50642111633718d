"""Leases between the data plane and the scheduler, through a whole gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferx.errors import NoCapacity, StartFailed
from inferx.gateway.workers import Workers
from tests.helpers.gateway_kit import Platform, platform, until
from tests.helpers.proxy_kit import RawWorker, echo

CALL = "/funccall/public/demo/f/x"


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path) as up:
        yield up


@pytest.fixture
async def worker(up: Platform) -> AsyncIterator[RawWorker]:
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        yield worker


async def test_a_first_burst_leases_one_worker_and_idleness_returns_it(
    up: Platform, worker: RawWorker
) -> None:
    created = await up.function(policy={"Obj": {"parallel": 50, "scalein_timeout": 0.1}})
    up.scheduler.granting.clear()
    calls = [asyncio.create_task(up.http.post(CALL, content=b"x")) for _ in range(32)]
    await up.parked(32)
    up.scheduler.granting.set()
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-inferx-start"] for answer in answers} == {"cold"}
    (lease,) = up.scheduler.leases
    assert (lease.tenant, lease.namespace, lease.funcname) == ("public", "demo", "f")
    assert lease.fprevision == created["revision"]
    assert 0 < lease.deadline_ms <= 30_000
    assert lease.gateway_id == up.scheduler.connects[0].gateway_id > 0
    await until(lambda: up.scheduler.returns, "the idle worker was not returned")
    (returned,) = up.scheduler.returns
    assert (returned.lease_id, returned.id, returned.failworker) == ("1", "pod1", False)


async def test_a_refusal_reaches_the_caller(up: Platform) -> None:
    await up.function()
    up.scheduler.refusal = StartFailed("the worker exited with 3: boom")
    answer = await up.http.get(CALL)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "start_failed")
    assert error["message"] == "the worker exited with 3: boom"
    up.scheduler.refusal = NoCapacity("no node has 8 GPUs", retry_after_ms=4000)
    answer = await up.http.get(CALL)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")
    assert answer.headers["retry-after"] == "4"


async def test_a_worker_that_is_gone_is_returned_as_failed(up: Platform) -> None:
    await up.function(policy={"Obj": {"scalein_timeout": 60}})
    async with RawWorker(echo) as first:
        up.scheduler.worker_port = first.port
        assert (await up.http.get(CALL)).status_code == 200
    async with RawWorker(echo) as second:
        up.scheduler.worker_port = second.port
        answer = await up.http.get(CALL)
    assert (answer.status_code, answer.headers["x-inferx-pod"]) == (200, "pod2")
    await until(lambda: up.scheduler.returns, "the dead worker was not returned")
    assert (up.scheduler.returns[0].id, up.scheduler.returns[0].failworker) == ("pod1", True)


async def test_calls_survive_a_restart_of_the_scheduler(up: Platform, worker: RawWorker) -> None:
    await up.function(policy={"Obj": {"scalein_timeout": 60}})
    await up.function("g")
    assert (await up.http.get(CALL)).status_code == 200
    await up.stop_scheduler()
    assert (await up.http.get(CALL)).status_code == 200, "a warm call needs no scheduler"
    cold = asyncio.create_task(up.http.get("/funccall/public/demo/g/x"))
    await up.parked(1, "g")
    await up.start_scheduler()
    assert (await cold).status_code == 200
    await until(lambda: len(up.scheduler.connects) > 1, "the gateway did not announce itself")
    announced = up.scheduler.connects[1]
    assert announced.gateway_id == up.scheduler.connects[0].gateway_id
    held = {
        worker.id: (worker.funcname, worker.lease_id, worker.slots) for worker in announced.workers
    }
    assert held["pod1"] == ("f", "1", 50)


async def test_a_lease_that_the_scheduler_rejects_is_dropped(
    up: Platform, worker: RawWorker
) -> None:
    await up.function(policy={"Obj": {"scalein_timeout": 60}})
    assert (await up.http.get(CALL)).headers["x-inferx-pod"] == "pod1"
    up.scheduler.rejected = ["1"]
    up.scheduler.known = False  # the next heartbeat fails
    await until(lambda: len(up.scheduler.connects) > 1, "the gateway did not announce itself")
    answer = await up.http.get(CALL)
    while answer.headers["x-inferx-pod"] == "pod1":
        answer = await up.http.get(CALL)
    assert answer.headers["x-inferx-pod"] == "pod2"
    # It is given back nevertheless: a scheduler that still counts it must not do so for ever.
    await until(lambda: up.scheduler.returns, "the dropped lease was not given back")
    assert [returned.lease_id for returned in up.scheduler.returns] == ["1"]


async def test_a_function_that_changes_while_its_worker_starts(
    up: Platform, worker: RawWorker
) -> None:
    created = await up.function()
    up.scheduler.granting.clear()
    call = asyncio.create_task(up.http.get(CALL))
    await until(lambda: up.scheduler.leases, "no lease was asked for")
    changed = {**created, "labels": {"a": "b"}}
    updated = await up.http.post("/object/", json=changed)
    assert updated.status_code == 200
    await until(lambda: len(up.scheduler.leases) == 2, "no worker of the new revision")
    assert up.scheduler.leases[1].fprevision == updated.json()["revision"]
    up.scheduler.granting.set()
    assert (await call).status_code == 200
    await until(lambda: up.scheduler.returns, "the worker of the old revision was kept")
    assert up.scheduler.returns[0].fprevision == created["revision"]


async def test_stopping_gives_everything_back(tmp_path: Path) -> None:
    async with RawWorker(echo) as worker, platform(tmp_path) as up:
        up.scheduler.worker_port = worker.port
        await up.function(policy={"Obj": {"scalein_timeout": 60}})
        assert (await up.http.get(CALL)).status_code == 200
        scheduler = up.scheduler
    assert [returned.id for returned in scheduler.returns] == ["pod1"]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".sock")]


async def test_who_waits_for_less_than_the_policy_allows_hears_why_too(up: Platform) -> None:
    await up.function()
    up.scheduler.granting.clear()
    up.scheduler.reason = "no node fits (too_little_gpu_memory: 1)"
    patient = asyncio.create_task(up.http.get(CALL))
    await up.parked(1)

    async def impatient() -> str:
        answer = await up.http.get(CALL, headers={"X-Inferx-Timeout": "0.5"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "queue_timeout")
        return str(answer.json()["error"]["message"])

    async with asyncio.timeout(20):
        while "too_little_gpu_memory: 1" not in await impatient():
            pass  # on a busy machine the reason may come too late for the first one
    assert len(up.scheduler.leases) == 1, "the request for a worker was left alone"
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        up.scheduler.granting.set()
        assert (await patient).status_code == 200


async def test_presence_goes_on_whatever_went_wrong_once(
    up: Platform, worker: RawWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await up.function()
    hear, failed = Workers._hear, asyncio.Event()

    def broken(self: Workers, sent: float) -> None:
        if not failed.is_set():
            failed.set()
            raise ValueError("this test says so")
        hear(self, sent)

    monkeypatch.setattr(Workers, "_hear", broken)
    async with asyncio.timeout(20):
        await failed.wait()
    connects = len(up.scheduler.connects)
    await until(lambda: len(up.scheduler.connects) > connects, "it was not announced again")
    assert (await up.http.get(CALL)).status_code == 200
