"""The embedded store: one SQLite file, one thread that touches it, watches fed from its history.

Must never block the event loop, and never lose a committed write.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from inferx.errors import InferxError, NotFound, Unavailable
from inferx.store.protocol import Entry, Event, Guard, Op
from inferx.store.sqlite_file import SqliteFile

_T = TypeVar("_T")
_REVOKE_RETRY_S = 1.0
_log = logging.getLogger(__name__)


class _Watcher:
    """One watch: how far it has read, and whether something new may be there for it.

    Events are read from the file's history, so a slow watcher costs no memory.
    """

    def __init__(self, prefix: str, revision: int) -> None:
        self.prefix = prefix
        self.revision = revision
        self.wake = asyncio.Event()
        self.wake.set()  # there may be history to read
        self.reading = False

    def tell(self, revision: int, keys: Sequence[str]) -> None:
        """A commit happened; one that is not for an idle watcher just moves it forward."""
        if any(key.startswith(self.prefix) for key in keys):
            self.wake.set()
        elif not self.reading and not self.wake.is_set():
            self.revision = max(self.revision, revision)


class EmbeddedStore:
    """`protocol.Store` in a file; made by `await EmbeddedStore.open(path)`."""

    def __init__(self, file: SqliteFile, executor: ThreadPoolExecutor) -> None:
        self._file = file
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._watchers: set[_Watcher] = set()
        self._deadlines: dict[int, float] = {}
        self._ttls: dict[int, float] = {}
        self._lease_change = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> EmbeddedStore:
        """Open or create the file. `InvalidState` when another process has it open."""
        executor = ThreadPoolExecutor(1, thread_name_prefix="store")
        loop = asyncio.get_running_loop()
        try:
            # SQLite wants to be used where it was opened, hence in the worker thread.
            file = await loop.run_in_executor(executor, SqliteFile, path)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        store = cls(file, executor)
        for lease, ttl_ms in (await store._do(file.leases)).items():
            store._renewed(lease, ttl_ms / 1000)  # the time away does not count against a lease
        store._reaper = asyncio.create_task(store._reap(), name="store-leases")
        return store

    async def _do(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise Unavailable("the store is closed")
        return await self._loop.run_in_executor(self._executor, work)

    async def _write(self, work: Callable[[], tuple[int, list[str]]]) -> int:
        def write() -> int:
            before = self._file.revision
            try:
                revision, keys = work()
            except BaseException:
                if self._file.revision != before:  # what failed came after a commit
                    self._loop.call_soon_threadsafe(self._wake_all)
                raise
            if keys:  # told from here, so that a cancelled caller cannot silence the watchers
                self._loop.call_soon_threadsafe(self._tell, revision, keys)
            return revision

        return await self._do(write)

    def _tell(self, revision: int, keys: list[str]) -> None:
        for watcher in self._watchers:
            watcher.tell(revision, keys)

    def _wake_all(self) -> None:
        """Something was committed, and what is not known: they all look."""
        for watcher in self._watchers:
            watcher.wake.set()

    async def get(self, key: str, revision: int = 0) -> Entry | None:
        """See `protocol.Store`."""
        return await self._do(lambda: self._file.get(key, revision))

    async def scan(self, prefix: str, revision: int = 0) -> tuple[list[Entry], int]:
        """See `protocol.Store`."""
        return await self._do(lambda: self._file.scan(prefix, revision))

    async def commit(self, guards: Sequence[Guard], ops: Sequence[Op]) -> int:
        """See `protocol.Store`."""
        return await self._write(lambda: self._file.commit(guards, ops))

    async def watch(self, prefix: str, revision: int) -> AsyncIterator[list[Event]]:
        """See `protocol.Store`."""
        watcher = _Watcher(prefix, revision)
        self._watchers.add(watcher)
        try:
            while True:
                await watcher.wake.wait()
                watcher.reading = True
                watcher.wake.clear()
                after = watcher.revision
                events, watcher.revision = await self._do(
                    lambda after=after: self._file.changes(prefix, after)  # type: ignore[misc]
                )
                watcher.reading = False
                if events:
                    watcher.wake.set()  # there may be more than one read's worth
                    yield events
        finally:
            self._watchers.discard(watcher)

    async def grant(self, ttl_s: float) -> int:
        """See `protocol.Store`."""
        lease = await self._do(lambda: self._file.grant(max(1, round(ttl_s * 1000))))
        self._renewed(lease, ttl_s)
        return lease

    def _renewed(self, lease: int, ttl_s: float) -> None:
        self._ttls[lease] = ttl_s
        self._deadlines[lease] = time.monotonic() + ttl_s
        self._lease_change.set()

    async def keep_alive(self, lease: int) -> float:
        """See `protocol.Store`."""
        if self._closed:
            raise Unavailable("the store is closed")
        if lease not in self._deadlines:
            raise NotFound(f"lease {lease} has ended")
        self._renewed(lease, self._ttls[lease])
        return self._ttls[lease]

    async def revoke(self, lease: int) -> None:
        """See `protocol.Store`."""
        deadline = self._deadlines.pop(lease, None)
        if deadline is None:
            raise NotFound(f"lease {lease} has ended")
        try:
            await self._write(lambda: self._file.revoke(lease))
        except InferxError:
            self._deadlines[lease] = deadline
            raise
        del self._ttls[lease]

    async def _reap(self) -> None:
        """End leases whose time is over."""
        while True:
            now = time.monotonic()
            for lease in [one for one, deadline in self._deadlines.items() if deadline <= now]:
                try:
                    await self.revoke(lease)
                except NotFound:
                    continue  # its owner was faster
                except InferxError as error:
                    _log.warning("lease %d stays for now: %s", lease, error)
                    self._deadlines[lease] = now + _REVOKE_RETRY_S
            wait_s = min(self._deadlines.values(), default=now + 3600) - now
            self._lease_change.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lease_change.wait(), max(0.001, wait_s))

    async def compact(self, revision: int) -> None:
        """See `protocol.Store`."""
        await self._do(lambda: self._file.compact(revision))

    async def uid(self) -> int:
        """See `protocol.Store`."""
        return self._file.uid

    async def close(self) -> None:
        """See `protocol.Store`."""
        if self._closed:
            return
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        self._closed = True
        for watcher in self._watchers:
            watcher.wake.set()
        await self._loop.run_in_executor(self._executor, self._file.close)
        self._executor.shutdown()
