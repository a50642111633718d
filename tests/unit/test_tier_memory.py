"""Workers' memory through the tiers on a simulated GPU: parked, resumed, demoted.

Must never leave GPU memory, pool slots, descriptors or files behind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from inferx._ext import HostPool, SnapshotStore, SoftDevice
from inferx.agent.blob import BlobStore, open_blob_store
from inferx.agent.tiers.accountant import Accountant, Cost, Tier
from inferx.agent.tiers.kept import Region
from inferx.agent.tiers.memory import GpuMemory
from inferx.domain.nodeconfig import BlobConfig
from inferx.errors import NoCapacity, NotFound, Unavailable
from tests.helpers.vram_worker import VramWorker

MIB = 1 << 20
COSTS = {tier: Cost(0.1 * tier, 1e10 / (1 + tier)) for tier in Tier}
WHO = {"tenant": "t", "function": "f"}


class Node:
    """A GPU of 64 MiB, a pool of 16 MiB and a disk of 48 MiB."""

    def __init__(self, folder: Path, pool_mib: int = 16, file_mib: int = 48) -> None:
        self.gpu = SoftDevice(64)
        self.pool = HostPool(self.gpu, pool_mib)
        self.store = SnapshotStore(folder / "store")
        limits = {Tier.PINNED: pool_mib * MIB, Tier.FILE: file_mib * MIB}
        self.books = Accountant(limits, COSTS, cold_s=60.0)
        shared = {"path": str(folder / "shared")}
        blobs = open_blob_store(BlobConfig(enable=True, type="nfs", options=shared))
        assert isinstance(blobs, BlobStore)
        self.blobs = blobs
        self.memory = GpuMemory(self.pool, self.store, self.books, self.blobs)

    def worker(self, content: bytes, mib: int = 8) -> dict[str, Region]:
        handle = self.gpu.allocate(mib)
        descriptor = self.gpu.export(handle)
        os.pwrite(descriptor, content * (mib * MIB // len(content)), 0)
        os.close(descriptor)
        return {"weights": Region(handle, mib)}

    def content(self, regions: dict[str, Region]) -> bytes:
        region = regions["weights"]
        descriptor = self.gpu.export(region.handle)
        data = os.pread(descriptor, region.mib * MIB, 0)
        os.close(descriptor)
        return data

    async def back(self, id: str) -> bytes:
        """Restores, reads and frees."""
        regions = (await self.memory.restore(id, self.gpu)).regions
        data = self.content(regions)
        for region in regions.values():
            self.gpu.free(region.handle)
        return data[:4]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def one(**sizes: int) -> Node:
        nodes.append(Node(tmp_path, **sizes))
        return nodes[-1]

    yield one
    for node in nodes:
        await node.memory.close()
        node.books.check()


async def test_a_parked_worker_has_no_gpu_and_a_resumed_one_all_of_its_memory(
    make: Callable[..., Node],
) -> None:
    node = make()
    worker = VramWorker()
    try:
        handle = node.gpu.allocate(8)
        worker.map(node.gpu.export(handle))
        written = worker.fill(seed=7)
        worker.unmap()
        await node.memory.save("pod", node.gpu, {"vram": Region(handle, 8)}, WHO)
        assert node.gpu.used_mib == 0
        # Somebody else has the whole GPU meanwhile.
        other = node.gpu.allocate(64)
        with pytest.raises(NoCapacity):
            await node.memory.restore("pod", node.gpu)
        node.gpu.free(other)
        regions = (await node.memory.restore("pod", node.gpu)).regions
        worker.map(node.gpu.export(regions["vram"].handle))
        assert worker.digest() == written
    finally:
        worker.end()


async def test_memory_comes_back_from_every_tier(make: Callable[..., Node]) -> None:
    node = make()
    await node.memory.save("pod", node.gpu, node.worker(b"abcd"), WHO)
    assert (node.gpu.used_mib, node.pool.free_mib) == (0, 8)
    assert await node.back("pod") == b"abcd"
    await node.memory.settled()
    assert node.books.has("pod", Tier.FILE)
    await node.memory.demote("pod", Tier.PINNED)
    assert (node.books.hottest("pod"), node.pool.free_mib) == (Tier.FILE, 16)
    assert await node.back("pod") == b"abcd"
    await node.memory.demote("pod", Tier.FILE)
    assert (node.books.hottest("pod"), node.store.ids()) == (Tier.BLOB, [])
    assert await node.back("pod") == b"abcd"
    await node.memory.forget("pod")
    await node.memory.forget("pod")
    assert (node.pool.free_mib, node.store.ids(), await node.blobs.ids("t")) == (16, [], [])
    with pytest.raises(NotFound):
        await node.memory.restore("pod", node.gpu)
    assert node.gpu.used_mib == 0


async def test_what_is_worth_least_makes_room(make: Callable[..., Node]) -> None:
    node = make()
    for id, content in (("one", b"1111"), ("two", b"2222")):
        await node.memory.save(id, node.gpu, node.worker(content), WHO)
    assert await node.back("one") == b"1111"
    await node.memory.save("three", node.gpu, node.worker(b"3333"), WHO)
    assert [node.books.hottest(id) for id in ("one", "two", "three")] == [
        Tier.PINNED, Tier.FILE, Tier.PINNED,
    ]  # fmt: skip
    assert await node.back("two") == b"2222"
    # Too big for the pool: straight to a file.
    await node.memory.save("big", node.gpu, node.worker(b"bbbb", mib=24), WHO)
    assert node.books.hottest("big") is Tier.FILE
    assert await node.back("big") == b"bbbb"


async def test_a_worker_that_is_wanted_does_not_wait_for_its_demotion(
    make: Callable[..., Node],
) -> None:
    node = make()
    for round in range(20):
        content = bytes([65 + round]) * 4
        await node.memory.save("pod", node.gpu, node.worker(content), WHO)
        await asyncio.sleep(0.002 * (round % 4))  # at different points of the write behind
        assert await node.back("pod") == content
    await node.memory.settled()
    assert node.store.ids() == ["pod"]
    node.store.verify("pod")


async def test_two_restores_at_once_and_others_beside_them(make: Callable[..., Node]) -> None:
    node = make()
    for id, content in (("one", b"1111"), ("two", b"2222")):
        await node.memory.save(id, node.gpu, node.worker(content), WHO)
    asked = ["one", "one", "two", "one", "two"]
    found = await asyncio.gather(*(node.back(id) for id in asked))
    assert found == [{"one": b"1111", "two": b"2222"}[id] for id in asked]
    assert node.gpu.used_mib == 0


async def test_memory_that_cannot_be_kept_stays_where_it_is(make: Callable[..., Node]) -> None:
    node = make(pool_mib=8, file_mib=8)
    regions = node.worker(b"xxxx", mib=24)
    with pytest.raises(NoCapacity, match="FILE"):
        await node.memory.save("pod", node.gpu, regions, WHO)
    assert node.content(regions)[:4] == b"xxxx"
    assert (node.store.ids(), node.pool.free_mib) == ([], 8)


async def test_damage_on_the_disk_is_refused_with_the_reason(make: Callable[..., Node]) -> None:
    node = make()
    await node.memory.save("pod", node.gpu, node.worker(os.urandom(4096)), WHO)
    await node.memory.settled()
    await node.memory.demote("pod", Tier.PINNED)
    with (node.store.path("pod") / "data-000.seg").open("r+b") as segment:
        segment.seek(1000)
        byte = segment.read(1)
        segment.seek(1000)
        segment.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Unavailable, match="crc32c"):
        await node.memory.restore("pod", node.gpu)
    assert node.gpu.used_mib == 0


async def test_a_cancelled_restore_stops_and_keeps_nothing(
    make: Callable[..., Node], tmp_path: Path
) -> None:
    node = make()
    await node.memory.save("pod", node.gpu, node.worker(b"abcd"), WHO)
    slow = SoftDevice(64, mib_per_second=4)
    task = asyncio.create_task(node.memory.restore("pod", slow))
    async with asyncio.timeout(30):
        while slow.used_mib == 0:  # noqa: ASYNC110 (a device has no event)
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.used_mib == 0
    assert await node.back("pod") == b"abcd"


async def test_a_thousand_cycles_leave_nothing_behind(make: Callable[..., Node]) -> None:
    node = make(file_mib=0)  # no file behind: the cycles are of the GPU and the pool
    regions = node.worker(b"abcd", mib=2)

    def held() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") // MIB

    for cycle in range(1000):
        if cycle == 100:
            descriptors, resident_mib = held()
        await node.memory.save("pod", node.gpu, regions, WHO)
        regions = dict((await node.memory.restore("pod", node.gpu)).regions)
    assert node.content(regions)[:4] == b"abcd"
    now, now_mib = held()
    assert now <= descriptors + 2
    assert now_mib <= resident_mib + 32
    assert (node.gpu.used_mib, node.pool.free_mib) == (2, 8)
