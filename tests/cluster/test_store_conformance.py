"""One suite for every store: the embedded file and a real etcd must behave the same."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from inferx.config import EtcdConfig
from inferx.errors import BadRequest, Compacted, NotFound, Unavailable
from inferx.store.embedded import EmbeddedStore
from inferx.store.etcd import EtcdStore
from inferx.store.protocol import At, Delete, Empty, Event, GuardFailed, Put, Quiet, Store
from tests.cluster.etcd_server import EtcdServer

WAIT_S = 10.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    yield server
    server.kill()


@pytest.fixture(params=["embedded", "etcd"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[EmbeddedStore | EtcdStore]:
    opened: EmbeddedStore | EtcdStore
    if request.param == "embedded":
        opened = await EmbeddedStore.open(tmp_path / "state.db")
    else:
        address = request.getfixturevalue("etcd").address
        opened = await EtcdStore.open((address,), EtcdConfig())
    yield opened
    await opened.close()


@pytest.fixture
def root() -> str:
    return f"/{uuid.uuid4().hex}/"


async def take(watch: AsyncIterator[list[Event]], count: int) -> list[Event]:
    """The next `count` events of a watch."""
    events: list[Event] = []
    async with asyncio.timeout(WAIT_S):
        while len(events) < count:
            events += await anext(watch)
    return events


async def test_a_written_key_reads_back_with_its_revisions(store: Store, root: str) -> None:
    first = await store.commit((), [Put(root + "a", b"1")])
    second = await store.commit((), [Put(root + "a", b"2")])
    assert second > first
    entry = await store.get(root + "a")
    assert entry is not None
    assert (entry.key, entry.value) == (root + "a", b"2")
    assert (entry.create_revision, entry.revision) == (first, second)
    assert await store.get(root + "b") is None


async def test_old_revisions_stay_readable(store: Store, root: str) -> None:
    first = await store.commit((), [Put(root + "a", b"1"), Put(root + "b", b"1")])
    await store.commit((), [Put(root + "a", b"2")])
    third = await store.commit((), [Delete(root + "b")])
    old = await store.get(root + "a", first)
    assert old is not None
    assert old.value == b"1"
    entries, revision = await store.scan(root, first)
    assert revision == first
    assert [(e.key, e.value) for e in entries] == [(root + "a", b"1"), (root + "b", b"1")]
    entries, revision = await store.scan(root)
    assert revision >= third
    assert [(e.key, e.value) for e in entries] == [(root + "a", b"2")]


async def test_a_scan_sees_its_prefix_and_nothing_beside_it(store: Store, root: str) -> None:
    names = ["x/1", "x/10", "x", "x-y/1", "x0", "y/1", "x/\U0001f600"]
    for name in names:
        await store.commit((), [Put(root + name, b"v")])
    entries, _ = await store.scan(root + "x/")
    assert [e.key for e in entries] == [root + "x/1", root + "x/10", root + "x/\U0001f600"]


async def test_many_keys_come_in_one_scan(store: Store, root: str) -> None:
    for start in range(0, 1200, 100):
        numbers = range(start, start + 100)
        await store.commit((), [Put(f"{root}{n:05}", b"v" * 50) for n in numbers])
    entries, _ = await store.scan(root)
    assert [e.key for e in entries] == [f"{root}{n:05}" for n in range(1200)]


async def test_a_transaction_is_one_revision(store: Store, root: str) -> None:
    revision = await store.commit((), [Put(root + "a", b"1"), Put(root + "b", b"2")])
    entries, _ = await store.scan(root)
    assert {entry.revision for entry in entries} == {revision}


async def test_a_failed_guard_writes_nothing(store: Store, root: str) -> None:
    first = await store.commit([At(root + "a", 0)], [Put(root + "a", b"1")])
    with pytest.raises(GuardFailed):
        await store.commit([At(root + "a", 0)], [Put(root + "a", b"2"), Put(root + "b", b"2")])
    with pytest.raises(GuardFailed):
        await store.commit([At(root + "a", first - 1)], [Delete(root + "a")])
    entry = await store.get(root + "a")
    assert entry is not None
    assert entry.value == b"1"
    assert await store.get(root + "b") is None
    await store.commit([At(root + "a", first)], [Put(root + "a", b"2")])


async def test_guards_over_a_prefix(store: Store, root: str) -> None:
    first = await store.commit([Empty(root + "x/")], [Put(root + "x/1", b"")])
    with pytest.raises(GuardFailed):
        await store.commit([Empty(root + "x/")], [Put(root + "x/2", b"")])
    await store.commit([Empty(root + "x/1/"), Quiet(root + "x/", first)], [Put(root + "y", b"")])
    await store.commit([Quiet(root + "x/", first)], [Put(root + "x/2", b"")])
    with pytest.raises(GuardFailed):
        await store.commit([Quiet(root + "x/", first)], [Put(root + "x/3", b"")])
    await store.commit((), [Delete(root + "x/1"), Delete(root + "x/2")])
    await store.commit([Empty(root + "x/")], [Put(root + "x/4", b"")])


async def test_of_many_writers_with_one_expectation_one_wins(store: Store, root: str) -> None:
    first = await store.commit((), [Put(root + "a", b"0")])

    async def attempt(number: int) -> bool:
        try:
            await store.commit([At(root + "a", first)], [Put(root + "a", b"%d" % number)])
        except GuardFailed:
            return False
        return True

    assert sum(await asyncio.gather(*(attempt(n) for n in range(20)))) == 1


async def test_a_transaction_has_a_limit(store: Store, root: str) -> None:
    with pytest.raises(BadRequest, match="128"):
        await store.commit((), [Put(f"{root}{n}", b"") for n in range(129)])


async def test_a_watch_tells_every_change_in_order(store: Store, root: str) -> None:
    start = await store.commit((), [Put(root + "a", b"0"), Put(root + "z", b"0")])
    watch = store.watch(root, start)
    revisions = [await store.commit((), [Put(root + "a", b"%d" % n)]) for n in range(1, 6)]
    revisions.append(await store.commit((), [Delete(root + "a")]))
    await store.commit((), [Delete(root + "a")])  # changes nothing, so nobody hears of it
    revisions.append(await store.commit((), [Put(root + "a", b"again")]))
    events = await take(watch, 7)
    assert [event.revision for event in events] == revisions
    values = [event.entry and event.entry.value for event in events]
    assert values == [b"1", b"2", b"3", b"4", b"5", None, b"again"]
    before = [event.previous and event.previous.value for event in events]
    assert before == [b"0", b"1", b"2", b"3", b"4", b"5", None]
    last = events[-1].entry
    assert last is not None
    assert last.create_revision == last.revision


async def test_a_watch_from_the_past_catches_up_and_goes_on(store: Store, root: str) -> None:
    start = await store.commit((), [Put(root + "start", b"")])
    for number in range(1200):
        await store.commit((), [Put(f"{root}{number % 7}", b"%d" % number)])
    watch = store.watch(root, start)
    values = [event.entry and event.entry.value for event in await take(watch, 1200)]
    assert values == [b"%d" % number for number in range(1200)]
    live = asyncio.create_task(take(watch, 1))
    await store.commit((), [Put(root + "live", b"now")])
    assert (await live)[0].key == root + "live"


async def test_a_watch_keeps_to_its_prefix(store: Store, root: str) -> None:
    start = await store.commit((), [Put(root + "x", b"")])
    watch = store.watch(root + "x/", start)
    await store.commit((), [Put(root + "x-y", b""), Put(root + "x/1", b""), Put(root + "y", b"")])
    assert [event.key for event in await take(watch, 1)] == [root + "x/1"]


async def test_a_transaction_reaches_a_watch_whole(store: Store, root: str) -> None:
    start = await store.commit((), [Put(root + "x", b"")])
    watch = store.watch(root, start)
    await store.commit((), [Put(f"{root}{n:03}", b"v" * 1000) for n in range(128)])
    async with asyncio.timeout(WAIT_S):
        assert len(await anext(watch)) == 128


async def test_compacted_history_ends_a_watch_and_a_read(store: Store, root: str) -> None:
    first = await store.commit((), [Put(root + "a", b"1")])
    await store.commit((), [Put(root + "a", b"2")])
    third = await store.commit((), [Put(root + "b", b"3")])
    last = await store.commit((), [Put(root + "a", b"4")])
    await store.compact(third)
    with pytest.raises(Compacted):
        await store.get(root + "a", first)
    with pytest.raises(Compacted):
        await store.scan(root, first)
    with pytest.raises(Compacted):
        await take(store.watch(root, first), 1)
    with pytest.raises(Compacted):
        await store.compact(first)
    kept = await store.get(root + "a", third)
    assert kept is not None
    assert kept.value == b"2"
    assert [e.revision for e in await take(store.watch(root, third), 1)] == [last]


async def test_a_watch_that_is_up_to_date_survives_a_compaction(store: Store, root: str) -> None:
    start = await store.commit((), [Put(root + "mine/a", b"1")])
    watch = store.watch(root + "mine/", start)
    await store.commit((), [Put(root + "mine/a", b"2")])
    assert len(await take(watch, 1)) == 1
    waiting = asyncio.create_task(take(watch, 1))
    for _ in range(5):
        other = await store.commit((), [Put(root + "other", b"")])
    await store.compact(other)
    await store.commit((), [Put(root + "mine/a", b"3")])
    assert (await waiting)[0].entry is not None


async def test_keys_of_a_lease_go_with_it(store: Store, root: str) -> None:
    lease = await store.grant(30)
    start = await store.commit((), [Put(root + "a", b"", lease), Put(root + "b", b"", lease)])
    entry = await store.get(root + "a")
    assert entry is not None
    assert entry.lease == lease
    assert await store.keep_alive(lease) == 30
    await store.commit((), [Put(root + "b", b"free of it")])
    await store.revoke(lease)
    gone = [event for event in await take(store.watch(root, start), 2) if event.entry is None]
    assert [event.key for event in gone] == [root + "a"]
    assert await store.get(root + "b") is not None
    with pytest.raises(NotFound):
        await store.keep_alive(lease)
    with pytest.raises(NotFound):
        await store.commit((), [Put(root + "c", b"", lease)])
    with pytest.raises(NotFound):
        await store.revoke(lease)


async def test_a_lease_that_nobody_renews_ends(store: Store, root: str) -> None:
    lease = await store.grant(1)
    start = await store.commit((), [Put(root + "a", b"", lease)])
    event = (await take(store.watch(root, start), 1))[0]
    assert (event.key, event.entry) == (root + "a", None)


async def test_a_closed_store_says_so(store: Store, root: str) -> None:
    start = await store.commit((), [Put(root + "a", b"")])
    watch = store.watch(root, start)
    waiting = asyncio.create_task(take(watch, 1))
    await store.get(root + "a")
    await store.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await store.get(root + "a")


async def test_a_store_has_an_identity(store: Store) -> None:
    assert await store.uid() == await store.uid() != 0
