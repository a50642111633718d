"""Takes rows without waiting and brings them to the database, over disk when it is away.

Must never block its caller: the queue is bounded, then the disk is, and then losses are counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from inferx import telemetry
from inferx.audit.sink import Sink
from inferx.audit.spill import BYTES_MAX, Entry, Spill, Tally, left_behind, portions
from inferx.audit.tables import Row
from inferx.config import NodeConfig
from inferx.errors import Unavailable

QUEUE_MAX = 20_000
BATCH_MAX = 2_000
FLUSH_S = 0.25
RETRY_S = 1.0
SLOW_S = 1.0  # what a database has to take a batch in before the rows go to disk as well
RETENTION_DAYS = 90
RETIRE_EVERY_S = 3600.0
_DAY_MS = 86_400_000
_log = logging.getLogger(__name__)

_rows = Counter(
    "inferx_audit_rows", "Audit rows, by what became of them", ["fate"], registry=telemetry.registry
)


class Audit:
    """One process's way to the audit. `record` may be called from the event loop at any time."""

    def __init__(
        self,
        sink: Sink,
        folder: Path,
        *,
        queue_max: int = QUEUE_MAX,
        spill_bytes_max: int = BYTES_MAX,
        retention_days: int = RETENTION_DAYS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.sink = sink
        self.dropped = 0
        self._folder = folder
        self._queue: deque[Entry] = deque()
        self._queue_max = queue_max
        self._retention_ms = retention_days * _DAY_MS
        self._writer = secrets.randbits(63)
        name = f"audit-{os.getpid()}-{self._writer:x}"
        self._spill = Spill(folder / f"{name}.spill", spill_bytes_max)
        self._tally = Tally(folder / f"{name}.tally")
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False
        self._retired_at = 0.0

    def record(self, table: str, row: Row, *, identity: tuple[int, int] | None = None) -> None:
        """Take a row; `at_ms` is now unless given. Rows of one `identity` are stored once."""
        number = self._tally.take()
        writer, seq = identity or (self._writer, number)
        full = {"at_ms": time.time_ns() // 1_000_000, **row, "writer": writer, "seq": seq}
        if len(self._queue) >= self._queue_max:
            # The database is too slow for this: the disk takes what has waited longest.
            self._to_disk(self._take(BATCH_MAX))
        self._queue.append((table, full))
        if len(self._queue) >= BATCH_MAX:
            self._wake.set()

    @property
    def tally(self) -> Path:
        """The file in which the data plane counts its records."""
        return self._tally.path

    def told(self) -> None:
        """A record of the data plane became rows."""
        self._tally.tell()

    def lost(self, rows: int, reason: str) -> None:
        """So many rows could not be taken."""
        _rows.labels("lost").inc(rows)
        self.record("losses", {"rows": rows, "reason": reason})

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run(), name="audit")

    async def stop(self) -> None:
        """Write what is left, to the database or to disk, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(5.0):
                await self._flush()
        self._queue_to_disk()
        self._tally.close(remove=not self._spill)
        await self.sink.close()

    def _take(self, count: int) -> list[Entry]:
        return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), RETRY_S if self._away else FLUSH_S)
            self._wake.clear()
            try:
                await self._adopt()
                await self._flush()
                await self._retire()
                self._note(away=False)
            except Unavailable as error:
                self._note(away=True, why=error.message)
                self._queue_to_disk()
            except Exception:
                _log.exception("writing the audit")

    def _note(self, away: bool, why: str = "") -> None:
        if away != self._away:
            self._away = away
            if away:
                _log.warning("the audit goes to disk: %s", why)
            else:
                _log.info("the audit goes to its database again")

    async def _flush(self) -> None:
        """What is on disk first, then what is in memory; a batch that fails goes to disk."""
        if self._spill:
            if len(self._queue) >= BATCH_MAX:
                self._queue_to_disk()
            await self._replay(self._spill)
        while self._queue:
            await self._store(self._take(BATCH_MAX))

    async def _store(self, batch: list[Entry], on_disk: bool = False) -> None:
        """Bring rows to the database. While it is slow, they and what waits go to disk as well:
        what only memory holds is never much older than `SLOW_S`."""
        fate = "replayed" if on_disk else "stored"
        writing = asyncio.ensure_future(self.sink.write(batch))
        try:
            while not (await asyncio.wait((writing,), timeout=SLOW_S))[0]:
                if not on_disk:
                    self._to_disk(batch)
                    on_disk = True
                self._queue_to_disk()
            writing.result()
        except BaseException:
            writing.cancel()
            if not on_disk:
                self._to_disk(batch)
            raise
        if fate == "stored" and not on_disk:
            self._tally.secure(len(batch))
        if fate == "replayed" or not on_disk:
            _rows.labels(fate).inc(len(batch))

    async def _replay(self, spill: Spill) -> None:
        """Bring the files to the database; rows that are there already do not come twice."""
        for path in spill.sealed():
            with suppress(FileNotFoundError):  # another process of this folder was faster
                rows = portions(path)
                while portion := await asyncio.to_thread(next, rows, None):
                    await self._store(portion, on_disk=True)
                path.unlink()

    def _queue_to_disk(self) -> None:
        while self._queue:
            self._to_disk(self._take(BATCH_MAX))

    def _to_disk(self, batch: list[Entry]) -> None:
        try:
            lost = self._spill.append(batch)
        except OSError as error:
            _log.error("the audit cannot be kept on disk: %s", error)
            lost = len(batch)
        self._tally.secure(len(batch))
        _rows.labels("spilled").inc(len(batch) - lost)
        if lost:
            self.dropped += lost
            _rows.labels("dropped").inc(lost)

    async def _adopt(self) -> None:
        """What writers that were killed left on disk; what they had in memory only is counted."""
        if self.dropped:
            lost, self.dropped = self.dropped, 0
            row = {"rows": lost, "reason": "neither the database nor the disk had room"}
            self.record("losses", row)
        for left in left_behind(self._folder):
            await self._replay(left.spill)
            if left.rows > 0:
                _log.warning("a killed process had %d audit rows in memory", left.rows)
                _rows.labels("lost").inc(left.rows)
                # Whoever finds it writes the same row.
                reason = f"the process of {left.tally.stem} was killed"
                row = {"at_ms": left.at_ms, "rows": left.rows, "reason": reason}
                self.record("losses", row, identity=(left.writer, 0))
            left.tally.unlink(missing_ok=True)

    async def _retire(self) -> None:
        if time.monotonic() - self._retired_at < RETIRE_EVERY_S and self._retired_at:
            return
        self._retired_at = time.monotonic()
        gone = await self.sink.retire(time.time_ns() // 1_000_000 - self._retention_ms)
        if gone:
            _log.info("retired %d parts of the audit", gone)


def open_audit(config: NodeConfig, **options: Any) -> Audit:
    """The audit of a node: PostgreSQL when `auditdbAddr` is set, else a file in `dataDir`."""
    sink: Sink
    if config.auditdb_addr:
        from inferx.audit.postgres import PostgresSink

        sink = PostgresSink(config.auditdb_addr)
    else:
        from inferx.audit.sqlite import SqliteSink

        sink = SqliteSink(config.data_dir / "audit.db")
    return Audit(sink, config.data_dir / "audit", **options)
