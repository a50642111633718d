"""Who is served when: queues, slots, leases asked for and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferx._ext import Proxy
from tests.helpers.ports import free_port
from tests.helpers.proxy_kit import Message, RawWorker, Rig, Wire, echo

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path) as rig:
        yield rig


async def test_first_calls_ask_for_exactly_one_worker(rig: Rig) -> None:
    rig.function(parallel=32)
    calls = [asyncio.create_task(rig.call(method="POST", body=b"b%d" % n)) for n in range(32)]
    await rig.gauge("parked", 32)
    assert (await rig.event("need_worker"))[1:] == ("t/n/f", 1, 1)
    async with RawWorker(echo) as worker:
        rig.add(worker.port, slots=32, start="cold")
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {200}
        assert {answer.get("x-inferx-start") for answer in answers} == {"cold"}
        assert (await rig.call()).get("x-inferx-start") == "warm"
        assert rig.events == [], "one worker was asked for, once"
    assert rig.stats()["starts"] == {"cold": 1, "resume": 0, "snapshot": 0, "warm": 0}


async def test_more_workers_are_asked_for_beyond_the_ratio_only(rig: Rig) -> None:
    rig.function(parallel=2, wait_ratio=0.5)
    wires = [await rig.request()]
    await rig.event("need_worker")
    async with RawWorker() as worker:
        rig.add(worker.port, slots=2)
        wires += [await rig.request() for _ in range(2)]
        await rig.gauge("parked", 1)  # 3 calls, 2 slots: 1.5 * 2 is not exceeded
        assert rig.events == []
        wires.append(await rig.request())
        assert (await rig.event("need_worker"))[3] == 1
        wires += [await rig.request() for _ in range(2)]
        await rig.gauge("parked", 4)  # 6 calls: 2 workers bear them
        assert rig.events == []
        wires.append(await rig.request())
        assert (await rig.event("need_worker"))[3] == 1
        for wire in wires:
            wire.abort()
        await rig.gauge("parked", 0)
        await rig.gauge("active", 0)


async def test_the_line_is_first_come_first_served(rig: Rig) -> None:
    rig.function(parallel=1)
    wires: list[Wire] = []
    for number in range(5):
        wires.append(await rig.request(f"/funccall/t/n/f/{number}"))
        await rig.gauge("parked", number + 1)
    async with RawWorker() as worker:
        rig.add(worker.port, slots=1)
        upstream = await worker.accept()
        for number, wire in enumerate(wires):
            assert (await upstream.head()).start == f"GET /{number} HTTP/1.1"
            await rig.gauge("parked", 4 - number)
            await upstream.send(OK)
            assert (await wire.message()).body == b"ok"
        assert worker.connections == 1


async def test_a_full_queue_refuses_at_once(rig: Rig) -> None:
    rig.function(queue_len=2)
    wires = [await rig.request() for _ in range(2)]
    await rig.gauge("parked", 2)
    refused = await rig.call()
    assert (refused.status, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.get("retry-after") or "") >= 1
    assert refused.json()["error"]["retry_after_ms"] == 1000
    for wire in wires:
        wire.abort()
    await rig.gauge("parked", 0)


async def test_waiting_ends_at_the_timeout(rig: Rig) -> None:
    rig.function(queue_timeout_ms=100)
    timed_out = await rig.call()
    assert (timed_out.status, timed_out.json()["error"]["code"]) == (504, "queue_timeout")
    rig.function(queue_timeout_ms=60_000)
    lowered = await rig.call(
        method="POST", body=b"x" * 200_000, headers="X-Inferx-Timeout: 0.05\r\n"
    )
    assert lowered.status == 504
    rig.function(queue_timeout_ms=50)
    not_raised = await rig.call(headers="X-Inferx-Timeout: 60\r\n")
    assert not_raised.status == 504
    await rig.gauge("parked", 0)


async def test_an_update_keeps_those_who_wait(rig: Rig) -> None:
    rig.function()
    wire = await rig.request()
    assert (await rig.event("need_worker"))[2] == 1
    rig.function(parallel=7)
    assert rig.events == []
    rig.function(revision=2)
    assert (await rig.event("need_worker"))[2] == 2, "a worker of the new revision is wanted"
    rig.proxy.fail_lease("t/n/f", revision=1, http_status=502, code="start_failed", message="old")
    async with RawWorker(echo) as worker:
        stale = {"lease_id": 999, "pod_id": "p", "host": "127.0.0.1", "port": worker.port}
        assert not rig.proxy.add_worker("t/n/f", revision=1, slots=1, start="cold", **stale)
        rig.add(worker.port, revision=2)
        assert (await wire.message()).status == 200


async def test_workers_of_an_older_revision_finish_and_go(rig: Rig) -> None:
    rig.function()
    async with RawWorker() as worker:
        busy, idle = rig.add(worker.port), rig.add(worker.port)
        first = await rig.request()
        upstream = await worker.accept()
        await upstream.head()
        rig.function(revision=2)
        events = [await rig.event("worker_idle")]
        second = await rig.request()
        await rig.event("need_worker")
        await upstream.send(OK)
        assert (await first.message()).status == 200
        events.append(await rig.event("worker_idle"))
        assert {event[2] for event in events} == {busy, idle}
        second.abort()
        await rig.gauge("parked", 0)


async def test_a_removed_function_answers_those_who_wait(rig: Rig) -> None:
    rig.function()
    wire = await rig.request()
    await rig.gauge("parked", 1)
    assert rig.proxy.remove_function("t/n/f")
    answer = await wire.message()
    assert (answer.status, answer.json()["error"]["code"]) == (404, "function_not_found")
    assert (await rig.call()).status == 404
    assert not rig.proxy.remove_function("t/n/f")


async def test_a_disabled_function_refuses(rig: Rig) -> None:
    rig.function()
    wire = await rig.request()
    await rig.gauge("parked", 1)
    rig.function(disabled="tenant t is disabled")
    for answer in (await wire.message(), await rig.call()):
        assert (answer.status, answer.json()["error"]["code"]) == (403, "disabled")
        assert answer.json()["error"]["message"] == "tenant t is disabled"


async def test_an_unknown_function_before_all_are_known(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.port = rig.proxy.start()
    answer = await rig.call()
    assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")
    rig.proxy.set_synced()
    assert (await rig.call()).status == 404
    await rig.__aexit__()


async def test_a_lease_that_fails_answers_those_who_wait(rig: Rig) -> None:
    rig.function()
    wires = [await rig.request() for _ in range(3)]
    await rig.gauge("parked", 3)
    failure = {"http_status": 503, "code": "no_capacity", "message": "no GPU is free"}
    rig.proxy.fail_lease("t/n/f", revision=1, retry_after_ms=2500, **failure)
    for wire in wires:
        answer = await wire.message()
        assert (answer.status, answer.get("retry-after")) == (503, "3")
        assert answer.json()["error"]["message"] == "no GPU is free"
    rig.events.clear()
    again = await rig.request()
    await rig.event("need_worker")
    again.abort()
    await rig.gauge("parked", 0)


async def test_a_lease_that_is_late_answers_only_those_whose_time_is_over(rig: Rig) -> None:
    rig.function(queue_timeout_ms=60_000)
    old = await rig.request()
    await rig.event("need_worker")
    rig.function(queue_timeout_ms=1)
    await asyncio.sleep(0.002)  # from now on it has waited for longer than that
    failure = {"http_status": 504, "code": "queue_timeout", "message": "every GPU is taken"}
    rig.proxy.fail_lease("t/n/f", revision=1, late=True, **failure)
    assert (await old.message()).json()["error"]["message"] == "every GPU is taken"
    rig.function(queue_timeout_ms=60_000)
    young = await rig.request()
    await rig.event("need_worker")
    rig.proxy.fail_lease("t/n/f", revision=1, late=True, **failure)
    await rig.event("need_worker")  # the request was late, this call is not
    impatient = await rig.call(headers="X-Inferx-Timeout: 0.05\r\n")
    assert impatient.json()["error"]["message"].endswith("asked for: every GPU is taken")
    async with RawWorker(echo) as worker:
        rig.add(worker.port)
        assert (await young.message()).status == 200


async def test_who_waits_for_less_than_the_policy_allows_hears_why_too(rig: Rig) -> None:
    rig.function(queue_timeout_ms=60_000)
    patient = await rig.request()
    impatient = await rig.request(headers="X-Inferx-Timeout: 0.3\r\n")
    assert await rig.event("why_waiting") == ("why_waiting", "t/n/f")
    rig.proxy.explain_wait("t/n/f", "every GPU is taken")
    rig.proxy.explain_wait("t/n/other", "nobody asked")
    await impatient.message()  # on a busy machine it may have left before that was said
    answer = await rig.call(headers="X-Inferx-Timeout: 0.05\r\n")
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (504, "queue_timeout")
    assert error["message"].endswith("every GPU is taken")
    async with RawWorker(echo) as worker:
        rig.add(worker.port)
        assert (await patient.message()).status == 200, "its own time is not over"


async def test_a_lease_that_fails_is_no_matter_while_others_serve(rig: Rig) -> None:
    rig.function(parallel=1, wait_ratio=0.0)
    async with RawWorker() as worker:
        rig.add(worker.port, slots=1)
        first = await rig.request()
        await rig.gauge("active", 1)
        second = await rig.request()
        await rig.event("need_worker")
        failure = {"http_status": 503, "code": "no_capacity", "message": "full"}
        rig.proxy.fail_lease("t/n/f", revision=1, retry_after_ms=20, **failure)
        assert rig.stats()["parked"] == 1
        await rig.event("need_worker")  # asked again after the pause, by itself
        upstream = await worker.accept()
        for wire in (first, second):
            await upstream.head()
            await upstream.send(OK)
            assert (await wire.message()).status == 200


async def test_the_worker_used_last_is_used_first(rig: Rig) -> None:
    async def slow_echo(wire: Wire, request: Message) -> None:
        await release.wait()
        await echo(wire, request)

    rig.function(scalein_timeout_ms=300)
    release = asyncio.Event()
    async with RawWorker(slow_echo) as worker:
        rig.add(worker.port, slots=1)
        rig.add(worker.port, slots=1)
        both = [asyncio.create_task(rig.call()) for _ in range(2)]
        await rig.gauge("active", 2)
        release.set()
        await asyncio.gather(*both)
        pods = set()
        while not rig.events:
            pods.add((await rig.call()).get("x-inferx-pod"))
        assert len(pods) == 1, "the other one was left to rest"
        idle = await rig.event("worker_idle")
        assert f"pod{idle[2]}" not in pods
        await rig.event("worker_idle")
        assert rig.stats()["workers"] == 0


async def test_an_idle_worker_is_offered_back_and_not_used_any_more(rig: Rig) -> None:
    rig.function(scalein_timeout_ms=50)
    async with RawWorker(echo) as worker:
        handle = rig.add(worker.port)
        assert await rig.event("worker_idle") == ("worker_idle", "t/n/f", handle)
        assert not rig.proxy.remove_worker(handle)
        wire = await rig.request()
        await rig.event("need_worker")
        assert worker.connections == 0
        wire.abort()
        await rig.gauge("parked", 0)


async def test_slots_that_others_want_are_given_up_as_their_calls_end(rig: Rig) -> None:
    rig.function(parallel=4)
    async with RawWorker() as worker:
        handle = rig.add(worker.port, slots=4)
        wires = [await rig.request(f"/funccall/t/n/f/{number}") for number in range(4)]
        upstreams: dict[str, Wire] = {}
        for _ in wires:
            upstream = await worker.accept()
            upstreams[(await upstream.head()).start] = upstream
        waiting = await rig.request()
        await rig.gauge("parked", 1)
        assert rig.proxy.trim_worker(handle, 2)
        for number in (0, 1):
            assert not [event for event in rig.events if event[0] == "worker_trimmed"]
            await upstreams[f"GET /{number} HTTP/1.1"].send(OK)
            assert (await wires[number].message()).status == 200
        assert await rig.event("worker_trimmed") == ("worker_trimmed", "t/n/f", handle, 2)
        assert (rig.stats()["parked"], rig.stats()["slots"]) == (1, 2)
        await upstreams["GET /2 HTTP/1.1"].send(OK)
        await rig.gauge("parked", 0)  # the call that waited has the slot, within what is left
        assert not rig.proxy.trim_worker(handle + 1, 1)
        for wire in (waiting, *wires):
            wire.abort()


async def test_slots_that_no_call_needs_are_given_up_at_once(rig: Rig) -> None:
    rig.function(parallel=4)
    async with RawWorker() as worker:
        unused, used = rig.add(worker.port, slots=4), rig.add(worker.port, slots=4)
        wire = await rig.request()
        upstream = await worker.accept()
        await upstream.head()
        assert rig.proxy.trim_worker(unused, 4)
        assert await rig.event("worker_idle") == ("worker_idle", "t/n/f", unused)
        assert rig.proxy.trim_worker(used, 4)
        assert await rig.event("worker_trimmed") == ("worker_trimmed", "t/n/f", used, 1)
        assert rig.proxy.trim_worker(used, 0)
        await upstream.send(OK)
        assert (await wire.message()).status == 200
        assert await rig.event("worker_idle") == ("worker_idle", "t/n/f", used)


async def test_a_worker_that_cannot_be_reached_is_replaced(rig: Rig) -> None:
    rig.function()
    dead = rig.add(free_port())
    call = asyncio.create_task(rig.call(method="POST", body=b"body"))
    failed = await rig.event("worker_failed")
    assert failed[1:3] == ("t/n/f", dead)
    assert "refused" in failed[3]
    await rig.event("need_worker")
    async with RawWorker(echo) as worker:
        rig.add(worker.port, start="resume")
        answer = await call
        assert (answer.status, answer.get("x-inferx-start")) == (200, "resume")
        assert answer.body.endswith(b"body")
    assert rig.stats(None)["retries"] == 1
    assert rig.events == []


async def test_a_pooled_connection_that_died_is_not_the_callers_problem(rig: Rig) -> None:
    rig.function()
    async with RawWorker() as worker:
        rig.add(worker.port)
        for body in (b"one", b"two", b"three"):
            call = asyncio.create_task(rig.call(method="POST", body=body))
            upstream = await worker.accept()  # each time a new one: the last was closed
            assert (await upstream.message()).body == body
            await upstream.send(OK)
            assert (await call).status == 200
            upstream.abort()
        assert worker.connections == 3


async def test_a_read_is_tried_again_when_the_connection_dies_under_it(rig: Rig) -> None:
    rig.function()
    async with RawWorker() as worker:
        rig.add(worker.port)
        call = asyncio.create_task(rig.call())
        upstream = await worker.accept()
        await upstream.head()
        await upstream.send(OK)
        await call
        call = asyncio.create_task(rig.call())
        await upstream.head()  # the worker has seen it, and closes without a word
        upstream.abort()
        fresh = await worker.accept()
        await fresh.head()
        await fresh.send(OK)
        assert (await call).status == 200
        write = asyncio.create_task(rig.call(method="POST", body=b"x"))
        await fresh.message()
        fresh.abort()
        assert (await write).status == 502, "a write that was read is not repeated"
    assert rig.stats(None)["retries"] == 1


async def test_connections_are_reused(rig: Rig) -> None:
    rig.function()
    async with RawWorker(echo) as worker:
        rig.add(worker.port)
        for _ in range(20):
            assert (await rig.call()).status == 200
        assert worker.connections == 1


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        other = Proxy("127.0.0.1", rig.port, tmp_path / "x.sock")
        with pytest.raises(OSError, match=f"127.0.0.1:{rig.port}"):
            other.start()
        with pytest.raises(ValueError, match="option"):
            Proxy("127.0.0.1", 0, tmp_path / "x.sock", no_such=1)  # type: ignore[call-arg]


async def test_a_lease_that_may_be_over_takes_no_call_until_the_scheduler_is_heard(
    rig: Rig,
) -> None:
    rig.function()
    async with RawWorker(echo) as worker:
        rig.add(worker.port, slots=4)
        assert (await rig.call()).status == 200
        rig.proxy.hold_leases(0.0)
        waiting = asyncio.create_task(rig.call())
        await rig.gauge("parked", 1)
        rig.proxy.hold_leases(60.0)
        assert (await waiting).status == 200
        assert (await rig.call()).status == 200
