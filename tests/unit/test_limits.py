"""What tenants may have of the data plane: rates, calls at a time, tokens; each by itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

from tests.helpers.gateway_kit import Platform, platform
from tests.helpers.proxy_kit import Message, RawWorker, Rig, Wire, echo

TENANTS = 1000
RATE = 2.0
SECONDS = 4.0


async def test_a_thousand_tenants_keep_to_their_rates(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig, RawWorker(echo) as worker:
        for number in range(TENANTS):
            key = f"t{number}/n/f"
            rig.function(key, parallel=10, queue_len=1000)
            rig.proxy.set_tenant_limits(f"t{number}", request_rate=RATE)
        passed: Counter[int] = Counter()
        calls = iter(range(10**9))

        async def client() -> None:
            wire = await rig.client()
            while time.monotonic() < until:
                # The first tenant is noisy: every second call is its.
                call = next(calls)
                number = 0 if call % 2 else call // 2 % TENANTS
                await rig.request(f"/funccall/t{number}/n/f/x", wire=wire)
                answer = await wire.message()
                if answer.status == 429:
                    error = answer.json()["error"]
                    assert error["code"] == "tenant_limit"
                    assert f"max_request_rate ({RATE:g}/s)" in error["message"]
                    assert answer.get("retry-after") == "1"
                else:
                    assert answer.status == 200
                    passed[number] += 1

        async def grant() -> None:
            while True:
                for event in [e for e in rig.events if e[0] == "need_worker"]:
                    rig.events.remove(event)
                    rig.add(worker.port, event[1], slots=10)
                await asyncio.sleep(0.005)

        granting = asyncio.create_task(grant())
        begun = time.monotonic()
        until = begun + SECONDS
        await asyncio.gather(*(client() for _ in range(8)))
        spent = time.monotonic() - begun
        granting.cancel()
        most = RATE * spent * 1.05 + 1
        over = {number: count for number, count in passed.items() if count > most}
        assert not over, f"over {most}"
        assert passed[0] >= RATE * SECONDS * 0.5, "the noisy one gets what is its"


async def model(wire: Wire, request: Message) -> None:
    """Answers as a model does that took 100 tokens."""
    usage = {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100}
    body = json.dumps({"choices": [{"text": "x" * 3000}], "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    await wire.send(head % len(body), body)


async def limited(up: Platform, **limit: float) -> None:
    """Give tenant `public` limits."""
    tenant = (await up.http.get("/object/tenant/system/system/public/")).json()
    tenant["object"]["spec"]["limit"] = limit
    assert (await up.http.post("/object/", json=tenant)).status_code == 200


async def test_tokens_count_against_the_tenant_and_are_audited(tmp_path: Path) -> None:
    async with platform(tmp_path) as up, RawWorker(model) as worker:
        up.scheduler.worker_port = worker.port
        await up.function()
        await limited(up, max_tokens_per_minute=150)
        body = {"model": "demo/f"}
        statuses = [
            (await up.http.post("/v1/completions", json=body)).status_code for _ in range(2)
        ]
        assert statuses == [200, 200], "a call is let in while anything is left"
        refused = await up.http.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tenant_limit")
        assert "max_tokens_per_minute (150)" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 10
        deadline = time.monotonic() + 20
        while True:
            found = (await up.http.get("/audit/requests/public/demo/f/")).json()
            if len(found) == 3:
                break
            assert time.monotonic() < deadline, found
        assert sorted(row.get("tokens", 0) for row in found) == [0, 100, 100]


async def test_calls_at_a_time_are_bounded_and_limits_can_go(tmp_path: Path) -> None:
    async with platform(tmp_path) as up, RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        up.scheduler.granting.clear()
        await up.function()
        await limited(up, max_concurrency=1)
        first = asyncio.create_task(up.http.get("/funccall/public/demo/f/x"))
        await up.parked(1)
        second = await up.http.get("/funccall/public/demo/f/x")
        assert (second.status_code, "max_concurrency (1)" in second.text) == (429, True)
        up.scheduler.granting.set()
        assert (await first).status_code == 200
        assert (await up.http.get("/funccall/public/demo/f/x")).status_code == 200
        await limited(up, max_request_rate=0.5)
        answers = [await up.http.get("/funccall/public/demo/f/x") for _ in range(3)]
        assert [answer.status_code for answer in answers[1:]] == [429, 429]
        await limited(up)
        answers = [await up.http.get("/funccall/public/demo/f/x") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
