"""Caches behind an etcd that lies about its watch: in the end they hold what the store holds."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from inferx import config, statesvc
from inferx.config import EtcdConfig
from inferx.errors import Compacted
from inferx.store.etcd import EtcdStore
from inferx.store.informer import Informer
from inferx.store.protocol import Event
from tests.helpers.fake_etcd import TRICKS, FakeEtcd
from tests.helpers.ports import free_port
from tests.helpers.state_client import until

PREFIX = b"/registry/namespace/t/system/"
WRITES = 400


def namespace(name: str, number: int) -> bytes:
    labels = {"number": str(number)}
    manifest = {"type": "namespace", "tenant": "t", "namespace": "system", "name": name}
    return json.dumps({**manifest, "labels": labels, "object": {"spec": {}}}).encode()


def fingerprint(found: dict[str, int]) -> str:
    """Names and revisions as one hash."""
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def of_store(etcd: FakeEtcd) -> str:
    kept = {k: v for k, v in etcd.current.items() if k.startswith(PREFIX)}
    return fingerprint({k.removeprefix(PREFIX).decode(): v.mod_revision for k, v in kept.items()})


def of_cache(informer: Informer) -> str:
    return fingerprint({obj.meta.name: obj.revision for obj in informer.list()})


async def write(etcd: FakeEtcd, seed: int) -> None:
    """Random creations, changes, deletions, bursts and compactions."""
    chosen = random.Random(seed)
    for number in range(WRITES):
        name = f"n{chosen.randrange(12)}"
        if chosen.random() < 0.25:
            etcd.delete(PREFIX + name.encode())
        else:
            etcd.put(PREFIX + name.encode(), namespace(name, number))
        if chosen.random() < 0.02:
            etcd.compact()
        if chosen.random() < 0.6:
            await asyncio.sleep(chosen.uniform(0, 0.004))


@pytest.mark.parametrize("seed", range(6))
async def test_caches_equal_the_store_whatever_the_watch_does(tmp_path: Path, seed: int) -> None:
    etcd = FakeEtcd(seed)
    address = await etcd.start()
    base = config.load(None, {"INFERX_DATA_DIR": str(tmp_path)})
    service = await statesvc.start(replace(base, etcd_addrs=(address,), statesvc_port=free_port()))
    informer = Informer(f"127.0.0.1:{service.port}", "namespace", "t", verify_s=0.2)
    seen: dict[str, int] = {}
    informer.subscribe(
        lambda event, obj: (
            seen.pop(obj.meta.name, None)
            if event == "deleted"
            else seen.update({obj.meta.name: obj.revision})
        )
    )
    await informer.start()
    await informer.synced.wait()
    await write(etcd, seed)
    # Even now nobody may rely on the watch: the comparison with a list mends what it lost.
    await until(lambda: of_cache(informer) == of_store(etcd))
    assert fingerprint(seen) == of_store(etcd), "what subscribers were told adds up to the cache"
    assert etcd.played["lied"] >= 1
    assert sum(etcd.played[trick] for trick in TRICKS) > 20, f"seed {seed}: {etcd.played}"
    await informer.stop()
    await service.stop(0)
    await etcd.stop()


async def test_the_watch_itself_repairs_all_but_losses(tmp_path: Path) -> None:
    """Cuts, repetitions and lies in the header cost nothing: no event is missed or seen twice."""
    etcd = FakeEtcd(1, ("honest", "cut", "duplicate", "backdate", "cancel", "fragment"))
    address = await etcd.start()
    store = await EtcdStore.open((address,), EtcdConfig())
    got: list[Event] = []

    async def follow() -> None:
        async for events in store.watch(PREFIX.decode(), 1):
            got.extend(events)

    following = asyncio.create_task(follow())
    for number in range(200):
        etcd.put(PREFIX + b"n%d" % (number % 7), b"%d" % number)
        await asyncio.sleep(0.001)
    await until(lambda: bool(got) and got[-1].revision == etcd.revision)
    assert [event.revision for event in got] == list(range(2, 202))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await store.close()
    await etcd.stop()


async def test_a_compaction_is_told_and_nothing_before_it_is_made_up() -> None:
    etcd = FakeEtcd(1, ("honest",))
    address = await etcd.start()
    store = await EtcdStore.open((address,), EtcdConfig())
    for number in range(5):
        etcd.put(PREFIX + b"n", b"%d" % number)
    etcd.compact()
    with pytest.raises(Compacted):
        await anext(store.watch(PREFIX.decode(), 2))
    await store.close()
    await etcd.stop()
