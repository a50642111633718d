"""A pod's log: the worker writes the file directly, so that it survives a restart of the agent.

Must never keep more than three times the size limit (plus what comes in between two checks).
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

FILE_BYTES_MAX = 1 << 20
READ_BYTES_MAX = 1 << 20
CHUNK_BYTES = 64 << 10
FOLLOW_POLL_S = 0.1
SHOWN_LINES = 20  # in an error message
SHOWN_CHARS = 1500


class PodLog:
    """`log` is appended to by the worker; when it is over the limit it is copied to `log.1`.

    Lines that the worker writes during the copy itself may be lost; the rest is kept in order.
    """

    def __init__(self, folder: Path, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.path = folder / "log"
        self._older = folder / "log.1"
        self._file_bytes_max = file_bytes_max

    def open_for_worker(self) -> int:
        """A descriptor that appends to the log; the caller closes it. Mode 0600."""
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def rotate(self) -> bool:
        """Copy and truncate the file when it is over its limit; whether that was so."""
        if _size(self.path) <= self._file_bytes_max:
            return False
        # What came beyond the limit since the last check is kept too, within reason.
        kept = _read(self.path, max(0, _size(self.path) - 2 * self._file_bytes_max))
        temporary = self._older.with_suffix(".tmp")
        temporary.write_bytes(kept)
        temporary.chmod(0o600)
        temporary.replace(self._older)
        os.truncate(self.path, 0)
        return True

    def tail(self, lines: int = 0, bytes_max: int = READ_BYTES_MAX) -> str:
        """The last lines (0 = everything kept), at most `bytes_max` bytes of text."""
        kept = (_read(self._older, 0) + _read(self.path, 0))[-bytes_max:]
        text = kept.decode("utf-8", errors="replace")
        if lines <= 0:
            return text
        return "".join(text.splitlines(keepends=True)[-lines:])

    def last_words(self) -> str:
        """Its end as a part of an error message."""
        shown = self.tail(SHOWN_LINES)[-SHOWN_CHARS:].strip()
        return f"\nlast lines of its log:\n{shown}" if shown else "; its log is empty"

    async def follow(self, lines: int, finished: Callable[[], bool]) -> AsyncIterator[str]:
        """The tail, then what is appended, until `finished` says that no more will come.

        There is a first piece at once, if only an empty one: whoever passes the log on begins then.
        """
        start = _size(self.path)
        text = await asyncio.to_thread(self.tail, lines)
        for first in range(0, max(1, len(text)), CHUNK_BYTES):
            yield text[first : first + CHUNK_BYTES]
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while True:
            last_round = finished()
            while chunk := self._next(start):
                data, start = chunk
                if piece := decoder.decode(data):
                    yield piece
            if last_round:
                return
            await asyncio.sleep(FOLLOW_POLL_S)

    def _next(self, start: int) -> tuple[bytes, int] | None:
        """Up to one chunk from `start` on and the place after it; None when there is nothing."""
        if _size(self.path) < start:
            # Rotated since the last look: what was not read yet is the end of the older file.
            return _read(self._older, start), 0
        data = _read(self.path, start, CHUNK_BYTES)
        return (data, start + len(data)) if data else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read(path: Path, start: int, size: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    except FileNotFoundError:
        return b""
