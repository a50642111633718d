"""What holds over two gateways of one platform: a tenant's limits, and the end of a key."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from tests.helpers.gateway_kit import bearer, platform, second_gateway
from tests.helpers.proxy_kit import RawWorker, echo

CALL = "/funccall/public/demo/f/x"
RATE = 20.0
SECONDS = 6.0
REVOKED_S = 1.0


async def test_a_tenant_has_its_rate_once_however_many_gateways_there_are(tmp_path: Path) -> None:
    async with platform(tmp_path) as up, RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        await up.function()
        tenant = (await up.http.get("/object/tenant/system/system/public/")).json()
        tenant["object"]["spec"]["limit"] = {"max_request_rate": RATE}
        assert (await up.http.post("/object/", json=tenant)).status_code == 200
        async with second_gateway(up, tmp_path / "other") as other:
            gateways = (up.http, other)
            for gateway in gateways:
                text = ""
                while "shared by 2 gateways" not in text:
                    text = (await gateway.get(CALL)).text
            begun = time.monotonic()
            passed = dict.fromkeys(gateways, 0)

            async def client(gateway: httpx.AsyncClient) -> None:
                while time.monotonic() < begun + SECONDS:
                    answer = await gateway.get(CALL)
                    assert answer.status_code in (200, 429), answer.text
                    passed[gateway] += answer.status_code == 200
                    await asyncio.sleep(0.002)

            await asyncio.gather(*(client(gateway) for gateway in gateways for _ in range(4)))
            spent = time.monotonic() - begun
            # Both were at their limit when it began: there is nothing saved that may come on top.
            assert sum(passed.values()) <= RATE * spent * 1.05 + 2, passed
            assert min(passed.values()) >= RATE / 2 * SECONDS * 0.5, "each has its part"
        # The other one has gone: its part comes back.
        deadline = time.monotonic() + 20
        while 'max_request_rate (20/s)"' not in (answer := (await up.http.get(CALL)).text):
            assert time.monotonic() < deadline, answer
            assert "shared by 2" in answer or "tenant_limit" not in answer


async def test_a_revoked_key_ends_within_a_second_at_every_gateway(tmp_path: Path) -> None:
    async with platform(tmp_path, auth=True) as up, RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        await up.function()
        async with second_gateway(up, tmp_path / "other") as other:
            wanted = {"tenant": "public", "namespace": "demo", "scope": "full"}
            made = (await up.http.post("/apikeys/", json=wanted)).json()
            headers = bearer(made["key"])
            minted = (await up.http.post("/apikeys/", json=wanted, headers=headers)).json()
            for gateway in (up.http, other):
                for key in (made, minted):
                    deadline = time.monotonic() + 10
                    while True:
                        answer = await gateway.get(CALL, headers=bearer(key["key"]))
                        if answer.status_code == 200:
                            break
                        assert time.monotonic() < deadline, answer.text
                        await asyncio.sleep(0.1)
            assert (await up.http.delete(f"/apikey/{made['id']}/")).status_code == 200
            revoked = time.monotonic()
            for gateway in (up.http, other):
                for key in (made, minted):
                    for path in (CALL, "/whoami"):
                        while True:
                            asked = time.monotonic()
                            answer = await gateway.get(path, headers=bearer(key["key"]))
                            if answer.status_code == 401:
                                break
                            assert asked - revoked < REVOKED_S, "still let in after a second"
