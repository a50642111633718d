"""The GPU memory of parked workers: saved when the GPU is given up, restored when it comes back.

Must never give memory back that was not saved whole, nor drop the only copy of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from inferx._ext import (
    CancelToken,
    DeviceError,
    Gpu,
    HostPool,
    SnapshotError,
    SnapshotStore,
)
from inferx.agent import metrics
from inferx.agent.blob import BlobStore
from inferx.agent.tiers.accountant import Accountant, Tier
from inferx.agent.tiers.jobs import Job
from inferx.agent.tiers.kept import (
    Damaged,
    Kept,
    Region,
    Regions,
    Restored,
    cancelled,
    free_all,
    handles_of,
)
from inferx.errors import (
    InferxError,
    InvalidState,
    NoCapacity,
    NotFound,
    StartFailed,
    Unavailable,
)

log = logging.getLogger("inferx.agent.tiers")

MOVES_AT_ONCE = 4
_MIB = 1 << 20

T = TypeVar("T")


class GpuMemory:
    """Saves into the pinned pool, writes the file behind it, and restores from the hottest copy.

    Ids are a store's: letters, digits, `-` and `_`. One call at a time for each id.
    """

    def __init__(
        self,
        pool: HostPool,
        store: SnapshotStore,
        accountant: Accountant,
        blobs: BlobStore | None = None,
    ) -> None:
        self._pool = pool
        self._store = store
        self._accountant = accountant
        self._blobs = blobs
        self._threads = ThreadPoolExecutor(MOVES_AT_ONCE, thread_name_prefix="tiers")
        self._kept: dict[str, Kept] = {}

    async def save(
        self,
        id: str,
        gpu: Gpu,
        regions: Regions,
        identity: Mapping[str, Any],
        *,
        free: bool = True,
    ) -> None:
        """Keep the memory, then (`free`) free it on the GPU. It is in the pinned pool when there
        is room (others' are demoted for it), and a file is written behind it; else in a file.

        Raises with the reason, the memory untouched, when it cannot be kept at all.
        """
        await self.forget(id)
        mib = {name: region.mib for name, region in regions.items()}
        kept = Kept(str(identity.get("tenant", "")), json.dumps(identity), mib)
        async with kept.lock:
            self._kept[id] = kept
            try:
                if not await self._capture(id, kept, gpu, regions):
                    await self._save_file(id, kept, gpu, regions)
            except BaseException:
                del self._kept[id]
                raise
            if free:
                free_all(gpu, handles_of(regions).values())
            if kept.resident is not None:
                self._write_behind(id, kept)

    async def restore(self, id: str, gpu: Gpu, host: Mapping[str, Any] | None = None) -> Restored:
        """New GPU memory with what was saved; the saved copy stays until `save` or `forget`.

        A copy that cannot be used is dropped, and the next colder one is taken. A file that is
        being written meanwhile is given up and begun again afterwards: a worker that is wanted
        does not wait for its demotion. Raises NotFound, NoCapacity before anything is copied,
        Unavailable with the reasons of all copies; then no GPU memory is kept.
        """
        kept = self._find(id)
        await cancelled(kept.sinking)
        async with kept.lock:
            self._accountant.hit(id)
            await self._stop_writing(kept)
            try:
                return await self._hottest_good(id, kept, gpu, host)
            finally:
                if kept.resident is not None and not self._accountant.has(id, Tier.FILE):
                    self._write_behind(id, kept)

    async def find_again(self, id: str, tenant: str, mib: Mapping[str, int]) -> bool:
        """Enter what a former agent left under this id, on the disk or in the blob store; whether
        there is anything."""
        if id in self._kept:
            return True
        kept = Kept(tenant, "{}", dict(mib))
        found = []
        if id in await asyncio.to_thread(self._store.ids):
            kept.identity = json.dumps(
                json.loads(await asyncio.to_thread(self._store.manifest, id))["identity"]
            )
            found.append(Tier.FILE)
        if self._blobs is not None and id in await self._blobs.ids(tenant):
            found.append(Tier.BLOB)
        for tier in found:
            self._accountant.claim(id, tier, kept.size_bytes)
            self._accountant.settle(id, tier)
            self._kept[id] = kept
        return bool(found)

    async def forget_others(self) -> None:
        """Remove the files that nobody has found again."""
        for id in await asyncio.to_thread(self._store.ids):
            if id not in self._kept:
                log.info("the memory of %s is nobody's any more", id)
                await asyncio.to_thread(self._store.remove, id)

    def hottest(self, id: str) -> Tier | None:
        """The quickest tier that has a copy."""
        return self._accountant.hottest(id)

    @property
    def file_bytes(self) -> int:
        """What all files take."""
        return self._accountant.used_bytes(Tier.FILE)

    def limit_files(self, size_bytes: int) -> None:
        """Bound what files may take from now on."""
        self._accountant.set_limit(Tier.FILE, size_bytes)

    def sink(self, id: str, lowest: Tier) -> None:
        """Begin to give up every copy that is hotter than `lowest`; a restore ends that."""
        kept = self._find(id)
        if kept.sinking is None or kept.sinking.done():
            kept.sinking = asyncio.create_task(self._sink(id, kept, lowest), name=f"sink {id}")

    async def _sink(self, id: str, kept: Kept, lowest: Tier) -> None:
        try:
            for tier in (Tier.PINNED, Tier.FILE):
                if tier < lowest:
                    await self.demote(id, tier)
        except InferxError as error:
            log.warning("the memory of %s stays in tier %s: %s", id, tier.name, error.message)

    async def demote(self, id: str, tier: Tier) -> None:
        """Give the copy in `tier` up; what has no colder one is written there first."""
        kept = self._find(id)
        async with kept.lock:
            if self._accountant.has(id, tier):
                await self._demote(id, kept, tier)

    async def forget(self, id: str) -> None:
        """Drop every copy; nothing there is fine."""
        kept = self._kept.get(id)
        if kept is None:
            return
        await cancelled(kept.sinking)
        async with kept.lock:
            await self._stop_writing(kept)
            kept.resident = None
            if self._accountant.has(id, Tier.FILE):
                await asyncio.to_thread(self._store.remove, id)
            if self._accountant.has(id, Tier.BLOB) and self._blobs is not None:
                await self._blobs.remove(kept.tenant, id)
            for tier in Tier:
                if self._accountant.has(id, tier):
                    self._accountant.drop(id, tier)
            self._kept.pop(id, None)

    async def settled(self) -> None:
        """Wait until every copy is where it is meant to be, or that was given up."""
        sinking = [kept.sinking for kept in self._kept.values() if kept.sinking is not None]
        await asyncio.gather(*sinking, return_exceptions=True)
        writing = [kept.writing for kept in self._kept.values() if kept.writing is not None]
        await asyncio.gather(*writing, return_exceptions=True)

    async def close(self) -> None:
        """Stop what is under way and end the threads; files stay."""
        for kept in self._kept.values():
            await cancelled(kept.sinking)
            await self._stop_writing(kept)
            kept.resident = None
        await asyncio.to_thread(self._threads.shutdown)

    # ---- moves; the caller holds the item's lock ----

    async def _capture(self, id: str, kept: Kept, gpu: Gpu, regions: Regions) -> bool:
        """Whether the memory is in the pool now; False when the pool has no room for it."""
        try:
            await self._room(Tier.PINNED, kept.pinned_bytes, leave_out=id)
            self._accountant.claim(id, Tier.PINNED, kept.pinned_bytes)
        except NoCapacity:
            return False
        try:
            kept.resident = await self._run(lambda _: self._pool.capture(gpu, handles_of(regions)))
        except BaseException as error:
            self._accountant.drop(id, Tier.PINNED)
            if isinstance(error, NoCapacity):
                return False
            raise
        # Chunks of zeros take no room in the pool.
        self._accountant.settle(id, Tier.PINNED, kept.resident.host_mib * _MIB)
        return True

    async def _save_file(self, id: str, kept: Kept, gpu: Gpu, regions: Regions) -> None:
        await self._room(Tier.FILE, kept.size_bytes, leave_out=id)
        self._accountant.claim(id, Tier.FILE, kept.size_bytes)
        try:
            save = self._store.save
            await self._run(
                lambda token: save(
                    id, gpu, handles_of(regions), identity=kept.identity, cancel=token
                )
            )
        except BaseException:
            self._accountant.drop(id, Tier.FILE)
            raise
        self._accountant.settle(id, Tier.FILE)

    def _write_behind(self, id: str, kept: Kept) -> None:
        """Begin to write the file of a resident copy, if there is room for it."""
        resident = kept.resident
        if resident is None or (kept.writing is not None and not kept.writing.done()):
            return
        try:
            self._accountant.claim(id, Tier.FILE, kept.size_bytes)
        except NoCapacity:
            return  # the pinned copy is kept; room is made when it has to leave
        # The thread's hold on the copy ends with its call, so that its slots are free when the
        # job has ended and the copy is given up.
        held = [resident]
        write = self._store.save_resident
        kept.job = Job(
            self._threads,
            lambda token: write(id, held.pop(), identity=kept.identity, cancel=token),
        )
        kept.writing = asyncio.create_task(self._written(id, kept.job), name=f"write {id}")

    async def _written(self, id: str, job: Job[None]) -> None:
        error = await job.ended()
        if error is None:  # perhaps it was told to stop when it was through already
            self._accountant.settle(id, Tier.FILE)
            return
        self._accountant.drop(id, Tier.FILE)
        if not job.cancelled:
            log.error("the memory of %s has no file: %s", id, error)

    async def _stop_writing(self, kept: Kept) -> None:
        if kept.job is not None and kept.writing is not None:
            kept.job.cancel()
            await asyncio.wait([kept.writing])
            kept.job = kept.writing = None

    async def _hottest_good(
        self, id: str, kept: Kept, gpu: Gpu, host: Mapping[str, Any] | None
    ) -> Restored:
        """From the hottest copy that can be used; one that is damaged is dropped."""
        reasons = []
        for tier in (tier for tier in Tier if self._accountant.has(id, tier)):
            try:
                handles = await self._from(tier, id, kept, gpu, host)
            except (Unavailable, StartFailed, NotFound) as error:
                log.error("tier %s does not give the memory of %s: %s", tier.name, id, error)
                reasons.append(f"{tier.name}: {error.message}")
                metrics.tier_failed(tier.name)
                if isinstance(error, Damaged | StartFailed | NotFound):
                    await self._discard(id, kept, tier)
                continue
            regions = {name: Region(one, kept.mib[name]) for name, one in handles.items()}
            return Restored(regions, tier)
        if not reasons:
            raise NotFound(f"nothing is kept as {id}")
        raise Unavailable(f"no copy of {id} can be used: {'; '.join(reasons)}")

    async def _from(
        self, tier: Tier, id: str, kept: Kept, gpu: Gpu, host: Mapping[str, Any] | None
    ) -> dict[str, int]:
        """The memory from its copy in one tier; what is in the blob store comes to a file first."""
        if tier is Tier.BLOB:
            await self._fetch(id, kept)
            return await self._from(Tier.FILE, id, kept, gpu, host)
        self._accountant.pin(id, tier)
        try:
            return await self._run(
                lambda token: self._restore(tier, id, kept, gpu, host, token),
                undo=lambda found: free_all(gpu, found.values()),
            )
        finally:
            self._accountant.unpin(id, tier)

    async def _discard(self, id: str, kept: Kept, tier: Tier) -> None:
        """Remove a copy that is of no use."""
        if tier is Tier.PINNED:
            kept.resident = None
        elif tier is Tier.FILE:
            await asyncio.to_thread(self._store.remove, id)
        elif self._blobs is not None:
            await self._blobs.remove(kept.tenant, id)
        self._accountant.drop(id, tier)

    def _restore(
        self,
        tier: Tier,
        id: str,
        kept: Kept,
        gpu: Gpu,
        host: Mapping[str, Any] | None,
        token: CancelToken,
    ) -> dict[str, int]:
        if tier is Tier.PINNED and kept.resident is not None:
            return kept.resident.restore(gpu, cancel=token)[0]
        text = json.dumps(host) if host else None
        return self._store.restore(id, gpu, host=text, cancel=token)[0]

    async def _demote(self, id: str, kept: Kept, tier: Tier) -> None:
        if tier is Tier.PINNED:
            if kept.writing is not None:
                await asyncio.wait([kept.writing])
            if not self._accountant.has(id, Tier.FILE):
                await self._room(Tier.FILE, kept.size_bytes, leave_out=id)
                self._write_behind(id, kept)
                if kept.writing is not None:
                    await asyncio.wait([kept.writing])
            if not self._accountant.has(id, Tier.FILE):
                raise NoCapacity(f"the memory of {id} cannot leave the pinned pool: it has no file")
            kept.resident = None
        elif tier is Tier.FILE:
            await self._stop_writing(kept)
            if not (self._accountant.has(id, Tier.BLOB) or self._accountant.has(id, Tier.PINNED)):
                await self._offload(id, kept)
            await asyncio.to_thread(self._store.remove, id)
        else:
            raise InvalidState(f"nothing is colder than tier {tier.name}")
        self._accountant.drop(id, tier, evicted=True)

    async def _offload(self, id: str, kept: Kept) -> None:
        if self._blobs is None:
            raise NoCapacity(f"the file of {id} is its only copy, and there is no blob store")
        self._accountant.claim(id, Tier.BLOB, kept.size_bytes)
        try:
            await self._blobs.upload(self._store, id)
        except BaseException:
            self._accountant.drop(id, Tier.BLOB)
            raise
        self._accountant.settle(id, Tier.BLOB)

    async def _fetch(self, id: str, kept: Kept) -> None:
        if self._blobs is None:
            raise NotFound(f"{id} is in no tier of this node")
        await self._room(Tier.FILE, kept.size_bytes, leave_out=id)
        self._accountant.claim(id, Tier.FILE, kept.size_bytes)
        try:
            await self._blobs.download(self._store, kept.tenant, id)
        except BaseException:
            self._accountant.drop(id, Tier.FILE)
            raise
        self._accountant.settle(id, Tier.FILE)

    async def _room(self, tier: Tier, needed_bytes: int, leave_out: str) -> None:
        """Demote what is least worth until so many bytes are free; NoCapacity when that fails."""
        for victim in self._accountant.victims(tier, needed_bytes):
            kept = self._kept.get(victim)
            # One that is being moved is in use, whatever the accountant says of its pins.
            if victim == leave_out or kept is None or kept.lock.locked():
                continue
            async with kept.lock:
                if self._accountant.has(victim, tier):
                    await self._demote(victim, kept, tier)

    # ---- inside ----

    def _find(self, id: str) -> Kept:
        kept = self._kept.get(id)
        if kept is None:
            raise NotFound(f"nothing is kept as {id}")
        return kept

    async def _run(
        self, work: Callable[[CancelToken], T], undo: Callable[[T], None] | None = None
    ) -> T:
        """A move to its end, its errors as this project's; `undo` is for one that was through when
        its waiter was cancelled."""
        job = Job(self._threads, work)
        try:
            return await job
        except asyncio.CancelledError:
            if undo is not None and await job.ended() is None:
                undo(job.result)
            raise
        except MemoryError as error:
            raise NoCapacity(str(error)) from error
        except SnapshotError as error:
            raise Damaged(f"memory is not what was saved: {error}") from error
        except (OSError, DeviceError) as error:
            raise Unavailable(f"memory could not be moved: {error}") from error
