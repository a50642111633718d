"""Two gateways on one port, of which the older one drains; certificates; HTTP/2."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import h2.connection
import h2.events
import httpx
import pytest

from inferx._ext import Proxy
from inferx.domain.nodeconfig import TlsConfig
from inferx.gateway import certificates
from tests.helpers.certificate import certify
from tests.helpers.proxy_kit import Message, RawWorker, Rig, Wire, echo, until

CALLERS = 8


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with Rig(tmp_path, tls=certify(tmp_path, "first")) as rig:
        rig.function()
        yield rig


def client(folder: Path, **options: bool) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=folder / "tls.crt")
    return httpx.AsyncClient(verify=context, trust_env=False, timeout=15, **options)


async def call_until(stop: asyncio.Event, url: str) -> int:
    """Calls on kept connections until told to stop; any failure is raised."""
    done = 0
    async with httpx.AsyncClient(trust_env=False, timeout=15) as http:
        while not stop.is_set():
            answer = await http.post(url, content=b"x")
            assert answer.status_code == 200, answer.text
            done += 1
    return done


async def test_another_plane_takes_over_the_port_and_no_call_fails(tmp_path: Path) -> None:
    async with RawWorker(echo) as worker, Rig(tmp_path) as old:
        old.function()
        old.add(worker.port)
        stop = asyncio.Event()
        url = f"http://127.0.0.1:{old.port}/funccall/t/n/f/x"
        callers = [asyncio.create_task(call_until(stop, url)) for _ in range(CALLERS)]
        await until(lambda: sum(old.stats()["statuses"].values()) > 50, "no calls")
        async with Rig(tmp_path, port=old.port, share_port=True) as new:
            new.function()
            new.add(worker.port)
            assert await asyncio.to_thread(old.proxy.drain, 10_000)
            served = sum(new.stats()["statuses"].values())
            await until(
                lambda: sum(new.stats()["statuses"].values()) > served + 50, "the new one is idle"
            )
            stop.set()
            assert min(await asyncio.gather(*callers)) > 0
        records = old.records() + new.records()
        assert {record[5] for record in records} == {"complete"}


async def test_a_socket_that_was_handed_in_outlives_the_plane(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        port = kept.getsockname()[1]
        plane = Proxy("127.0.0.1", port, tmp_path / "x.sock", listen_fd=os.dup(kept.fileno()))
        assert plane.start() == port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.1)  # time in which it could be answered too early
        assert b'"connections":0' in plane.stats().replace(b" ", b"")
        plane.set_not_ready(None)
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        assert await asyncio.to_thread(plane.drain, 5_000)
        _, waiting = await asyncio.open_connection("127.0.0.1", port)
        accepted, whose = kept.accept()
        accepted.close()
        assert whose == waiting.get_extra_info("sockname")
        waiting.close()


async def test_a_socket_of_another_port_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as kept:
        plane = Proxy("127.0.0.1", 1, tmp_path / "x.sock", listen_fd=os.dup(kept.fileno()))
        with pytest.raises(OSError, match="another port"):
            plane.start()


async def test_a_port_is_not_shared_with_a_stranger(tmp_path: Path) -> None:
    async with Rig(tmp_path) as first:
        stranger = Proxy("127.0.0.1", first.port, tmp_path / "x.sock")
        with pytest.raises(OSError, match="in use"):
            stranger.start()


@pytest.mark.parametrize("http2", [False, True])
async def test_calls_and_streams_over_tls(rig: Rig, tmp_path: Path, http2: bool) -> None:
    release = asyncio.Event()

    async def answer(wire: Wire, request: Message) -> None:
        if not request.start.startswith("GET /stream"):
            await echo(wire, request)
            return
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await release.wait()
        await wire.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with RawWorker(answer) as worker, client(tmp_path, http2=http2) as http:
        rig.add(worker.port)
        url = f"https://127.0.0.1:{rig.port}/funccall/t/n/f"
        body = bytes(range(256)) * 4000
        echoed = await http.post(f"{url}/a%2Fb?q=1", content=body, headers={"X-Mine": "1"})
        assert echoed.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert echoed.status_code == 200
        assert echoed.content.endswith(body)
        assert echoed.content.startswith(b"POST /a%2Fb?q=1 HTTP/1.1\n")
        assert b"x-mine: 1\n" in echoed.content
        assert f"host: 127.0.0.1:{rig.port}\n".encode() in echoed.content
        async with http.stream("GET", f"{url}/stream") as stream:
            pieces = stream.aiter_raw()
            assert await anext(pieces) == b"one"  # before the worker has written the rest
            release.set()
            assert b"".join([piece async for piece in pieces]) == b"two"
        missing = await http.get(f"{url}-missing")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "function_not_found")


@pytest.mark.parametrize("phase", ["silent", "streaming"])
async def test_a_stream_that_is_reset_closes_the_worker(
    rig: Rig, tmp_path: Path, phase: str
) -> None:
    context = ssl.create_default_context(cafile=tmp_path / "tls.crt")
    context.set_alpn_protocols(["h2"])
    async with RawWorker() as worker:
        rig.add(worker.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, ssl=context)
        http = h2.connection.H2Connection()
        http.initiate_connection()
        path = "/funccall/t/n/f/x"
        fields = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "a")]
        http.send_headers(1, fields, end_stream=True)
        writer.write(http.data_to_send())
        upstream = await worker.accept()
        await upstream.head()
        if phase == "streaming":
            await upstream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
            events: list[h2.events.Event] = []
            while not any(isinstance(event, h2.events.DataReceived) for event in events):
                events += http.receive_data(await reader.read(65536))
        http.reset_stream(1)
        writer.write(http.data_to_send())
        assert await upstream.closed() == b""
        await rig.gauge("active", 0)
        assert rig.records()[0][5] == "client_gone"
        writer.close()


async def test_a_renewed_certificate_is_served_to_new_connections(rig: Rig, tmp_path: Path) -> None:
    tls = TlsConfig(True, str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))
    following = asyncio.create_task(certificates.follow(rig.proxy, tls, every_s=0.01))
    url = f"https://127.0.0.1:{rig.port}/healthz"
    try:
        async with client(tmp_path) as open_before:
            assert (await open_before.get(url)).status_code == 200
            (tmp_path / "tls.key").write_text("half a file")
            await asyncio.sleep(0.05)  # time in which a bad key could do harm
            async with client(tmp_path) as meanwhile:
                assert (await meanwhile.get(url)).status_code == 200
            certify(tmp_path, "second")
            async with asyncio.timeout(10):
                while True:
                    try:
                        async with client(tmp_path) as renewed:
                            assert (await renewed.get(url)).status_code == 200
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.02)
            assert (await open_before.get(url)).status_code == 200
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_an_unusable_certificate_is_named(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "x")
    key.write_text("nothing")
    with pytest.raises(OSError, match=r"tls\.key"):
        Proxy("127.0.0.1", 0, tmp_path / "x.sock", tls=(cert, key))
