"""The probes' port: alive without dependencies, ready only with them, metrics that say which."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import httpx
import pytest

from inferx import config, health
from inferx.errors import Unavailable
from tests.helpers.ports import free_port


@pytest.fixture
def settings() -> config.NodeConfig:
    return replace(config.load(None, {}), metrics_port=free_port())


async def test_a_service_is_alive_before_it_is_ready(settings: config.NodeConfig) -> None:
    url = f"http://127.0.0.1:{settings.metrics_port}"
    async with health.serving(settings) as probes, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["reason"] == "the service is starting"
        assert "inferx_ready 0.0" in (await client.get("/metrics")).text
        probes.ready_when(lambda: None)
        assert (await client.get("/readyz")).status_code == 200
        assert "inferx_ready 1.0" in (await client.get("/metrics")).text


async def test_a_dependency_that_fails_or_hangs_spoils_readiness_only(
    settings: config.NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS_MAX", 0.05)
    url = f"http://127.0.0.1:{settings.metrics_port}"

    async def refuses() -> str | None:
        raise Unavailable("etcd: no leader")

    async def hangs() -> str | None:
        await asyncio.Event().wait()
        return None

    async with health.serving(settings) as probes, httpx.AsyncClient(base_url=url) as client:
        for check, reason in ((refuses, "no leader"), (hangs, "no answer within")):
            probes.ready_when(check)
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            assert reason in answer.json()["reason"]
            assert (await client.get("/healthz")).status_code == 200


async def test_a_taken_port_is_named(settings: config.NodeConfig) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", settings.metrics_port))
        holder.listen()
        with pytest.raises(Unavailable, match=rf"{settings.metrics_port} \(metricsPort\)"):
            async with health.serving(settings):
                pass


async def test_without_a_port_nothing_is_served(settings: config.NodeConfig) -> None:
    async with health.serving(replace(settings, metrics_port=0)) as probes:
        assert await probes.waits_for() == "the service is starting"
