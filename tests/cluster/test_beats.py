"""Leases shorter than etcd's, against a real etcd: when they end, and when they do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from inferx.config import EtcdConfig
from inferx.errors import NotFound
from inferx.store.beats import Beats
from inferx.store.etcd import EtcdStore
from inferx.store.protocol import Entry, Put
from tests.chaos.tcp_proxy import TcpProxy
from tests.cluster.etcd_server import EtcdServer

LIFE_MS = 1_500
KEY = "/registry/scheduler/leader"


@dataclass
class Kit:
    """Two state services' beats on one etcd, the second behind a proxy."""

    first: Beats
    second: Beats
    store: EtcdStore
    other: EtcdStore
    proxy: TcpProxy


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    etcd = await asyncio.to_thread(EtcdServer, tmp_path)
    proxy = TcpProxy("127.0.0.1", etcd.port)
    await proxy.start()
    store = await EtcdStore.open([etcd.address], EtcdConfig())
    other = await EtcdStore.open([f"127.0.0.1:{proxy.port}"], EtcdConfig())
    kit = Kit(Beats(store), Beats(other), store, other, proxy)
    tasks = [asyncio.create_task(beats.run()) for beats in (kit.first, kit.second)]
    yield kit
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await other.close()
    await store.close()
    await proxy.stop()
    await asyncio.to_thread(etcd.kill)


async def _gone(store: EtcdStore) -> float:
    """Seconds until the object under the lease is gone."""
    begun = time.monotonic()
    _, revision = await store.scan(KEY)
    async with asyncio.timeout(20):
        async for events in store.watch(KEY, revision):
            if any(event.entry is None for event in events):
                break
    return time.monotonic() - begun


async def test_a_neglected_lease_ends_after_its_life_and_not_before(kit: Kit) -> None:
    lease, life_ms = await kit.first.grant(LIFE_MS)
    assert life_ms == LIFE_MS, "etcd alone makes two seconds of it"
    await kit.store.commit((), [Put(KEY, b"x", lease)])
    begun = time.monotonic()
    await kit.first.keep(lease)
    await _gone(kit.store)
    assert time.monotonic() - begun > LIFE_MS / 1000
    with pytest.raises(NotFound):
        await kit.first.keep(lease)
    with pytest.raises(NotFound):
        await kit.second.keep(lease)


async def test_a_lease_that_ends_while_its_beat_is_looked_for_is_not_renewed(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, _ = await kit.first.grant(LIFE_MS)
    read = kit.other.get

    async def read_late(key: str, revision: int = 0) -> Entry | None:
        await kit.first.end(lease)
        return await read(key, revision)

    monkeypatch.setattr(kit.other, "get", read_late)
    with pytest.raises(NotFound):
        await kit.second.keep(lease)


async def test_a_lease_that_is_renewed_at_any_state_service_lives(kit: Kit) -> None:
    lease, _ = await kit.first.grant(LIFE_MS)
    await kit.store.commit((), [Put(KEY, b"x", lease)])
    for turn in range(12):
        await asyncio.sleep(LIFE_MS / 1000 / 5)
        assert await (kit.first, kit.second)[turn % 2].keep(lease) == LIFE_MS
    assert await kit.store.get(KEY) is not None


async def test_a_state_service_that_hears_nothing_ends_no_lease_that_others_renew(
    kit: Kit,
) -> None:
    lease, _ = await kit.first.grant(LIFE_MS)
    await kit.store.commit((), [Put(KEY, b"x", lease)])
    await kit.second.keep(lease)
    kit.proxy.cut()
    for _ in range(8):
        await asyncio.sleep(LIFE_MS / 1000 / 4)
        await kit.first.keep(lease)
    kit.proxy.heal()
    for _ in range(8):
        await asyncio.sleep(LIFE_MS / 1000 / 4)
        await kit.first.keep(lease)
    assert await kit.store.get(KEY) is not None


async def test_a_long_lease_has_no_beat(kit: Kit) -> None:
    lease, life_ms = await kit.first.grant(5_000)
    assert life_ms == 5_000
    assert await kit.second.keep(lease) == 5_000
    assert await kit.store.scan("/beats/") == ([], (await kit.store.scan("/"))[1])
    await kit.first.end(lease)
    with pytest.raises(NotFound):
        await kit.first.keep(lease)
