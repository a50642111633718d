"""Rows on their way to the database, on disk: for the time that it is away, and after a kill.

Must never grow beyond its limit, nor lose a whole row because the last one was cut.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgpack  # type: ignore[import-untyped]

from inferx.audit.tables import TABLES, Row

BYTES_MAX = 256 << 20
PORTION = 2000
_COUNTS = struct.Struct("<QQQQ")
_PAIR = struct.Struct("<QQ")
_TOLD = struct.Struct("<Q")
_TOLD_AT = 24

Entry = tuple[str, Row]


class Spill:
    """One writer's rows that the database has not got, in files named after `path`.

    Rows are appended to `path` itself; `sealed` moves it aside, so that what is being brought to
    the database is never the file that rows are added to. `bytes_max` bounds all of them.
    """

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._number = 0

    def append(self, rows: list[Entry]) -> int:
        """Keep rows; returns how many had no room."""
        packed = [msgpack.packb([name, list(TABLES[name].values(row))]) for name, row in rows]
        size = sum(path.stat().st_size for path in self._files())
        kept = 0
        with self.path.open("ab") as file:
            for data in packed:
                if size + len(data) > self._bytes_max:
                    break
                file.write(data)
                size += len(data)
                kept += 1
            file.flush()
            os.fdatasync(file.fileno())
        return len(rows) - kept

    def sealed(self) -> list[Path]:
        """The files with the rows kept until now, oldest first; none of them grows any more."""
        if self.path.exists():
            self._number += 1
            self.path.rename(self.path.with_suffix(f".{self._number:06d}.spill"))
        return [path for path in self._files() if path != self.path]

    def _files(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}*.spill"))

    def __bool__(self) -> bool:
        return bool(self._files())


def portions(path: Path) -> Iterator[list[Entry]]:
    """The rows of a file, oldest first, a portion at a time."""
    portion: list[Entry] = []
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(file, max_buffer_size=64 << 20)
        try:
            for name, values in unpacker:
                portion.append((name, dict(zip(TABLES[name].all_columns, values, strict=True))))
                if len(portion) >= PORTION:
                    yield portion
                    portion = []
        except (msgpack.UnpackException, ValueError, KeyError, TypeError):
            pass  # the writer was killed in the middle of its last row
    if portion:
        yield portion


class Tally:
    """Four counts in a file that outlives its process: rows that a writer took and that are safe,
    calls that the data plane made records of and that the writer was told of.

    The numbers are in memory shared with the file: a kill loses none of them. The third is the data
    plane's, which maps the file for itself (`Proxy.count_records_in`). The file is locked as long
    as its writer lives: process ids say nothing, a container's are the same after each start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        made = path.with_suffix(".new")  # nobody finds it before it is locked
        self._lock = os.open(made, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.ftruncate(self._lock, _COUNTS.size)
        self._memory = mmap.mmap(self._lock, _COUNTS.size)
        made.rename(path)
        self.taken: int
        self.safe: int
        self.told: int
        self.taken, self.safe, _, self.told = _COUNTS.unpack(self._memory[:])

    def take(self) -> int:
        """One more row; its number."""
        self.taken += 1
        _PAIR.pack_into(self._memory, 0, self.taken, self.safe)
        return self.taken

    def secure(self, count: int) -> None:
        """So many more rows are in the database, on disk, or counted as lost."""
        self.safe += count
        _PAIR.pack_into(self._memory, 0, self.taken, self.safe)

    def tell(self) -> None:
        """The writer was told of one more call."""
        self.told += 1
        _TOLD.pack_into(self._memory, _TOLD_AT, self.told)

    def close(self, remove: bool) -> None:
        """Give the file back; with `remove` nobody has to look at it any more."""
        self._memory.close()
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._lock)


@dataclass(frozen=True)
class Left:
    """What a writer left whose process is gone."""

    tally: Path
    rows: int
    """Rows that were in its memory only; a call that it was not yet told of is one."""
    at_ms: int
    """The same for everybody who looks, as `writer` is."""
    writer: int

    @property
    def spill(self) -> Spill:
        """Its rows on disk."""
        return Spill(self.tally.with_suffix(".spill"))


def left_behind(folder: Path) -> Iterator[Left]:
    """Each writer whose process is gone; nobody else finds it until the next one is asked for."""
    for path in sorted(folder.glob("audit-*.tally")):
        with suppress(FileNotFoundError, BlockingIOError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            data, at_ms = file.read(), path.stat().st_mtime_ns // 1_000_000
            counts = _COUNTS.unpack(data) if len(data) == _COUNTS.size else (0, 0, 0, 0)
            taken, safe, made, told = counts
            writer = int(path.stem.rpartition("-")[2], 16)
            yield Left(path, taken - safe + made - told, at_ms, writer)
