"""The node's snapshots: taken once per revision, published whole, checked before each use.

Must never hand out an image that is damaged, of another function, or of another kind of machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferx._ext import SnapshotError, SnapshotStore, SoftDevice
from inferx.agent import metrics
from inferx.agent.entries import Draft, Entry, Function, describe, describe_failure, memory_ids
from inferx.agent.gpuside import GpuSide, Lost, Saved
from inferx.agent.identity import Subject, identity_of, own_differences
from inferx.agent.runtimes.protocol import Checkpoints, Worker
from inferx.agent.spec import parse_launch
from inferx.agent.tiers.memory import GpuMemory
from inferx.domain.cluster import Snapshot
from inferx.errors import (
    BadRequest,
    InferxError,
    NotFound,
    StartFailed,
    Unavailable,
)

log = logging.getLogger("inferx.agent.snapshots")

SAVE_TRIES_MAX = 3  # of a revision that cannot be saved; then it always starts from nothing
RESTORE_FAILURES_MAX = 2  # then the snapshot is removed, and a new one is taken
IMAGES = "criu"
_MIB = 1 << 20


class Snapshots:
    """`budget_mb` (0 = no limit but the disk) bounds what they take; the least recently used goes
    first. `report` hears of each change."""

    def __init__(
        self,
        folder: Path,
        checkpoints: Checkpoints,
        budget_mb: int,
        report: Callable[[Function, Snapshot | None], None],
        node: str,
        memory: GpuMemory | None = None,
    ) -> None:
        self._memory = memory
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._drafts = folder / "drafts"
        shutil.rmtree(self._drafts, ignore_errors=True)  # of an agent that died while it saved
        self._drafts.mkdir(mode=0o700)
        self._store = SnapshotStore(folder / "store")
        self._checkpoints = checkpoints
        self._budget_bytes = budget_mb * _MIB
        self._report = report
        self._node = node
        self._device = SoftDevice(2)  # the store's own: these snapshots are files alone
        self._entries: dict[Function, Entry] = {}
        self._saving: set[Function] = set()
        self._tries: Counter[tuple[Function, int]] = Counter()
        self._publishing: set[asyncio.Task[None]] = set()
        for damage in (*self._store.quarantined.items(), *self._store.skipped.items()):
            log.error("snapshot %s is set aside: %s", *damage)
        for id in self._store.ids():
            self._enter(id)

    # ---- taking ----

    def wants(self, subject: Subject, permitted: bool | None = None) -> bool:
        """Whether a snapshot of this revision should be taken. Where the scheduler says whether it
        may be (`permitted`), it also counts the failures and backs off."""
        entry = self._entries.get(subject.function)
        has = entry is not None and entry.revision == subject.key.fprevision
        tried = self._tries[subject.function, subject.key.fprevision]
        may = tried < SAVE_TRIES_MAX if permitted is None else permitted
        return may and not has and subject.function not in self._saving

    async def save(self, subject: Subject, worker: Worker, gpu: GpuSide | None = None) -> None:
        """Write the worker's image; it is published in the background, the worker runs on.

        Raises InferxError with the reason when it cannot be saved; the worker runs on all the
        same, except after `Lost`.
        """
        self._tries[subject.function, subject.key.fprevision] += 1
        self._saving.add(subject.function)
        try:
            draft, saved = await self._draft(subject, worker, gpu)
        except BaseException as error:
            metrics.saved("not saved")
            self._saving.discard(subject.function)
            if isinstance(error, InferxError):
                self._show_failure(subject, error)
            raise
        task = asyncio.create_task(self._publish(subject, draft, saved))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def settled(self) -> None:
        """Wait until everything that was saved is published, or given up."""
        await asyncio.gather(*self._publishing)

    async def _draft(
        self, subject: Subject, worker: Worker, gpu: GpuSide | None
    ) -> tuple[Path, Draft]:
        launch = parse_launch(subject.funcspec)
        identity = identity_of(subject, await asyncio.to_thread(self._checkpoints.identity, launch))
        draft = self._drafts / uuid.uuid4().hex
        draft.mkdir(mode=0o700)
        begun = time.monotonic()
        id = uuid.uuid4().hex
        try:
            if gpu is None:
                await self._checkpoints.save(worker, draft)
                memory = None
            else:
                memory = await self._save_off_gpu(f"snap-{id}", identity, worker, gpu, draft)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, draft, True)
            raise
        return draft, Draft(id, identity, memory, round((time.monotonic() - begun) * 1000))

    async def _save_off_gpu(
        self, base: str, identity: dict[str, Any], worker: Worker, gpu: GpuSide, draft: Path
    ) -> Saved | None:
        """An image holds nothing of a GPU: the worker leaves it for that, and comes back."""
        memory: Saved | None = None
        try:
            try:
                await gpu.leave(worker, "snapshot")
                await self.make_room(gpu.saved_bytes)
                memory = await gpu.keep(base, identity, free=False)
                await self._checkpoints.save(worker, draft)
            finally:
                if not worker.exited.done():
                    try:
                        await gpu.come_back(worker)
                    except InferxError as error:
                        raise Lost(f"it did not go on when it was saved: {error.message}") from (
                            error
                        )
        except BaseException:
            await self._forget_memory(memory)
            raise
        return memory

    async def _publish(self, subject: Subject, draft: Path, saved: Draft) -> None:
        id = saved.id
        try:
            files, size_bytes = await asyncio.to_thread(_files_of, draft)
            await self.make_room(size_bytes)
            await asyncio.to_thread(
                self._store.save,
                id,
                self._device,
                {},
                identity=json.dumps(saved.identity),
                extra=json.dumps(saved.extra),
                files=files,
                created_unix_ms=time.time_ns() // 1_000_000,
            )
        except (OSError, SnapshotError, InferxError) as error:
            metrics.saved("not kept")
            await self._forget_memory(saved.memory)
            log.error("snapshot of %s is not kept: %s", "/".join(subject.function), error)
            self._show_failure(subject, error)
            return
        finally:
            self._saving.discard(subject.function)
            await asyncio.to_thread(shutil.rmtree, draft, True)
        entry = self._read(id)
        if entry is None:
            return
        try:  # read back now what was written, so that the first restore need not wait for it
            await asyncio.to_thread(self._check, entry)
        except (OSError, SnapshotError) as error:
            log.error("snapshot of %s was not written well: %s", "/".join(subject.function), error)
            await self._remove(entry)
            self._show_failure(subject, error)
            return
        older = self._entries.get(subject.function)
        self._entries[subject.function] = entry
        if older is not None:
            await self._remove(older)
        metrics.saved("published")
        log.info("snapshot %s of %s is published", id, "/".join(subject.function))
        self._show(entry)

    # ---- using ----

    async def find(self, subject: Subject) -> Path | None:
        """The images of a snapshot that may be restored for this pod; None when there is none.

        Raises StartFailed, naming the reason, for one that is there and must not be used; a
        damaged one is removed.
        """
        entry = self._entries.get(subject.function)
        if entry is None or entry.revision != subject.key.fprevision:
            return None
        launch = parse_launch(subject.funcspec)
        here = identity_of(subject, await asyncio.to_thread(self._checkpoints.identity, launch))
        try:
            manifest = json.loads(await asyncio.to_thread(self._store.manifest, entry.id))
            differences = self._store.differences(entry.id, json.dumps(here))
            differences += own_differences(manifest["identity"], here)
            if differences:
                metrics.fell_back("foreign")
                await self._remove(entry)
                raise StartFailed(f"the snapshot is not for here: {'; '.join(differences)}")
            await asyncio.to_thread(self._check, entry)
        except (OSError, SnapshotError) as error:
            metrics.fell_back("damaged")
            await self._remove(entry)
            raise StartFailed(f"the snapshot is damaged: {error}") from error
        path = self._store.path(entry.id)
        os.utime(path)  # the time of its last use, over restarts
        return path / IMAGES

    def memory_of(self, subject: Subject) -> Saved | None:
        """The GPU memory that belongs to the snapshot of `find`."""
        entry = self._entries.get(subject.function)
        return entry.memory if entry is not None else None

    async def find_memory(self) -> None:
        """After a start: look for the GPU memory of what is on the disk; without it a snapshot is
        of no use."""
        for entry in self.all:
            try:
                for id, mib in entry.memory_ids().items():
                    tenant = entry.function[0]
                    if self._memory is None or not await self._memory.find_again(id, tenant, mib):
                        raise NotFound(f"its GPU memory {id} is gone")
            except InferxError as error:
                log.error("snapshot %s cannot be used: %s", entry.id, error.message)
                await self._remove(entry)

    def used(self, subject: Subject) -> None:
        """A worker from its snapshot has proved itself."""
        entry = self._entries.get(subject.function)
        if entry is not None:
            entry.restores += 1
            entry.failures, entry.reason = 0, ""
            self._show(entry)

    async def failed(self, subject: Subject, error: InferxError) -> None:
        """A worker from its snapshot did not get ready; after some of that a new one is taken."""
        metrics.fell_back("restore")
        entry = self._entries.get(subject.function)
        if entry is None:
            return
        entry.failures += 1
        entry.reason = error.message.partition("\n")[0]
        if entry.failures >= RESTORE_FAILURES_MAX:
            await self._remove(entry)
        else:
            self._show(entry)

    async def forget(self, funckey: str) -> None:
        """Remove what is kept of `tenant/namespace/function[/revision]`; nothing there is fine."""
        parts = funckey.split("/")
        if len(parts) not in (3, 4) or not all(parts) or (parts[3:] and not parts[3].isdigit()):
            raise BadRequest(f"funckey: {funckey!r} is not tenant/namespace/function[/revision]")
        function = (parts[0], parts[1], parts[2])
        entry = self._entries.get(function)
        if entry is None:
            self._report(function, None)  # why there is none is not worth a word any more
        elif not parts[3:] or entry.revision == int(parts[3]):
            await self._remove(entry)

    @property
    def all(self) -> list[Entry]:
        """All that are published."""
        return list(self._entries.values())

    # ---- inside ----

    def _check(self, entry: Entry) -> None:
        """Read and compare every byte, unless no file has changed since that was last done."""
        now = _fingerprint(self._store.path(entry.id))
        if now != entry.checked:
            self._store.verify(entry.id)
            entry.checked = now

    def _enter(self, id: str) -> None:
        """Enter a snapshot that was found on the disk."""
        entry = self._read(id)
        if entry is None:
            return
        known = self._entries.get(entry.function)
        if known is not None:  # left by an agent that died before it removed the older one
            older = min(known, entry, key=lambda one: one.created_ms)
            self._store.remove(older.id)
            entry = known if older is entry else entry
        self._entries[entry.function] = entry
        self._show(entry)

    def _read(self, id: str) -> Entry | None:
        try:
            manifest = json.loads(self._store.manifest(id))
        except (OSError, SnapshotError) as error:
            log.error("snapshot %s cannot be used: %s", id, error)
            return None
        identity = manifest["identity"]
        function = (identity["tenant"], identity["namespace"], identity["function"])
        gpu = manifest.get("gpu_memory")
        return Entry(
            id=id,
            memory=Saved(**gpu) if gpu else None,
            function=function,
            revision=int(identity["revision"]),
            size_bytes=sum(file["len"] for file in manifest["files"]),
            created_ms=int(manifest["created_unix_ms"]),
        )

    async def make_room(self, needed_bytes: int) -> None:
        """Remove what was used least recently until so much fits into the budget.

        Raises Unavailable for more than the whole budget, with nothing removed.
        """
        if not self._budget_bytes:
            return
        if needed_bytes > self._budget_bytes:
            raise Unavailable(
                f"it takes {needed_bytes // _MIB} MB, snapshotBudgetMB is"
                f" {self._budget_bytes // _MIB}"
            )
        oldest_first = sorted(self._entries.values(), key=lambda entry: self._used_at(entry))
        for entry in oldest_first:
            if self._taken_bytes() + needed_bytes <= self._budget_bytes:
                return
            log.info("snapshot %s of %s makes room", entry.id, "/".join(entry.function))
            await self._remove(entry)

    def _taken_bytes(self) -> int:
        """All that is on the disk here: images, and GPU memory of snapshots and parked pods."""
        images = sum(entry.size_bytes for entry in self._entries.values())
        return images + (self._memory.file_bytes if self._memory is not None else 0)

    def _account(self) -> None:
        """Tell what the images take, so that GPU memory has the rest of the budget."""
        images = sum(entry.size_bytes for entry in self._entries.values())
        metrics.kept(self._taken_bytes())
        if self._memory is not None and self._budget_bytes:
            self._memory.limit_files(max(0, self._budget_bytes - images))

    async def _forget_memory(self, memory: Saved | None) -> None:
        if memory is not None and self._memory is not None:
            for id in memory_ids(memory):
                await self._memory.forget(id)

    def _used_at(self, entry: Entry) -> float:
        try:
            return self._store.path(entry.id).stat().st_mtime
        except OSError:
            return 0.0

    async def _remove(self, entry: Entry) -> None:
        if self._entries.get(entry.function) is entry:
            del self._entries[entry.function]
        try:
            await asyncio.to_thread(self._store.remove, entry.id)
        except (OSError, SnapshotError) as error:
            log.error("snapshot %s cannot be removed: %s", entry.id, error)
        try:
            await self._forget_memory(entry.memory)
        except (OSError, SnapshotError, InferxError) as error:
            log.error("GPU memory of snapshot %s cannot be removed: %s", entry.id, error)
        self._account()
        if entry.function not in self._entries:
            self._report(entry.function, None)

    def _show_failure(self, subject: Subject, error: Exception) -> None:
        """Show that there is no snapshot of this revision, how often it was tried, and why."""
        tries = self._tries[subject.function, subject.key.fprevision]
        self._report(subject.function, describe_failure(subject, self._node, tries, error))

    def _show(self, entry: Entry) -> None:
        self._account()
        self._report(entry.function, describe(entry, self._node))


def _files_of(draft: Path) -> tuple[dict[str, Path], int]:
    """What was saved, by its path in the snapshot, and how much it is in bytes."""
    files = {f"{IMAGES}/{path.name}": path for path in draft.iterdir()}
    return files, sum(path.stat().st_size for path in files.values())


def _fingerprint(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Changes with every write to a file of the folder that goes through its file system."""
    return tuple(
        (str(path.relative_to(folder)), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (status := path.stat())
    )
