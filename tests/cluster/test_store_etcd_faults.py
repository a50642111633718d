"""The etcd store when etcd restarts, freezes, compacts in a gap, or wants a login."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from inferx import config, statesvc
from inferx.config import EtcdConfig, Secret
from inferx.errors import Compacted, ConfigError, NotFound, Unauthenticated, Unavailable
from inferx.store import etcd_client, etcd_leases
from inferx.store.etcd import EtcdStore
from inferx.store.informer import Informer
from inferx.store.protocol import At, Event, Put
from tests.cluster.etcd_server import EtcdServer
from tests.helpers.ports import free_port
from tests.helpers.state_client import Client, until


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
async def store(etcd: EtcdServer) -> AsyncIterator[EtcdStore]:
    opened = await EtcdStore.open((etcd.address,), EtcdConfig())
    yield opened
    await opened.close()


async def collect(watch: AsyncIterator[list[Event]], values: list[bytes], last: bytes) -> None:
    """Gather the values of a watch until `last` comes."""
    async for events in watch:
        values += [event.entry.value for event in events if event.entry is not None]
        if last in values:
            return


async def written(store: EtcdStore, key: str, value: bytes) -> int:
    """Write until it is acknowledged; a write of unknown outcome is looked up, not repeated."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await store.commit((), [Put(key, value)])
            except Unavailable:
                pass
            try:
                entry = await store.get(key)
            except Unavailable:
                continue
            if entry is not None and entry.value == value:
                return entry.revision


async def renewed(store: EtcdStore, lease: int) -> None:
    while True:
        with contextlib.suppress(Unavailable):
            assert await store.keep_alive(lease) == 60
            return
        await asyncio.sleep(0.05)


async def streams_begun(etcd: EtcdServer) -> int:
    """How many streams of renewals etcd has seen since it was started."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://{etcd.address}/metrics")).text
    kind = 'grpc_method="LeaseKeepAlive",grpc_service="etcdserverpb.Lease",grpc_type="bidi_stream"'
    lines = [
        one for one in text.splitlines() if one.startswith("grpc_server_started_total{" + kind)
    ]
    return int(lines[0].split()[-1])


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_watch_misses_nothing_while_etcd_restarts(
    etcd: EtcdServer, store: EtcdStore, how: str
) -> None:
    start = await store.commit((), [Put("/x/start", b"")])
    values: list[bytes] = []
    watching = asyncio.create_task(collect(store.watch("/x/", start), values, b"29"))
    for number in range(30):
        await written(store, f"/x/{number % 3}", b"%d" % number)
        if number % 10 == 5:
            await asyncio.to_thread(etcd.stop if how == "stop" else etcd.kill)
            await asyncio.to_thread(etcd.start)
    async with asyncio.timeout(30):
        await watching
    assert values == [b"%d" % number for number in range(30)]


async def test_a_compaction_in_the_gap_is_not_silent(etcd: EtcdServer, store: EtcdStore) -> None:
    """The worst case for a watch: gone while etcd is away, and its place compacted meanwhile."""
    start = await store.commit((), [Put("/x/a", b"0")])
    watch = store.watch("/x/", start)
    first = asyncio.ensure_future(anext(watch))
    await store.commit((), [Put("/x/a", b"1")])
    await first
    etcd.stop()
    etcd.start()
    # The watch is suspended here: nobody reads it, so it has not come back yet.
    for number in range(10):
        last = await written(store, "/x/a", b"%d" % number)
    await store.compact(last)
    with pytest.raises(Compacted):
        await asyncio.wait_for(collect(watch, [], b"never"), 30)


async def test_a_frozen_etcd_is_an_error_in_time(
    etcd: EtcdServer, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "CALL_TIMEOUT_S", 0.3)
    await store.commit((), [Put("/x/a", b"1")])
    etcd.freeze()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await store.get("/x/a")
            with pytest.raises(Unavailable):
                await store.commit((), [Put("/x/a", b"2")])
    finally:
        etcd.thaw()
    monkeypatch.undo()
    async with asyncio.timeout(30):
        await written(store, "/x/b", b"3")


async def test_renewals_share_a_stream(etcd: EtcdServer, store: EtcdStore) -> None:
    leases = [await store.grant(30 + number) for number in range(20)]
    ended = await store.grant(30)
    await store.revoke(ended)
    for _ in range(2):
        asked = [store.keep_alive(lease) for lease in [*leases, *leases, ended]]
        *lives, refused = await asyncio.gather(*asked, return_exceptions=True)
        assert lives == [30.0 + number for number in range(20)] * 2
        assert isinstance(refused, NotFound)
    assert await streams_begun(etcd) == 1


async def test_renewals_go_on_after_etcd_was_restarted(etcd: EtcdServer, store: EtcdStore) -> None:
    lease = await store.grant(60)
    for end in (etcd.stop, etcd.kill):
        await store.keep_alive(lease)
        await asyncio.to_thread(end)
        with pytest.raises(Unavailable):
            await store.keep_alive(lease)
        await asyncio.to_thread(etcd.start)
        async with asyncio.timeout(30):
            await renewed(store, lease)


async def test_nobody_waits_behind_a_renewal_that_was_given_up(
    etcd: EtcdServer, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_leases, "CALL_TIMEOUT_S", 1.0)
    lease = await store.grant(60)
    await store.keep_alive(lease)
    etcd.freeze()
    try:
        patient = asyncio.create_task(store.keep_alive(lease))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.keep_alive(lease), 0.1)
        with pytest.raises(Unavailable, match="does not answer"):
            await patient
    finally:
        etcd.thaw()
    async with asyncio.timeout(30):
        await renewed(store, lease)
    assert await streams_begun(etcd) > 1


async def test_a_silent_stream_is_reopened(
    etcd: EtcdServer, store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No progress is asked for, so an idle stream looks dead and is opened again and again."""
    monkeypatch.setattr(etcd_client, "_WATCH_SILENCE_S", 0.2)
    start = await store.commit((), [Put("/x/a", b"0")])
    watch = store.watch("/x/", start)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.wait([waiting], timeout=1.0)
    assert not waiting.done()
    await store.commit((), [Put("/x/a", b"1")])
    async with asyncio.timeout(10):
        assert [event.revision for event in await waiting] == [start + 1]


async def test_an_idle_stream_shows_that_it_lives(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(etcd_client, "_WATCH_SILENCE_S", 1.0)
    monkeypatch.setattr(etcd_client, "_WATCH_PROGRESS_S", 0.1)
    start = await store.commit((), [Put("/x/a", b"0")])
    waiting = asyncio.ensure_future(anext(store.watch("/x/", start)))
    await asyncio.wait([waiting], timeout=2.5)
    await store.commit((), [Put("/x/a", b"1")])
    async with asyncio.timeout(10):
        await waiting
    assert "reopened" not in caplog.text


async def test_the_next_endpoint_is_used(etcd: EtcdServer) -> None:
    dead = f"127.0.0.1:{free_port()}"
    store = await EtcdStore.open((dead, etcd.address), EtcdConfig())
    revision = await store.commit([At("/x/a", 0)], [Put("/x/a", b"")])
    async with asyncio.timeout(10):
        watch = store.watch("/x/", revision - 1)
        assert (await anext(watch))[0].revision == revision
    await store.close()


async def test_no_etcd_at_all_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=address):
        await EtcdStore.open((address,), EtcdConfig())


async def test_etcd_with_a_login(etcd: EtcdServer) -> None:
    async with httpx.AsyncClient(base_url=f"http://{etcd.address}/v3/auth/") as setup:
        for path, body in (
            ("user/add", {"name": "root", "password": "hunter2"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("enable", {}),
        ):
            (await setup.post(path, json=body)).raise_for_status()
    with pytest.raises(Unauthenticated) as caught:
        await EtcdStore.open((etcd.address,), EtcdConfig(username="root", password=Secret("no")))
    assert "hunter2" not in caught.value.message
    login = EtcdConfig(username="root", password=Secret("hunter2"))
    store = await EtcdStore.open((etcd.address,), login)
    start = await store.commit((), [Put("/x/a", b"1")])
    store._client._token = "expired.1"
    await store.commit((), [Put("/x/a", b"2")])
    async with asyncio.timeout(10):
        assert len(await anext(store.watch("/x/", start))) == 1
    lease = await store.grant(30)
    assert await store.keep_alive(lease) == 30
    await store.close()


def certificates(folder: Path) -> None:
    """A certificate authority, and a server and a client certificate of it."""
    subject = ["-subj", "/CN=127.0.0.1"]
    if shutil.which("openssl") is None:
        pytest.fail("openssl is not installed: apt-get install -y openssl")
    commands = [
        "req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt -subj /CN=ca",
        "req -newkey rsa:2048 -nodes -keyout node.key -out node.csr",
        "x509 -req -in node.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out node.crt"
        " -extfile san.cnf",
    ]
    (folder / "san.cnf").write_text("subjectAltName=IP:127.0.0.1\n")
    for command in commands:
        extra = subject if command.startswith("req -newkey") else []
        subprocess.run(
            ["openssl", *command.split(), *extra], cwd=folder, check=True, capture_output=True
        )


async def test_etcd_with_tls(tmp_path: Path) -> None:
    certificates(tmp_path)
    ca, cert, key = (str(tmp_path / name) for name in ("ca.crt", "node.crt", "node.key"))
    server = EtcdServer(
        tmp_path, "--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca,
        "--client-cert-auth", scheme="https",
    )  # fmt: skip
    try:
        address = f"https://{server.address}"
        with pytest.raises(Unavailable):
            await EtcdStore.open((address,), EtcdConfig(ca=ca))
        with pytest.raises(ConfigError, match=r"etcdconfig\.ca"):
            await EtcdStore.open((address,), EtcdConfig(ca="/absent"))
        store = await EtcdStore.open((address,), EtcdConfig(ca=ca, cert=cert, key=key))
        await store.commit((), [Put("/x/a", b"1")])
        await store.close()
    finally:
        server.kill()


async def test_two_platforms_in_one_etcd_do_not_meet(etcd: EtcdServer, tmp_path: Path) -> None:
    base = replace(
        config.load(None, {}), data_dir=tmp_path, statesvc_port=0, etcd_addrs=(etcd.address,)
    )
    one = await statesvc.start(replace(base, etcd=EtcdConfig(prefix="/one")))
    two = await statesvc.start(replace(base, etcd=EtcdConfig(prefix="/two")))
    first, second = Client(one.port), Client(two.port)
    await first.create("tenant", ("system", "system", "t"))
    with pytest.raises(NotFound):
        await second.get("tenant", ("system", "system", "t"))
    await first.close()
    await second.close()
    await one.stop(0)
    await two.stop(0)


async def test_two_state_services_on_one_etcd_agree(etcd: EtcdServer, tmp_path: Path) -> None:
    """Limits and parents hold across services, as the guards are checked by etcd."""
    settings = replace(
        config.load(None, {}), data_dir=tmp_path, statesvc_port=0, etcd_addrs=(etcd.address,)
    )
    services = [await statesvc.start(settings) for _ in range(2)]
    clients = [Client(service.port) for service in services]
    limit = {"spec": {"limit": {"max_funccount": 4}}}
    function = {"spec": {"image": "i", "resources": {"CPU": 1, "Mem": 2}}}
    await clients[0].create("tenant", ("system", "system", "t"), limit)
    await clients[1].create("namespace", ("t", "system", "n"))
    informer = Informer(clients[1].address, "function")
    await informer.start()
    results = await asyncio.gather(
        *(clients[n % 2].create("function", ("t", "n", f"f{n}"), function) for n in range(12)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, tuple) for result in results) <= 4
    names = await clients[0].names("function")
    assert 1 <= len(names) <= 4
    await until(lambda: {obj.meta.name for obj in informer.list()} == set(names))
    etcd.kill()
    etcd.start()
    await until(lambda: informer.synced.is_set())
    await clients[0].delete("function", ("t", "n", names[0]))
    await until(lambda: {obj.meta.name for obj in informer.list()} == set(names[1:]))
    await informer.stop()
    for connected, service in zip(clients, services, strict=True):
        await connected.close()
        await service.stop(0)
