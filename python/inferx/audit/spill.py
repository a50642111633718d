"""Rows on their way to the database, on disk: for the time that it is away, and after a kill.

Must never grow beyond its limit, nor lose a whole row because the last one was cut.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

from inferx.audit.tables import TABLES, Row

BYTES_MAX = 256 << 20
PORTION = 2000
_COUNTS = struct.Struct("<QQ")

Entry = tuple[str, Row]


class Spill:
    """One writer's file of rows that the database has not got. `bytes_max` bounds it."""

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        self.path = path
        self._bytes_max = bytes_max

    def append(self, rows: list[Entry]) -> int:
        """Keep rows; returns how many had no room."""
        packed = [msgpack.packb([name, list(TABLES[name].values(row))]) for name, row in rows]
        size = self.path.stat().st_size if self.path.exists() else 0
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

    def portions(self) -> Iterator[list[Entry]]:
        """The rows kept, oldest first, a portion at a time."""
        portion: list[Entry] = []
        with self.path.open("rb") as file:
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

    def clear(self) -> None:
        """All rows are in the database."""
        self.path.unlink(missing_ok=True)

    def __bool__(self) -> bool:
        return self.path.exists()


class Tally:
    """How many rows a writer took and how many are safe, in a file that outlives its process.

    The numbers are in memory shared with the file: a kill loses none of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.ftruncate(descriptor, _COUNTS.size)
            self._memory = mmap.mmap(descriptor, _COUNTS.size)
        finally:
            os.close(descriptor)
        self.taken: int
        self.safe: int
        self.taken, self.safe = _COUNTS.unpack(self._memory[:])

    def take(self) -> int:
        """One more row; its number."""
        self.taken += 1
        _COUNTS.pack_into(self._memory, 0, self.taken, self.safe)
        return self.taken

    def secure(self, count: int) -> None:
        """So many more rows are in the database, on disk, or counted as lost."""
        self.safe += count
        _COUNTS.pack_into(self._memory, 0, self.taken, self.safe)

    def close(self, remove: bool) -> None:
        """Give the file back; with `remove` nobody has to look at it any more."""
        self._memory.close()
        if remove:
            self.path.unlink(missing_ok=True)


def left_behind(folder: Path) -> Iterator[tuple[Path, Any]]:
    """(file, rows lost) of each writer whose process is gone; its spill is beside it."""
    for path in sorted(folder.glob("audit-*.tally")):
        pid = path.stem.split("-")[1]
        if pid == str(os.getpid()) or Path("/proc", pid).exists():
            continue
        data = path.read_bytes()
        taken, safe = _COUNTS.unpack(data) if len(data) == _COUNTS.size else (0, 0)
        yield path, taken - safe
