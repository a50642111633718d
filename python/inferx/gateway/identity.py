"""Which gateway this is, and which ones on this data folder died without giving their leases back.

Must never declare a living gateway dead.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_PATTERN = "gateway-*.id"


class Identity:
    """A fresh id, kept in a file named after the process while the process lives."""

    def __init__(self, data_dir: Path) -> None:
        self.gateway_id = secrets.randbits(63)
        data_dir.mkdir(parents=True, exist_ok=True)
        self._left = {path: _read(path) for path in data_dir.glob(_PATTERN) if not _alive(path)}
        self._file = data_dir / f"gateway-{os.getpid()}.id"
        self._file.write_text(str(self.gateway_id))

    @property
    def beside_another(self) -> bool:
        """Another gateway on this data folder lives: this one takes over from it."""
        others = (path for path in self._file.parent.glob(_PATTERN) if path != self._file)
        return any(_alive(path) for path in others)

    @property
    def replaces(self) -> list[int]:
        """Ids of gateways whose processes are gone; their leases may end at once."""
        return [gateway_id for gateway_id in self._left.values() if gateway_id is not None]

    def announced(self) -> None:
        """The scheduler knows: forget the dead."""
        for path in self._left:
            if path != self._file:
                path.unlink(missing_ok=True)
        self._left = {}

    def release(self) -> None:
        """An orderly end: nobody has to speak for this gateway."""
        self._file.unlink(missing_ok=True)


def _alive(path: Path) -> bool:
    pid = path.stem.removeprefix("gateway-")
    return pid != str(os.getpid()) and Path("/proc", pid).exists()


def _read(path: Path) -> int | None:
    text = path.read_text()
    return int(text) if text.isdecimal() else None
