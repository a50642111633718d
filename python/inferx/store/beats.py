"""Leases that end sooner than the store's shortest: etcd has none below two seconds, and is late.

Each renewal writes the lease's beat, a key of its own. Every state service watches all beats and
ends a lease whose beat has not changed for the lease's life. Must never end one that was renewed:
the end is a transaction on the very beat that was watched, so that a watch that is late or cut off
ends nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from inferx.errors import Compacted, InferxError, NotFound
from inferx.store.protocol import At, Entry, GuardFailed, Put, Store

ENDED = b"ended"
RETRY_S = 0.2
_KNOWN_MAX = 100_000  # leases of holders that died stay known, until there are so many
_log = logging.getLogger(__name__)

_Beat = tuple[int, bytes]  # the revision that wrote it and what it says


@dataclass
class _Seen:
    """The newest known write of a beat, when we learnt of it, and what ends the lease then."""

    entry: Entry
    at: float
    timer: asyncio.TimerHandle


class Beats:
    """Grants, renews and ends leases of a store; `run` is what ends the neglected."""

    def __init__(self, store: Store, prefix: str = "") -> None:
        self._store = store
        # Taken now: renewals are not among the writes that crash points count.
        self._commit = store.commit
        self._root = f"{prefix.rstrip('/')}/beats/"
        self._known: dict[int, _Beat | None] = {}  # of those renewed here, None = it has none
        self._seen: dict[str, _Seen] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- for their holders ----

    async def grant(self, ttl_ms: int) -> tuple[int, int]:
        """A new lease and its life in milliseconds, which may be longer than was asked for."""
        lease = await self._store.grant(ttl_ms / 1000)
        # Stores round: what this one says it is counts.
        stored_ms = int(await self._store.keep_alive(lease) * 1000)
        if stored_ms <= ttl_ms:
            self._know(lease, None)
            return lease, stored_ms
        value = b"%d" % ttl_ms
        put = Put(self._key(lease), value, lease)
        self._know(lease, (await self._commit((), [put]), value))
        return lease, ttl_ms

    async def keep(self, lease: int) -> int:
        """Renew; the milliseconds it now lives. `NotFound` when it has ended."""
        beat = self._known[lease] if lease in self._known else await self._look_for(lease)
        stored, beat_ms = await asyncio.gather(
            self._store.keep_alive(lease), self._beat(lease, beat), return_exceptions=True
        )
        for outcome in (stored, beat_ms):
            if isinstance(outcome, BaseException):
                if isinstance(outcome, NotFound):
                    self._known.pop(lease, None)
                raise outcome
        assert not isinstance(stored, BaseException)
        assert not isinstance(beat_ms, BaseException)
        return int(stored * 1000) if beat_ms is None else beat_ms

    async def end(self, lease: int) -> None:
        """End it now, with everything under it."""
        self._known.pop(lease, None)
        await self._store.revoke(lease)

    def _know(self, lease: int, beat: _Beat | None) -> None:
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[lease] = beat

    async def _look_for(self, lease: int) -> _Beat | None:
        """The beat of a lease that was granted elsewhere. It is written before anybody hears of the
        lease: when it is not there, there is none or the lease has ended, as the store will say."""
        entry = await self._store.get(self._key(lease))
        beat = None if entry is None else (entry.revision, entry.value)
        self._know(lease, beat)
        return beat

    async def _beat(self, lease: int, beat: _Beat | None) -> int | None:
        """Write the beat anew; the life in milliseconds, None for a lease without one."""
        if beat is None:
            return None
        while beat is not None and beat[1] != ENDED:
            revision, value = beat
            try:
                put = Put(self._key(lease), value, lease)
                now = await self._commit([At(self._key(lease), revision)], [put])
            except GuardFailed:  # it was renewed meanwhile elsewhere, or has ended
                beat = await self._look_for(lease)
                continue
            self._know(lease, (now, value))
            return int(value)
        raise NotFound(f"lease {lease} has ended")

    def _key(self, lease: int) -> str:
        return f"{self._root}{lease}"

    # ---- for the neglected ----

    async def run(self) -> None:
        """Watch and end, until cancelled."""
        try:
            while True:
                try:
                    await self._follow()
                except Compacted:
                    _log.info("beats were compacted meanwhile; they are read again")
                except InferxError as error:
                    _log.info("beats cannot be followed: %s", error.message)
                    await asyncio.sleep(RETRY_S)
                except Exception:
                    # Whatever it was: leases whose holders died would end only with the store's.
                    _log.exception("following beats")
                    await asyncio.sleep(RETRY_S)
        finally:
            for seen in self._seen.values():
                seen.timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self) -> None:
        entries, revision = await self._store.scan(self._root)
        self._forget(set(self._seen) - {entry.key for entry in entries})
        for entry in entries:
            self._saw(entry)
        async for events in self._store.watch(self._root, revision):
            for event in events:
                if event.entry is None:
                    self._forget([event.key])
                else:
                    self._saw(event.entry)

    def _forget(self, keys: Sequence[str] | set[str]) -> None:
        for key in keys:
            seen = self._seen.pop(key, None)
            if seen is not None:
                seen.timer.cancel()

    def _saw(self, entry: Entry) -> None:
        known = self._seen.get(entry.key)
        if known is not None:
            if known.entry.revision >= entry.revision:
                return
            known.timer.cancel()
        life_s = 0.0 if entry.value == ENDED else int(entry.value) / 1000
        self._arm(entry, time.monotonic(), life_s)

    def _arm(self, entry: Entry, at: float, after_s: float) -> None:
        timer = asyncio.get_running_loop().call_later(after_s, self._due, entry.key)
        self._seen[entry.key] = _Seen(entry, at, timer)

    def _due(self, key: str) -> None:
        task = asyncio.create_task(self._end_neglected(self._seen[key]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_neglected(self, seen: _Seen) -> None:
        """First nobody can renew it any more, then the store removes what lives under it."""
        entry = seen.entry
        try:
            if entry.value != ENDED:
                guard = At(entry.key, entry.revision)
                await self._commit([guard], [Put(entry.key, ENDED, entry.lease)])
                after_s = time.monotonic() - seen.at
                _log.info("lease %d ends: no beat for %.2f s", entry.lease, after_s)
            await self._store.revoke(entry.lease)
        except (GuardFailed, NotFound):
            return  # it was renewed, or another state service has ended it
        except InferxError as error:
            _log.info("lease %d is not ended yet: %s", entry.lease, error.message)
            if self._seen.get(entry.key) is seen:
                self._arm(entry, seen.at, RETRY_S)
