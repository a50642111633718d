"""A whole gateway whose port Granian listens on."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from inferx.domain.nodeconfig import TlsConfig
from services import gateway
from tests.helpers.certificate import certify
from tests.helpers.gateway_kit import Platform, platform
from tests.helpers.ports import free_ports
from tests.helpers.proxy_kit import DEADLINE_S, RawWorker, Rig, Wire, abort, echo


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path, listener="granian") as up:
        yield up


async def test_calls_and_control_routes_share_the_port(up: Platform) -> None:
    async with RawWorker(echo) as worker:
        up.scheduler.worker_port = worker.port
        await up.function()
        answers = await asyncio.gather(
            *(up.http.post(f"/funccall/public/demo/f/{n}", content=b"x") for n in range(20))
        )
    assert [answer.status_code for answer in answers] == [200] * 20
    assert answers[3].text.startswith("POST /3 HTTP/1.1\n")
    assert (await up.http.get("/v1/models")).json()["data"][0]["id"] == "demo/f"
    assert (await up.http.get("/nowhere")).status_code == 404
    assert "inferx_calls_total" in (await up.http.get("/metrics")).text


async def test_tls(up: Platform, tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "granian")
    (port,) = free_ports(1)
    config = replace(
        up.config, data_dir=tmp_path / "tls", gateway_port=port,
        tls=TlsConfig(True, str(cert), str(key)),
    )  # fmt: skip
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.main(config, stop))
    context = ssl.create_default_context(cafile=cert)
    async with httpx.AsyncClient(verify=context, http2=True, trust_env=False) as client:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    answer = await client.get(f"https://127.0.0.1:{port}/healthz")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.02)
        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
    stop.set()
    await running


@pytest.mark.parametrize("path", ["/funccall/t/n/f/x", "/nowhere"])
async def test_who_calls_while_it_leaves_is_told_to_connect_anew(tmp_path: Path, path: str) -> None:
    async with Rig(tmp_path, "granian") as rig, RawWorker(echo) as worker:
        rig.function()
        rig.add(worker.port)
        wire = await rig.client()
        assert (await rig.call(path, wire=wire)).get("connection") is None
        rig.leave()
        assert (await rig.call(path, wire=wire)).get("connection") == "close"
        assert await wire.closed() == b""


@asynccontextmanager
async def gateway_on(kept: socket.socket, up: Platform, folder: Path) -> AsyncIterator[str]:
    """The URL of a gateway on a socket that its supervisor keeps; stopped with the block."""
    port = kept.getsockname()[1]
    config = replace(up.config, data_dir=folder, gateway_port=port, listen_fd=os.dup(kept.fileno()))
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.main(config, stop))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        await running


async def test_who_has_connected_and_not_called_is_left_to_the_next_one(
    up: Platform, tmp_path: Path
) -> None:
    """Granian closes, when it stops, what it has accepted and read nothing of."""
    with socket.create_server(("127.0.0.1", 0)) as kept:
        async with gateway_on(kept, up, tmp_path / "kept") as url:
            async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
                assert (await client.get(f"{url}/readyz")).status_code == 200
            early = Wire(*await asyncio.open_connection(*kept.getsockname()))
        async with gateway_on(kept, up, tmp_path / "kept"):
            try:
                await early.send(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n")
                assert (await early.message()).status == 200
            finally:
                await abort([early])
